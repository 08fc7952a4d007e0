PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
# The checkout whose package pip has installed into the environment, as recorded by pip
OWNER   = $(shell sed -n 's|.*"url": *"file://\([^"]*\)".*|\1|p' $(VENV)/lib/python*/site-packages/metarisk_nb-*.dist-info/direct_url.json 2>/dev/null)

.PHONY: help ours demo test bench bench-gpu lab browser site handout shots prepare outputs clean
help:                             ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/	/' | expand -t 12

ours:
	@test -z '$(OWNER)' || test '$(OWNER)' -ef '$(CURDIR)' || { \
	  echo 'The environment $(VENV) belongs to the checkout $(OWNER), and this one is $(CURDIR): nothing was changed.' >&2; \
	  echo 'Name another environment, as in make $(or $(firstword $(MAKECMDGOALS)),demo) VENV=.venv, or work in that checkout.' >&2; exit 1; }

$(STAMP): settings.ini setup.py pyproject.toml | ours
	@$(PYTHON) -c 'import sys; v=(3, 10); sys.exit(sys.version_info < v and f"metarisk_nb needs Python {v[0]}.{v[1]} or newer, this is {sys.version.split()[0]}: name another with make PYTHON=...")'
	@echo 'Installing into $(VENV): this takes a few minutes, and some GB with the GPU libraries of torch'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

demo: $(STAMP)                    ## learn the risk on half-wrong labels, and show a table and a picture
	$(BIN)/python scripts/demo.py

test: $(STAMP)                    ## run all notebooks and tests; SLOW=1 adds the slow ones
	$(BIN)/python -m pytest $(if $(SLOW),--slow)

bench: $(STAMP)                   ## compare the cost of a hypergradient with other libraries (half an hour)
	-$(BIN)/python -m pip install -q -e '.[bench]'
	-$(BIN)/python -m pip install -q betty-ml
	$(BIN)/python scripts/bench.py

bench-gpu: $(STAMP)               ## time the paper's setting on a GPU: steps per second and a whole run (CIFAR-10 in METARISK_DATA)
	$(BIN)/python scripts/bench_gpu.py

lab: $(STAMP)                     ## open the notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

site: $(STAMP)                    ## build the website into _site; npm fetches KaTeX once
	$(BIN)/python -W ignore scripts/build_site.py

browser:                          ## install Chromium for the tests of the widgets and the site (Debian, Ubuntu)
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; }

handout: $(STAMP)                 ## copy the lessons without solutions, for a class, into _handout, with a page per lesson for the teacher
	$(BIN)/python scripts/handout.py

shots: $(STAMP)                   ## photograph explorables and widgets in a browser for the lessons, and measure how smoothly they move
	$(BIN)/python -W ignore scripts/stills.py
	SHOTS=nbs/images $(BIN)/python -m pytest tests/course/test_widgets.py tests/course/test_cleaner.py

prepare: $(STAMP)                 ## before each commit: export, clean, pack results, count minutes, write README
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python -W ignore scripts/pack.py
	$(BIN)/python scripts/tidy.py
	$(BIN)/python scripts/bundle.py
	$(BIN)/python scripts/minutes.py
	$(BIN)/python scripts/readme.py

outputs: $(STAMP)                 ## run all notebooks and keep their outputs
	for o in nbs/*.ipynb; do $(BIN)/jupyter execute --inplace $$o || exit 1; done
	$(MAKE) prepare

clean: ours                       ## remove the environment and everything that was built
	rm -rf $(VENV) .site_vendor _site _handout _handout_teacher.html _proc build dist *.egg-info
