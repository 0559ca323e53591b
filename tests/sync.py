"""Fail when notebooks are not clean, or when library or README are not what the notebooks export."""
import json,os,re,shutil,subprocess,sys,tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
parts = ("nbs","sleeping_llm","pyproject.toml","settings.ini","README.md")

def readme(nb):
    "README.md is the index notebook's text, with code cells as fences; pictures are found from the root."
    out = []
    for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
        text = "".join(c["source"])
        if c["cell_type"]=="markdown": out.append(re.sub(r"\]\((experiments/|\w+\.ipynb)", r"](nbs/\1", text))
        elif not text.lstrip().startswith("#| hide"): out.append(f"```python\n{text}\n```")
    return "\n\n".join(out)+"\n"

def files(d): return {p.relative_to(d):p.read_bytes() for p in d.rglob("*") if p.is_file() and "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}

if __name__=="__main__":
    if "--write" in sys.argv: (root/"README.md").write_text(readme(root/"nbs"/"index.ipynb"), encoding="utf-8")
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/"copy"
        for p in parts:
            src = root/p
            if src.is_dir(): shutil.copytree(src, copy/p, ignore=shutil.ignore_patterns("__pycache__",".ipynb_checkpoints"))
            elif src.exists(): (copy/p).parent.mkdir(parents=True, exist_ok=True); shutil.copy(src, copy/p)
        before = files(copy)
        for command in ("nbdev-clean","nbdev-export"): subprocess.run([command], cwd=copy, check=True, env={**os.environ,"PYTHONPATH":str(copy)})
        (copy/"README.md").write_text(readme(copy/"nbs"/"index.ipynb"), encoding="utf-8")
        after = files(copy)
    different = sorted(str(k) for k in before.keys()|after.keys() if before.get(k)!=after.get(k))
    if different:
        print("these are not clean or not in sync; run nbdev-clean, nbdev-export and `python tests/sync.py --write`, then commit:", *different, sep="\n  ")
        sys.exit(1)
    print(f"{len(after)} files are clean and in sync")
