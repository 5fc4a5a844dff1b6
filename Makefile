# One command each on a fresh machine: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo servers test test-cluster test-soak check clean

setup: ## .venv with everything in it
	@$(PYTHON) tools/setup.py

demo: setup ## shards -> training -> guided samples -> evaluation, on two ranks
	@$(BIN)/python tools/demo.py

servers: setup ## what the tests of object stores start: Azurite, nginx
	@$(PYTHON) tools/setup.py servers

test: servers
	$(BIN)/python -m pytest

test-cluster: setup ## the long half: every layout, and faults at every moment, on up to four ranks
	$(BIN)/python -m pytest tests/cluster

test-soak: setup ## a run killed at 20 random moments
	$(BIN)/python -m pytest -s tests/soak

check: setup ## format, lint, types, shell scripts, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy dist_diffusion tools
	@if command -v shellcheck >/dev/null; then shellcheck launch/*.sh .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi
	$(BIN)/python -m pytest -q tests/unit/test_import_rules.py

clean: ## everything that make and the tools put here, except runs/
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find dist_diffusion tools tests -name __pycache__ -prune -exec rm -rf {} +
