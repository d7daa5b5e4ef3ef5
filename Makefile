# One command a task; CI runs the same ones. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
PARTS := $(wildcard src/fastframe/*.pxi)
HEADERS := $(wildcard src/fastframe/*.h)
MADE_OF := pyproject.toml setup.py src/_fastframe.pyx $(PARTS) $(HEADERS) src/iproto/_version.py
DOCS_BUILT := $(VENV)/.docs-built
BENCH_BUILT := $(VENV)/.bench-built
TOOLS := build/tools
TOOLS_BUILT := $(TOOLS)/.built
SDIST := dist/iproto-*.tar.gz
WHEEL := dist/iproto-*.whl

.PHONY: help
help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: serve
serve: $(INSTALLED) ## Build, and serve on 127.0.0.1:8080 with metrics on 127.0.0.1:8088
	@exec $(BIN)/iproto serve

# Most tests wait more than they compute, so there are more at once than cores.
JOBS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))

.PHONY: test
test: $(BUILT) ## Build, and run all tests, JOBS at once (0: one after the other)
	$(BIN)/python -m pytest --numprocesses $(JOBS)

TIMES ?= 3

.PHONY: steady
steady: $(BUILT) ## Run TESTS (all by default) TIMES times beside a load of 8 on each core
	TEST_PATIENCE=5 $(BIN)/python tools/beside_load.py $(BIN)/python -m pytest --numprocesses $(JOBS) --timeout 600 \
		--count $(TIMES) --repeat-scope session $(TESTS)

.PHONY: smoke
smoke: $(BUILT) ## Build, and run the quick test files of tests/smoke.txt: half a minute
	$(BIN)/python -m pytest -q -x $$(cat tests/smoke.txt)

COVERAGE := build/coverage

# A copy of the tree, whose extension says which of its lines it runs. That takes time, so a test
# that hangs is given more of it.
.PHONY: coverage
coverage: $(COVERAGE)/.built ## Which lines the tests run, of Python and the extension; fails below a floor; TESTS=tests/codec
	git ls-files -z --cached --others --exclude-standard tests docs examples benchmarks tools model deploy .github \
		'*.md' | tar --null -T - -cf - | tar -xf - -C $(COVERAGE)/source
	cd $(COVERAGE)/source && rm -f .coverage* && PATH="$(CURDIR)/$(COVERAGE)/venv/bin:$$PATH" && \
		{ TEST_PATIENCE=5 python -m coverage run -m pytest --numprocesses $(JOBS) --timeout 600 $(TESTS); tests=$$?; } && \
		python tools/drop_cut_coverage.py . && python -m coverage combine --quiet && \
		python -m coverage html --quiet && python -m coverage report --skip-covered && exit $$tests

$(COVERAGE)/.built: $(MADE_OF)
	rm -rf $(COVERAGE)
	mkdir -p $(COVERAGE)/source
	git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C $(COVERAGE)/source
	$(PYTHON) -m venv $(COVERAGE)/venv
	$(COVERAGE)/venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	cd $(COVERAGE)/source && IPROTO_TRACE=1 ../venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable . --group test --group coverage
	# The plugin looks for the C of a part in the part's own folder.
	ln -s ../_fastframe.c $(COVERAGE)/source/src/fastframe/_fastframe.c
	touch $@

SECONDS ?= 60

.PHONY: soak
soak: $(BUILT) ## Kill workers under load for SECONDS, and check every slot's history
	$(BIN)/python -m tests.workers.soak --seconds $(SECONDS)

TSAN_SECONDS ?= 10
TSAN_CC = $(CC) -std=gnu11 -O1 -g -fsanitize=thread -pthread -Isrc/fastframe

# The control reads without the lock: a sanitizer that reports nothing there sees nothing.
.PHONY: tsan
tsan: ## The store's lock and slots under ThreadSanitizer for TSAN_SECONDS, and a control
	@mkdir -p build
	$(TSAN_CC) -o build/stress tests/store/stress.c
	$(TSAN_CC) -DWEAKENED -o build/stress-weakened tests/store/stress.c
	TSAN_OPTIONS=halt_on_error=1 build/stress $(TSAN_SECONDS)
	@if TSAN_OPTIONS=halt_on_error=1 build/stress-weakened 5 2> build/tsan-control.txt; then \
		echo "the control was not reported"; exit 1; fi
	@grep -q 'data race' build/tsan-control.txt || { cat build/tsan-control.txt; exit 1; }
	@echo "the control was reported, as it has to be"

RESTARTS ?= 20
UPGRADES ?= 10

.PHONY: restarts
restarts: $(BUILT) ## RESTARTS and UPGRADES under load: no call of our clients fails, none is executed twice
	$(BIN)/python -m tests.workers.restarts --restarts $(RESTARTS) --upgrades $(UPGRADES)

KILLS ?= 100

.PHONY: pauses
pauses: $(BUILT) ## Kill KILLS workers, and as many that hold the lock: how long the others pause
	$(BIN)/python -m tests.workers.pauses --kills $(KILLS)

.PHONY: fairness
fairness: $(BUILT) ## How long workers wait for the store's lock that others take without a pause
	$(BIN)/python -m tests.store.fairness

.PHONY: generate
generate: $(BUILT) ## Write what is made: of schema/iproto.toml enums, exceptions, tables; the vectors
	$(BIN)/python tools/generate.py
	$(BIN)/python -m tests.helpers.make_vectors

# The extension built by clang with what finds its faults at run time, in an environment of its
# own: from a copy of the source, for an object of another build must not be taken for one of this.
# -fno-sanitize=function: Cython calls through pointers to another type, and means it.
SANITIZE := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=function \
	-fno-sanitize-recover=all -fsanitize-ignorelist=$(CURDIR)/tools/sanitizers.txt
SANITIZED = PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0$(1) UBSAN_OPTIONS=print_stacktrace=1$(1)
# Reports go to files: pytest would keep them, and ends with the process that made them.
REPORT := $(CURDIR)/build/asan/report
SOURCES := Makefile tools/sanitizers.txt pyproject.toml setup.py $(wildcard src/_fastframe.pyx src/fastframe/* src/iproto/*.py src/iproto/*/*.py)

