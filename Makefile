# Everything runs in .venv. On a machine without an NVIDIA card TORCH names the small CPU build.
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
CHAT ?= 1
MODEL ?=
EXAMPLES ?= 1000
SOAK ?=
SECTIONS ?= values,few,many,decoding,tune,quantize,exchange,peers,models
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: setup demo test check fix bench real fuzz fuzz-long mutants coverage clients soak requests gpu-check snapshots screenshots

setup: .venv/.ready

.venv/.ready: pyproject.toml CMakeLists.txt $(wildcard qlocal/kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.10,<2" "cmake>=3.25,<5" "ninja>=1.11,<2"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch .venv/.ready

test: setup
	$(BIN)/python -m pytest

check: setup
	BIN=$(BIN) scripts/check

fix: setup
	BIN=$(BIN) scripts/fix

demo: setup
	CHAT=$(CHAT) MODEL=$(MODEL) $(BIN)/python scripts/demo.py

bench: setup
	$(BIN)/qlocal bench

real: setup
	$(BIN)/python -m pytest -m real

# Ten minutes and twelve hours of hostile files; the same seed gives the same cases.
fuzz: setup
	RUST_BACKTRACE=0 $(BIN)/python -m tests.fuzz.run --seconds 600

fuzz-long: setup
	RUST_BACKTRACE=0 $(BIN)/python -m tests.fuzz.run --seconds 43200

# Branches of all that reads strangers' files (pyproject.toml names it), by their own tests. What runs in the guard's process
# runs a second time in the tests' own, where it can be seen: without the limits, and so without the tests of those.
# Small mistakes in the readers of strangers' files, of which the tests must notice nine of ten: half an hour.
mutants: setup
	$(BIN)/python -m tests.fuzz.mutants

coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest tests/formats tests/models tests/fuzz tests/test_strict_json.py
	$(BIN)/python -m coverage run --append -m pytest -p tests.guard.in_process -k "not explodes and not properties and not multiple and not bomb" \
		tests/tokenizer tests/guard/test_documents.py tests/guard/test_grammars.py tests/guard/test_marks.py tests/guard/test_refusals.py \
		tests/guard/test_templates.py tests/guard/test_vocabularies.py
	$(BIN)/python -m coverage report --skip-covered

# openai, LangChain and litellm, in an environment of their own, against a server. CLIENTS_MODEL=FILE: of a real model.
clients: setup
	$(BIN)/python scripts/clients.py

# 200,000 requests; SOAK="--model FILE --requests 2000" for a real engine.
soak: setup
	$(BIN)/python -m benchmarks.soak $(SOAK)

# Made-up requests for every route of openapi.json: EXAMPLES of each.
requests: setup
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q -m "slow or not slow" tests/server/test_made_up_requests.py

# Needs an NVIDIA card, torch, triton, numpy, safetensors and tokenizers, and nothing else. REHEARSE=--rehearse needs no card.
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check --sections $(SECTIONS) $(REHEARSE)

# Writes anew what tests/chat/screens/ keeps of every screen: after a change of the chat's look that is meant.
snapshots: setup
	$(BIN)/python -m tests.chat.snapshots

# The pictures in docs/, from a scripted conversation; they come out the same everywhere.
screenshots: setup
	$(BIN)/python scripts/screenshots.py
