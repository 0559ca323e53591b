"""A language model that remembers in its weights: MEMIT while awake, LoRA while asleep."""
__version__ = "0.1.0"

__all__ = ["SleepingLLM", "Fact", "Settings"]

def __getattr__(name):
    "The public names, loaded when they are first used: importing the package costs nothing."
    home = dict(SleepingLLM="chat", Fact="facts", Settings="settings").get(name)
    if home is None: raise AttributeError(f"module 'sleeping_llm' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"sleeping_llm.{home}"), name)