define instrumented_build
test -d $(1)/venv || $(PYTHON) -m venv $(1)/venv
$(1)/venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
rm -rf $(1)/source
mkdir -p $(1)/source
cp -R pyproject.toml setup.py MANIFEST.in README.md LICENSE src $(1)/source
rm -f $(1)/source/src/iproto/*.so
cd $(1)/source && CC=clang LDSHARED="clang -shared" CFLAGS="$(2)" ../venv/bin/python -m pip install --quiet \
	--disable-pip-version-check . --group test $(3)
touch $(1)/.built
endef

ASAN_RUNTIME = $$(clang -print-file-name=libclang_rt.asan-$$(uname -m).so)
ASAN_TESTS ?=

.PHONY: asan
asan: build/asan/.built ## The suite with AddressSanitizer and UBSan, by clang; ASAN_TESTS=tests/codec for a part
	@rm -f $(REPORT).*
	TEST_PATIENCE=5 LD_PRELOAD=$(ASAN_RUNTIME) $(call SANITIZED,:log_path=$(REPORT)) \
		build/asan/venv/bin/python -m pytest --numprocesses 2 --timeout 900 -m "not address_space" $(ASAN_TESTS) || \
		{ cat $(REPORT).* 2>/dev/null; exit 1; }
	@! cat $(REPORT).* 2>/dev/null

.PHONY: asan-short
asan-short: ## The part of it that drives the extension without processes
	$(MAKE) asan ASAN_TESTS="tests/codec tests/fuzz $(patsubst %,tests/store/test_%.py,storage buffers checked shared concurrency)"

build/asan/.built: $(SOURCES)
	$(call instrumented_build,build/asan,$(SANITIZE) -shared-libasan)

FUZZ_TARGETS := server_frames net_rpc client_frames store_image call_bodies

.PHONY: fuzz
fuzz: build/fuzz/.built ## Fuzz the extension, each target for SECONDS; what is found is in build/fuzz
	@for target in $(FUZZ_TARGETS); do echo "== $$target"; \
		LD_PRELOAD=$$(build/fuzz/venv/bin/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so \
		$(call SANITIZED) build/fuzz/venv/bin/python -m tests.fuzz.fuzz $$target -max_total_time=$(SECONDS) \
		-max_len=4096 -timeout=30 -print_final_stats=1 2> build/fuzz/$$target.log || { tail -60 build/fuzz/$$target.log; exit 1; }; \
		grep -E '^stat::number_of_executed_units|^#.*DONE' build/fuzz/$$target.log; done

build/fuzz/.built: $(SOURCES)
	$(call instrumented_build,build/fuzz,$(subst undefined,undefined$(comma)fuzzer-no-link,$(SANITIZE)),--group fuzz)

comma := ,

.PHONY: lint
lint: $(BUILT) ## Style and types, and whether make generate would change anything
	$(BIN)/python tools/generate.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src/_fastframe.pyx $(PARTS)
	printf '#include "%s"\n' $(notdir $(HEADERS)) | $(CC) -std=c11 -D_POSIX_C_SOURCE=200809L \
		-Wall -Wextra -Wpedantic -Wconversion -Werror -fsyntax-only -Isrc/fastframe -x c -
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/python -m mypy.stubtest iproto._fastframe --mypy-config-file pyproject.toml

.PHONY: format
format: $(BUILT) ## Put the Python code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# They print ratios to the last saved run with COMPARE=1, and save nothing then.
.PHONY: bench-bodies
bench-bodies: ## How long the check of a body takes, by what the body is made of
	@mkdir -p build
	$(CC) -std=gnu11 -O3 -Isrc/fastframe -o build/bodycheck benchmarks/micro/bodycheck.c
	build/bodycheck

.PHONY: bench-micro
bench-micro: $(BUILT) ## Micro-benchmarks; saved, or with COMPARE=1 compared with the last ones saved
	$(BIN)/python -m pytest -o python_files='bench_*.py' benchmarks/micro --benchmark-columns=min,median,iqr,rounds \
		--benchmark-max-time=0.5 --benchmark-disable-gc $(if $(COMPARE),--benchmark-compare,--benchmark-autosave)

.PHONY: bench-gate
bench-gate: $(BUILT) ## Instructions a frame against the committed figures; UPDATE=1, REQUIRE=1, AGAINST=DIR
	$(BIN)/python benchmarks/gate/gate.py $(if $(UPDATE),--update) $(if $(REQUIRE),--require) $(if $(AGAINST),--against $(AGAINST))

.PHONY: bench-fairness
bench-fairness: $(BUILT) ## One client beside many that send without end; LOOP=asyncio, AGAINST=DIR
	$(BIN)/python -m benchmarks.fairness $(if $(LOOP),--loop $(LOOP)) $(if $(AGAINST),--against $(AGAINST))

.PHONY: docs
docs: $(DOCS_BUILT) ## Build the docs site, with the API reference, into build/site
	$(BIN)/python -m sphinx -q -W --keep-going -E -d build/doctrees -b html docs build/site

PERFORMANCE := docs/performance

# Each part prints Markdown, writes JSON, and says PROBLEM of what went wrong; the others go on.
define bench_part
$(BIN)/python -m benchmarks.peers.$(1) $(if $(QUICK),--quick) --json $(PERFORMANCE)/$(1).json $(2) >> build/results.md || \
	printf '\nPROBLEM: benchmarks.peers.$(1) failed\n' >> build/results.md
@echo >> build/results.md
endef

.PHONY: bench
bench: $(BENCH_BUILT) ## Compare with peers, into docs/performance: some 20 minutes; QUICK=1: three
	@mkdir -p build
	@printf '# Results\n\nWritten by `make bench`; [what it means](README.md).\n\n' > build/results.md
	$(call bench_part,servers,--plots $(PERFORMANCE))
	$(call bench_part,clients)
	$(call bench_part,footprint)
	mv build/results.md $(PERFORMANCE)/results.md
	@! grep '^PROBLEM' $(PERFORMANCE)/results.md

.PHONY: sdist
sdist: $(TOOLS_BUILT) ## Build the source distribution into dist/
	rm -rf dist src/*.egg-info
	$(TOOLS)/bin/python -m build --sdist --outdir dist
	@tar -tzf $(SDIST) > build/sdist.txt
	@for name in src/_fastframe.pyx $(PARTS) $(HEADERS); do \
		grep -q "/$$name\$$" build/sdist.txt || { echo "the sdist lacks $$name"; exit 1; }; done
	@! grep -E '\.(c|so|py[cod])$$' build/sdist.txt || { echo "the sdist holds what is built"; exit 1; }

# The repair on Linux checks that the wheel may be called manylinux, and calls it so.
.PHONY: wheel
wheel: sdist ## Build the sdist, the wheel from it into dist/, and test the wheel
	rm -rf build/wheel
	$(TOOLS)/bin/python -m pip wheel --no-deps --wheel-dir build/wheel $(SDIST)
	@$(TOOLS)/bin/python -m zipfile -l build/wheel/iproto-*.whl > build/wheel.txt
	@for name in _fastframe.cpython- _fastframe.pyi py.typed; do \
		grep -q "^iproto/$$name" build/wheel.txt || { echo "the wheel lacks $$name"; exit 1; }; done
	@! grep -E '\.(c|h|pyx|pxd|pxi) ' build/wheel.txt || { echo "the wheel holds source"; exit 1; }
ifeq ($(shell uname),Linux)
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" auditwheel repair --strip --wheel-dir dist build/wheel/iproto-*.whl
	$(TOOLS)/bin/auditwheel show $(WHEEL)
else
	cp build/wheel/iproto-*.whl dist
endif
	$(MAKE) test-wheel

# In a directory with what the sdist holds but src/, where PATH has the new environment and
# nothing else: neither our source nor a compiler can stand in for what the wheel lacks.
.PHONY: test-wheel
test-wheel: ## Test the wheel in dist/, in a fresh environment without a compiler
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(PYTHON) -m venv "$$place/venv"; \
	tar -xzf $(SDIST) -C "$$place" --strip-components 1 --exclude '*/src'; \
	cp $(WHEEL) "$$place"; \
	( cd "$$place"; PATH="$$place/venv/bin"; unset PYTHONPATH; \
	for name in cc gcc clang c++ g++; do \
		if command -v $$name; then echo "a compiler is on the PATH"; exit 1; fi; done; \
	set -x; \
	python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"; \
	python -m pip install --quiet --only-binary :all: ./iproto-*.whl --group test; \
	python -c "import iproto._fastframe as f; print(f.__file__); assert 'venv' in f.__file__"; \
	python -m pytest -m "not checkout" )

.PHONY: wheels
wheels: $(TOOLS_BUILT) ## From the sdist in dist/, this platform's wheel for each Python (on Linux with Docker)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --group wheels
	$(TOOLS)/bin/cibuildwheel --archs native --output-dir dist $(SDIST)

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(VENV) build dist benchmarks/build src/*.egg-info src/iproto/*.so

# The environment and the package in it, which serving needs; made anew when what they are made
# of changes.
$(INSTALLED): $(MADE_OF)
	@test -d $(VENV) || { echo "Making the environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Building the extension, and installing the package with what it needs"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

# What tests and lint need, beside the package; pip knows groups from 25.1 on.
$(BUILT): $(MADE_OF)
	@$(MAKE) --no-print-directory $(INSTALLED)
	@echo "Installing what tests and lint need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group test --group lint
	@touch $@

# What the peers and the plots need, beside the package.
$(BENCH_BUILT): $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	touch $@

$(DOCS_BUILT): $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
	touch $@

# What packaging needs, apart from the environment that the package itself is installed in.
$(TOOLS_BUILT): pyproject.toml
	test -d $(TOOLS) || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --group wheel
	touch $@
