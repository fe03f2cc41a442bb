# Every target makes .venv first if it is not there, from requirements.lock.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# DVC wants to be told where there is no git (the repository as a ZIP), and told again when there is
git_or_none = if git rev-parse --git-dir >/dev/null 2>&1; then \
	! grep -qs no_scm .dvc/config.local || dvc config --quiet --local --unset core.no_scm; \
	else dvc config --quiet --local core.no_scm true; fi

.PHONY: run restore test test-all check lowest wheel lab sweep serve report bench lock clean

run: .venv/installed  ## the pipeline on the built-in sample, then its metrics
	@$(git_or_none)
	dvc repro
	fraudnb metrics
	@echo "Executed notebooks: runs/main/*.ipynb (read them with make lab)"

restore: .venv/installed  ## results that dvc.lock names, as far as the DVC cache has them: `make run` then makes the rest
	@$(git_or_none)
	dvc checkout --quiet --allow-missing

test: .venv/installed  ## what every change may break, some cases of each kind; the notebooks' lessons among them
	pytest -n 3 --no-loadscope-reorder -m "not thorough"

test-all: .venv/installed  ## all that is tested: every case, door, repeat and browser; then what of fraudnb was executed
	coverage erase
	coverage run -m pytest -n 3 --no-loadscope-reorder
	coverage combine --quiet
	coverage report

check: .venv/installed  ## what an edited notebook needs before a commit: exported, clean, linted; in CI, that it was
	nbdev-export
	nbdev-clean
	ruff check
	@changed=$$(git status --short -- nbs fraudnb) || exit 1; \
	if [ -z "$$changed" ]; then echo "nbs/ and fraudnb/ are as git has them."; \
	elif [ -n "$$CI" ]; then git --no-pager diff -- nbs fraudnb; \
		echo "Not in step; run make check and commit what it changes:"; echo "$$changed"; exit 1; \
	else echo "Exported, clean and linted. To be committed together:"; echo "$$changed"; fi

wheel: .venv/installed  ## dist/*.tar.gz, and from that dist/*.whl, its contents checked
	rm -rf build/lib dist
	uv build --quiet --python .venv/bin/python --no-build-isolation --out-dir dist
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

lowest: .venv/installed  ## what make test runs, with the lowest versions that settings.ini allows
	uv venv --quiet --clear --python .venv/bin/python build/lowest
	uv pip compile --quiet --all-extras --no-header --resolution lowest-direct --python build/lowest/bin/python \
		setup.py --output-file build/lowest/requirements.txt
	uv pip sync --quiet --python build/lowest/bin/python build/lowest/requirements.txt
	uv pip install --quiet --python build/lowest/bin/python --no-deps --no-build-isolation --editable .
	PATH="$(CURDIR)/build/lowest/bin:$$PATH" pytest -n 3 --no-loadscope-reorder -m "not thorough"

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
