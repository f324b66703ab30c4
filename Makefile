# Every target works on a fresh clone: .venv is made when it is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: setup demo test test-browser check format notebooks bench card docs clean

setup: .venv/ready

# torch comes first and alone: any other order lets pip choose another build of it
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[notebooks,dev]"
	touch $@

demo: .venv/ready
	rm -rf $(RUN)
	$(BIN)/qrnca demo --out $(RUN)

test: .venv/ready
	$(BIN)/pytest -q -n 2 --dist loadfile

# the pages, and the views in JupyterLab, in a headless browser; Debian's package is installed where there is none
test-browser: .venv/ready
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		$(SUDO) sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends chromium'
	$(BIN)/pytest -q -m browser

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: .venv/ready
	QRNCA_PER_GROUP=4 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --nbmake --nbmake-timeout=900 notebooks

bench: .venv/ready
	$(BIN)/python benchmarks/attribution.py
	$(BIN)/python benchmarks/explorer.py

card: .venv/ready
	$(BIN)/qrnca card atlas --out docs/atlas_card.md

# the card, and the notebooks executed with their outputs
docs: card
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:
	rm -rf .venv runs dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
