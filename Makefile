# make demo [SEED=n]   fine-tune a tiny video-language model from an oracle's ranking, and show that it got better
# make test            the tests that any machine runs, on two cores [WORKERS=n]
# make vllm-test       the tests of rollouts by vLLM itself, on a CPU, in an environment of their own (6.5 GB)
# make browser-test    the tests of `orlaif view` in a real browser (Debian's Chromium, 400 MB)
# make gpu             on a machine with a GPU: all that is owed from one, in parts [ARGS="--part prefix"]
# make gpu-rehearsal   every part of it at a small size on a CPU, with a GPU machine's versions (5 GB)
# make floor-test      tests of kernels, policy, training and plan with the oldest supported versions [FLOOR="paths" WORKERS=n]
# make check           lint, formatting, which room imports which, type check
# make docs            the documentation, strictly: a broken link or an undocumented public name fails
# make figures         tables and plots of README and docs, from the JSON of benchmarks/results
# make bench           the benchmarks that this machine can run
SEED ?= 0
WORKERS ?= 2
FLOOR ?= tests/kernels tests/policy tests/training $(wildcard tests/cli/test_plan*.py)
BIN := .venv/bin
VLLM_ENVIRONMENT := VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=ERROR OMP_NUM_THREADS=1

.PHONY: setup demo test slow vllm-test browser-test gpu gpu-rehearsal floor-test check docs figures bench clean

setup:
	@tools/setup.sh

demo: setup
	@$(BIN)/python -m orlaif.demo --seed $(SEED)

# Bytecode is kept even where the environment says not to: of the processes that tests start, each would compile it anew.
test: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

slow: setup
	$(BIN)/python -m pytest -m slow

# Where vLLM cannot be had (3), that is said and is no failure.
vllm-test:
	@code=0; tools/setup_vllm.sh || code=$$?; \
	if [ $$code -eq 3 ]; then echo "vllm-test: no vLLM to be had here; its tests were not run"; exit 0; fi; \
	[ $$code -eq 0 ] || exit $$code; \
	$(VLLM_ENVIRONMENT) .venv-vllm/bin/python -m pytest -m vllm tests/rollout

# Where no browser can be had (3), that is said and is no failure.
browser-test: setup
	@code=0; tools/setup_browser.sh || code=$$?; \
	if [ $$code -eq 3 ]; then echo "browser-test: no Chromium to be had here; its tests were not run"; exit 0; fi; \
	[ $$code -eq 0 ] || exit $$code; \
	$(BIN)/python -m pytest -m browser tests/view

# Needs no set-up of this project's: python3 is the one that has torch (tools/gpu_day.py says what else).
gpu:
	python3 tools/gpu_day.py $(ARGS)

# Where these versions cannot be had (3), that is said and is no failure. Five minutes, and at most 45 where other
# work goes on beside it.
gpu-rehearsal:
	@code=0; tools/setup_gpu_rehearsal.sh || code=$$?; \
	if [ $$code -eq 3 ]; then echo "gpu-rehearsal: not to be had here; nothing was rehearsed"; exit 0; fi; \
	[ $$code -eq 0 ] || exit $$code; \
	OMP_NUM_THREADS=2 .venv-gpu/bin/python tools/gpu_day.py --rehearse --minutes 30 --total 45 --output outputs/gpu_rehearsal

# What is not installed beside these versions is skipped and says so: families of later transformers, TRL, Hypothesis.
floor-test:
	@code=0; tools/setup_floor.sh || code=$$?; \
	if [ $$code -eq 3 ]; then echo "floor-test: these versions are not to be had here; nothing was tested"; exit 0; fi; \
	[ $$code -eq 0 ] || exit $$code; \
	PYTHONDONTWRITEBYTECODE= PYTHONPATH=$(CURDIR)/kernels:$(CURDIR)/.venv-gpu/floor OMP_NUM_THREADS=1 \
	.venv-gpu/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(FLOOR)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=kernels $(BIN)/lint-imports
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --quiet

figures: setup
	$(BIN)/python -m benchmarks.figures

bench: setup
	$(BIN)/python -m benchmarks.static --output outputs/bench/static.json
	$(BIN)/python -m benchmarks.kernels --output outputs/bench/kernels.json
	$(BIN)/python -m benchmarks.step --output outputs/bench/step.json
	$(BIN)/python -m benchmarks.oracle_cost
	$(BIN)/python -m benchmarks.demo_controls

clean:
	rm -rf outputs build dist .mypy_cache .pytest_cache .ruff_cache
