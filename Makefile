# Every target makes .venv first if it is not there, from requirements.lock.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: run restore test test-all check wheel lab sweep serve report bench lock clean

run: .venv/installed  ## the pipeline on the built-in sample, then its metrics
	dvc repro
	fraudnb metrics
	@echo "Executed notebooks: runs/main/*.ipynb (read them with make lab)"

restore: .venv/installed  ## results that dvc.lock names, as far as the DVC cache has them: `make run` then makes the rest
	dvc checkout --quiet --allow-missing

test: .venv/installed  ## what every change may break, some cases of each kind; the notebooks' lessons among them
	pytest -n 3 --no-loadscope-reorder -m "not thorough"

test-all: .venv/installed  ## all that is tested: every case, door, repeat and browser
	pytest -n 3 --no-loadscope-reorder

check: .venv/installed  ## what an edited notebook needs before a commit; fails where git then shows a change
	nbdev-export
	nbdev-clean
	ruff check
	git diff --exit-code -- nbs fraudnb

wheel: .venv/installed  ## dist/*.whl, its contents checked
	rm -rf build/lib dist
	uv build --quiet --wheel --python .venv/bin/python --no-build-isolation --out-dir dist
	python .github/scripts/check_wheel.py dist/*.whl

lab: .venv/installed  ## the notebooks in JupyterLab
	jupyter lab

sweep: .venv/installed  ## models on the data that `make run` has prepared, ranked
	fraudnb sweep 03_train --then 04_evaluate -g model=lightgbm,extra_trees,logistic_regression,decision_tree

serve: .venv/installed  ## the page and the API, on the model that `make run` has trained
	fraudnb serve

report: .venv/installed  ## the executed notebooks below runs/ as a site
	fraudnb report

bench: .venv/installed  ## wall time and memory of the pipeline
	python bench/pipeline.py

lock: .venv/installed  ## resolve requirements.lock anew from settings.ini
	uv pip compile --quiet --universal --all-extras --generate-hashes --no-header --upgrade \
		--python-version "$$(sed -n 's/^min_python *= *//p' settings.ini)" setup.py --output-file requirements.lock

.venv/installed: requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fraudnb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	touch $@

clean:  ## everything that was made
	rm -rf .venv build data models site runs/*/*.ipynb
