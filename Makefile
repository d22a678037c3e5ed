# The two commands of a newcomer are `make audit` and `make test`. Both may be run again and again, also offline.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check
ARGS ?=
# Processes of the tests, each with one thread: tiny models gain nothing from more.
JOBS ?= 2
# A file of CounterFact, in its authors' format, for `make truth`; none is shipped.
COUNTERFACT ?=

.PHONY: audit test bench truth docs world lint clean

audit: $(VENV)/.installed  ## change the embedded model, try to break the change, write the report
	@$(RUN)/editkit audit $(ARGS); status=$$?; \
	case $$status in 0|1|3) exit 0;; *) exit $$status;; esac  # the audit ran, whatever its verdict

test: $(VENV)/.installed-test  ## the whole suite
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

bench: $(VENV)/.installed-test  ## measurements; never part of the tests
	$(RUN)/python tests/bench/bench_rome.py $(ARGS)
	$(RUN)/python tests/bench/bench_easyedit.py $(ARGS)
	$(RUN)/python tests/bench/bench_stack.py 200 $(ARGS)
	$(RUN)/python tests/bench/bench_unlearn.py $(ARGS)

truth: $(VENV)/.installed-test  ## docs/truth.md, the named operators or all: 15 minutes an operator and as much for its sequence
	$(RUN)/python tools/truth.py $(or $(ARGS),all)
	$(if $(COUNTERFACT),$(RUN)/python tools/truth.py --counterfact $(COUNTERFACT) $(or $(ARGS),all))
	$(RUN)/python tests/bench/bench_sequential.py $(ARGS) --out docs/truth/sequential
	$(if $(ARGS),,$(RUN)/python tests/bench/bench_sequential.py memit alphaedit ultraedit --batch 100 --out docs/truth/sequential)
	$(RUN)/python tools/truth.py

docs: $(VENV)/.installed-test  ## write the generated parts of the README anew
	$(RUN)/python tools/readme.py

world: $(VENV)/.installed-test  ## make datasets/world anew from its source packages
	$(RUN)/python tools/build_world.py

lint: $(VENV)/.installed-test
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "editkit needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps easyeditor  # its pins are of 2023
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .hypothesis .ruff_cache
