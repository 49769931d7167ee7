PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lab notebooks colab setup clean

demo: setup  ## the main job, headless: train SmolLM2-135M in 4 bits with HAPO
	@$(BIN)/python -m hapo_lab demo

test: setup  ## every test
	@$(BIN)/python -m pytest

lab: setup  ## JupyterLab on the first notebook (loopback only, token on)
	@$(BIN)/jupyter lab --ip=127.0.0.1 notebooks/00_start_here.ipynb

notebooks: setup  ## execute every notebook in its place, as they are committed
	@$(BIN)/python notebooks/execute.py

colab:  ## the file that the notebooks need on Colab; it is made without any set-up
	@$(PYTHON) notebooks/archive.py

setup: .venv/done

.venv/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

clean:  ## remove what set-up and runs made
	rm -rf .venv dist notebooks/runs
