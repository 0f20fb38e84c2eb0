# One command each. Everything is made in .venv and .venvs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Debian keeps the server's commands off the PATH.
POSTGRESQL := "initdb /usr/lib/postgresql/*/bin/initdb" postgresql
NGINX := "nginx /usr/sbin/nginx" nginx
REDIS := redis-server redis-server
BENCH := .venvs/bench/bin/python

.PHONY: demo test conformance canary soak lint format bench bench-quick bench-environment attacks coverage clean

# The demo on http://127.0.0.1:8000 (PORT=… for another port).
demo: $(STAMP)
	cd demo && ../$(BIN)/python manage.py migrate --verbosity 0
	cd demo && ../$(BIN)/python manage.py fill
	cd demo && exec ../$(BIN)/gunicorn -c gunicorn.conf.py montage.wsgi

# All tests, on the newest pair of Python and Django that the machine has an interpreter
# for; ALL=1: on every pair.
test: $(STAMP)
	@scripts/debian.sh chromium chromium "the tests in a browser are skipped" || true
	@scripts/debian.sh $(POSTGRESQL) "the tests on PostgreSQL are skipped" || true
	@scripts/debian.sh $(NGINX) "the test behind a proxy is skipped" || true
	@scripts/debian.sh $(REDIS) "the tests of caches in Redis are skipped" || true
	$(BIN)/python scripts/matrix.py $(if $(ALL),,--newest)

# Django's own tests in a bridge on the event loop and those of Django REST framework through
# our application, on SQLite and PostgreSQL, and Django's tests of requests through our handler,
# compared with what they do without: more of them than `make test` runs. Then gunicorn's and
# waitress's tests of HTTP, against the worker, and a site under every server.
# SUITES="basic queries", SUITES=rest_framework, SUITES=handler, SUITES=wire or SUITES=servers for
# some; DATABASE=sqlite, LOOP=uvloop for one; ALL=1 on every pair of Python and Django, one after
# the other.
conformance: $(STAMP)
	@scripts/debian.sh $(POSTGRESQL) "nothing can be compared on it"
	@scripts/debian.sh apxs apache2-dev "mod_wsgi is left out" || true
	GREENROOM_CONFORMANCE_SUITES="$(or $(SUITES),all)" $(BIN)/python \
	    $(if $(ALL),scripts/matrix.py --whole --,-m pytest -q) -s -p no:randomly \
	    tests/conformance -k "$(or $(DATABASE),test) and $(or $(LOOP),test)"

# The tests on the newest releases, pre-releases too, of what Greenroom leans on; first, which of
# their names it relies on have changed. TESTS="tests/unit/server -x" for some.
canary: $(STAMP)
	$(BIN)/python scripts/canary.py $(TESTS)

# 100,000 requests to a site on PostgreSQL, many of which are left or cancelled (a quarter of
# an hour); `make test` makes fewer. REQUESTS=… for another number, SEED=… to repeat a run.
soak: $(STAMP)
	@scripts/debian.sh $(POSTGRESQL) "there is nothing to soak"
	$(BIN)/python tests/soak.py --requests $(or $(REQUESTS),100000) $(if $(SEED),--seed $(SEED))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Greenroom beside every other server, in some hours, on a machine with nothing else to do.
# SCENARIOS="hello-plain 'sleep-*'" for some, ARGUMENTS="--rounds 3 --resume" for bench/run.py;
# `bench/run.py --list` says what there is. What came out is in docs/benchmarks.md and its plots.
bench: bench-environment
	$(BENCH) bench/run.py $(SCENARIOS) $(ARGUMENTS)
	$(if $(SCENARIOS),,-$(BENCH) bench/profiles.py)
	$(BENCH) bench/report.py --publish

# Some of it, in a few minutes.
bench-quick: bench-environment
	$(BENCH) bench/run.py --quick --out bench/results/quick.json $(SCENARIOS) $(ARGUMENTS)

bench-environment:
	@scripts/python.sh "$(PYTHON)"
	@scripts/debian.sh wrk wrk "nothing can be measured"
	@scripts/debian.sh $(POSTGRESQL) "what queries is left out" || true
	@scripts/debian.sh $(REDIS) "what has its session in Redis is left out" || true
	@scripts/debian.sh $(NGINX) "what goes through a proxy is left out" || true
	@$(PYTHON) scripts/bench_environment.py

# What ordinary clients notice while others attack, and the memory that it takes.
attacks: $(STAMP)
	$(BIN)/python bench/attacks.py

coverage: $(STAMP)
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=pyproject.toml $(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

$(STAMP): pyproject.toml scripts/python.sh
	@scripts/python.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e . --group test --group lint --group demo
	@touch $@

clean:
	rm -rf $(VENV) .venvs .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
