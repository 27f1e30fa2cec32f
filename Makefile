# `make help` lists the targets. Needs make (3.81 or newer), a POSIX sh and a Python >= 3.11; uv is used when it is there.

ENV     = .venv
PYTHON  = $(ENV)/bin/python
INSTALL = install() { \
	  if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(PYTHON) "$$@"; \
	  else $(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null || exit 1; \
	    $(PYTHON) -m pip install --quiet --disable-pip-version-check "$$@"; fi; }; install

# Of two Pythons the first good one is taken. An Intel Python on a Mac is not good: MLX has no wheels for it.
PYTHONS = python3.13 python3.12 python3.11 python3
IS_GOOD = import platform, sys; intel_mac = (sys.platform, platform.machine()) == ("darwin", "x86_64"); \
	  sys.exit(intel_mac or sys.version_info < (3, 11))

# MLX's Linux wheel is 25 times slower without OpenBLAS. On a Mac this leaves LD_PRELOAD as it is.
PRELOAD = "$$($(PYTHON) -c 'from macft.machine import openblas_preload; print(openblas_preload())')"
OPENBLAS_PACKAGES = libopenblas0-pthread libgfortran5 libquadmath0

# A file of tests stays in one process, since its tests share what is slow to make.
SPREAD = --numprocesses logical --maxprocesses 4 --dist loadfile

help:
	@echo "make quickstart   set up, fetch SmolLM2-135M, train it for some minutes, show before and after"
	@echo "make test         quick tests and those with the real small model (what CI runs)"
	@echo "make check        ruff, mypy, import-linter"
	@echo "make long         the tests that do not fit into CI"
	@echo "make faults       kills, failing disks, signals, hostile files: all of them"
	@echo "make bench        macft against stock mlx-lm on this machine; BENCH=--quick for a few batches"
	@echo "make bench-dpo    macft's DPO against mlx-lm-lora, troy-cli and mlx-tune on this machine; the same BENCH"
	@echo "make screenshots  draw the README's pictures of the studio"
	@echo "make clean        remove the environment and all caches; runs and models stay"

quickstart: $(ENV)/openblas
	$(PYTHON) -m macft pull smollm2-135m
	$(PYTHON) -m macft train quickstart

test: $(ENV)/developer $(ENV)/openblas
	LD_PRELOAD=$(PRELOAD) OPENBLAS_NUM_THREADS=1 $(PYTHON) -m pytest -m "not long" $(SPREAD)

long: $(ENV)/developer $(ENV)/openblas
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m pytest -m long

faults: $(ENV)/developer $(ENV)/openblas
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m pytest tests/faults

check: $(ENV)/developer
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(ENV)/bin/lint-imports

# MACFT_BENCH_DATA names the folder of the rows; mlx-lm comes into an environment of its own below .bench.
bench: $(ENV)/developer $(ENV)/openblas
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m macft pull smollm2-135m
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m tests.benchmarks.compare $(BENCH)

bench-dpo: $(ENV)/developer $(ENV)/openblas
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m macft pull smollm2-135m
	LD_PRELOAD=$(PRELOAD) $(PYTHON) -m tests.benchmarks.preferences $(BENCH)

screenshots: $(ENV)/developer
	$(PYTHON) -m tests.screenshots

reference: $(ENV)/developer
	$(PYTHON) -m tests.reference

clean:
	rm -rf $(ENV) .bench .openblas build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find macft tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Three stamps: what a user needs, what a developer needs, and a fast BLAS. They are redone when pyproject.toml changes.

$(ENV)/user: pyproject.toml
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then exit 0; fi; \
	rm -rf $(ENV); \
	for candidate in $(PYTHONS); do \
	  if $$candidate -c '$(IS_GOOD)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if command -v uv >/dev/null 2>&1; then uv venv --quiet --python "$${found:-3.12}" $(ENV); exit $$?; fi; \
	if [ -z "$$found" ]; then \
	  echo "macft needs Python 3.11 or newer, and no such python3 is on this machine's PATH." >&2; \
	  case $$(uname -s) in \
	    Darwin) echo "A Mac's own python3 is 3.9. Install one with 'brew install python@3.12', or install uv." >&2;; \
	    *) echo "Debian and Ubuntu: 'apt install python3 python3-venv' (Debian 12 or newer), or install uv." >&2;; \
	  esac; exit 1; \
	fi; \
	echo "Making $(ENV) with $$found"; \
	if ! said=$$($$found -m venv $(ENV) 2>&1); then \
	  rm -rf $(ENV); echo "$$said" >&2; \
	  echo "$$found cannot make an environment. Debian and Ubuntu: 'apt install python3-venv', or install uv." >&2; exit 1; \
	fi
	@echo "Installing macft and what it needs (600 MB) into $(ENV)"
	@$(INSTALL) -e .
	@touch $@

$(ENV)/developer: $(ENV)/user
	@echo "Installing the developer's tools into $(ENV)"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(ENV)/openblas: $(ENV)/user
	@if [ "$$(uname -s)" != Linux ]; then touch $@; exit 0; fi; \
	case $(PRELOAD) in *openblas*) touch $@; exit 0;; esac; \
	echo "Installing OpenBLAS"; \
	root() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libopenblas0-pthread; }; \
	if [ "$$(id -u)" = 0 ] && { root || { apt-get update -qq && root; }; } >/dev/null 2>&1; then touch $@; exit 0; fi; \
	rm -rf .openblas && mkdir -p .openblas/unpacked && cd .openblas || exit 1; \
	for package in $(OPENBLAS_PACKAGES); do \
	  apt-get download -qq "$$package" >/dev/null 2>&1 && dpkg-deb -x "$$package"_*.deb unpacked; \
	done; \
	for library in unpacked/usr/lib/*/openblas-pthread/libopenblas.so.0 unpacked/usr/lib/*/lib*.so.[0-9]; do \
	  if [ -e "$$library" ]; then cp -L "$$library" .; fi; \
	done; \
	rm -rf unpacked *.deb; cd ..; touch $@; \
	case $(PRELOAD) in *openblas*) ;; *) \
	  echo "OpenBLAS could not be installed, so macft computes 25 times slower. Debian: 'apt install libopenblas0-pthread'" \
	    "· Fedora: 'dnf install openblas' · Arch: 'pacman -S openblas'" >&2;; esac

.PHONY: help quickstart test long faults check bench bench-dpo screenshots reference clean
