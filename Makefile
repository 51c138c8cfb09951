# Everyday commands. VENV_PATH names another environment, ARGS adds arguments for test and bench.
VENV := $(or $(VENV_PATH),.venv)
PYTHON := "$(VENV)/bin/python"

.PHONY: setup fmt check test golden golden-record docs bench fresh pythons clean

setup:  ## environment with the tools for tests and development
	scripts/setup.sh --dev

fmt:  ## format and mend what can be mended
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:  ## style, types, spelling
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	"$(VENV)/bin/codespell"

test:  ## the default tests
	./test.sh $(ARGS)

golden:  ## the pinned steps and the settings that must agree
	./test.sh tests/golden $(ARGS)

golden-record:  ## pin the steps anew; the commit says why they changed
	RECORD_GOLDEN=1 TEST_WORKERS=0 ./test.sh tests/golden $(ARGS)

docs:  ## docs/options.md and docs/optimizers.md, from the option table and the catalog
	$(PYTHON) -c "from pathlib import Path; from simpletuner.config.surfaces.docs import options_page; Path('docs/options.md').write_text(options_page(), encoding='utf-8')"
	$(PYTHON) -c "from pathlib import Path; from simpletuner.config.surfaces.optimizer_page import optimizers_page; Path('docs/optimizers.md').write_text(optimizers_page(), encoding='utf-8')"

bench:  ## our step against a bare loop
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/step_overhead.py $(ARGS)

fresh:  ## both commands in a temporary clone with an empty environment
	scripts/fresh.sh

pythons:  ## Python 3.10 and 3.12: does the pinned set resolve, do the tests without torch pass
	scripts/other_pythons.sh

clean:  ## what tools leave behind; environment, output, caches and data stay
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find simpletuner tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
