# Every target works on a fresh clone: .venv is made when it is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
TL4_TESTS := $(patsubst %,tests/test_%.py,models loading tokens reader targets engine bridge_engine edits rows threads \
	attribution editing collateral readout explore circuit budget refinement last_logits forecast gguf adapters)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: setup demo test test-tl4 test-browser real-model test-real test-crash check format notebooks bench card docs clean

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

# what touches models, with the newest TransformerLens 4 in an environment of its own, where every model is a bridge
test-tl4: .venv-tl4/ready
	PYTHONPATH=. .venv-tl4/bin/pytest -q -n 2 --dist loadfile $(TL4_TESTS)

.venv-tl4/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tl4
	.venv-tl4/bin/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	sed -n '/^dependencies = /,/^]/s/^ *"\([^"]*\)".*/\1/p' pyproject.toml | grep -v '^transformer_lens' > .venv-tl4/others.txt
	.venv-tl4/bin/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" 'transformer_lens>=4,<5' \
		--requirement .venv-tl4/others.txt pytest pytest-xdist hypothesis beartype psutil gguf peft
	touch $@

# the pages, and the views in JupyterLab, in a headless browser; Debian's package is installed where there is none
test-browser: .venv/ready
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		$(SUDO) sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends chromium'
	$(BIN)/pytest -q -m browser

# SmolLM2-135M-Instruct, 98 MB, into models/; at once where it is already
real-model: .venv/ready
	$(BIN)/python tests/real_model.py

# what is shown on a real language model
test-real: real-model
	$(BIN)/pytest -q -m real

# runs that are killed, meet others in their folder or fill a disk
test-crash: .venv/ready
	$(BIN)/pytest -q -m crash

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_package.py

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the last one is about the real model
notebooks: real-model
	QRNCA_PER_GROUP=4 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --nbmake --nbmake-timeout=900 notebooks

bench: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/attribution.py
	$(BIN)/python benchmarks/explorer.py

card: .venv/ready
	$(BIN)/qrnca card atlas --out docs/atlas_card.md

# the card, and the notebooks executed with their outputs
docs: card real-model
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:
	rm -rf .venv .venv-tl4 runs dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
