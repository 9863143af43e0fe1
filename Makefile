# Everything runs in .venv, which is made on first use and again when what it is made from changes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Two tests at a time, file by file: much of what they do is waiting for servers and workers.
BY_TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test fast bench lint clean

demo: $(READY)
	$(VENV)/bin/thaw demo

# The fast tests, and those on real images where THAW_SHARED, or a folder `shared` beside the project, has them.
test: $(READY)
	$(VENV)/bin/python -m pytest $(BY_TWO) --durations=15

fast: $(READY)
	$(VENV)/bin/python -m pytest $(BY_TWO) -m "not real and not slow"

# Thaw beside plain Keras, on the real images: about half an hour. Alone: .venv/bin/python -m benchmarks NAME
bench: $(READY)
	$(VENV)/bin/python -m benchmarks

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Thaw needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) store
