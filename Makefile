SCALE ?= tiny
ARGS ?=
EXPERIMENT ?=
OF_SCALE = $(if $(filter-out tiny,$(SCALE)),scale=$(SCALE))
PYTHON := .venv/bin/python
RUN := $(PYTHON) run.py scale=$(SCALE)
TABLES := table1 table2 table3 table4 pair_deletion faithfulness lrp_loo ttcav
FIGURES := figure1 figure2 figure3 figure4 figure5 figure6 figure7 figure8 figure9 figure10 figure11 figure12 figure13
EXPERIMENTS := $(TABLES) $(FIGURES) evidence evidence_pairs distant_pairs both_ways

.DEFAULT_GOAL := help
.PHONY: help setup lock lint test test-system test-due test-all test-slurm docs demo figures report plan data weights bench train-adder train-vision-language train-language train-classifiers train-diffusion clean $(EXPERIMENTS)

help:  ## list the targets
	@grep -hE '^[a-z0-9$$() -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo "  one of       $(EXPERIMENTS)   (SCALE=tiny, small or paper; ARGS=more overrides; results in outputs/SCALE/)"

setup: .venv/installed  ## make .venv with the locked versions

.venv/installed: requirements.lock pyproject.toml
	@python3 scripts/setup_environment.py

lock:  ## write requirements.lock from pyproject.toml
	$(PYTHON) -m uv pip compile --quiet pyproject.toml --extra all --extra dev --universal --python-version 3.11 \
		--fork-strategy fewest --no-emit-index-url --no-annotate --no-header -o requirements.lock

lint: setup  ## check style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ty check

test: lint  ## check style and types, then run all tests except the system tier
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/system

test-system: setup  ## run the system tier: SLURM, kills, downloads, a browser, the wheel, training, the whole demo
	$(PYTHON) -m tests.system.tier --all

test-due: setup  ## run the parts of the system tier whose files have changed since they last passed
	$(PYTHON) -m tests.system.tier

test-all: test test-system  ## run all tests

test-slurm: setup  ## run a sweep through a SLURM of one node, started for it (root on Debian)
	$(PYTHON) -m pytest -m slurm -rs tests/system/test_slurm.py

docs: setup  ## build the documentation in build/site/; a warning is an error
	$(PYTHON) -m sphinx -q -W --keep-going docs build/site

demo: setup  ## the tables at this scale, and Figure 13, two at a time
	$(MAKE) --no-print-directory --jobs=2 $(TABLES) figure13

$(EXPERIMENTS): setup
	$(RUN) experiment=$@ $(ARGS)

figures: setup $(FIGURES)  ## every figure at this scale

report: setup  ## one HTML page of all results at this scale, in outputs/SCALE/report/
	$(PYTHON) -m metagame.cli report --page-only --scale $(SCALE)

data: setup  ## download the data for the paper scale, or SCALE=small (EXPERIMENT=name: of one)
	$(PYTHON) -m metagame.cli fetch data $(EXPERIMENT) $(OF_SCALE)

weights: setup  ## download the weights for the paper scale, or SCALE=small (EXPERIMENT=name: of one)
	$(PYTHON) -m metagame.cli fetch weights $(EXPERIMENT) $(OF_SCALE)

plan: setup  ## estimate the cost of an experiment, and list what is missing (EXPERIMENT=name SCALE=paper)
	$(PYTHON) -m metagame.cli plan experiment=$(EXPERIMENT) scale=$(SCALE) $(ARGS)

bench: setup  ## measure speed against the reference procedures, in outputs/bench/
	$(PYTHON) -m scripts.bench_import
	$(PYTHON) -m scripts.bench_core
	$(PYTHON) -m scripts.bench_attention_games
	$(PYTHON) -m scripts.bench_concept
	$(PYTHON) -m scripts.bench_vision_language
	$(PYTHON) -m scripts.bench_patch_ig
	$(PYTHON) -m scripts.bench_language
	$(PYTHON) -m scripts.bench_first_order
	$(PYTHON) -m scripts.bench_alti_logit
	$(PYTHON) -m scripts.bench_diffusion
	$(PYTHON) -m scripts.bench_estimators
	$(PYTHON) -m scripts.compare_estimators
	$(PYTHON) -m scripts.compare_fixlip

train-adder: setup  ## train the adder from scratch, and replace data/tiny/adder
	$(PYTHON) scripts/train_adder.py

train-vision-language: setup  ## train the four small vision-language models (80 minutes on a core), and replace data/tiny/*
	for model in clip metaclip2 siglip2_p8 siglip2_p16; do $(PYTHON) -m scripts.train_vision_language --model $$model || exit; done
	$(PYTHON) -m scripts.convert_to_open_clip

train-language: setup  ## train the small Gemma 3 (ten minutes on a core), and replace data/tiny/gemma3
	$(PYTHON) -m scripts.train_language

train-classifiers: setup  ## train the small BERT and ViTs (12 minutes on a core), and replace data/tiny/bert, vit and vit_textures
	$(PYTHON) -m scripts.train_text_classifier
	$(PYTHON) -m scripts.train_image_classifier
	$(PYTHON) -m scripts.train_texture_classifier

train-diffusion: setup  ## train the small FLUX (80 minutes on a core), and replace data/tiny/flux
	$(PYTHON) -m scripts.train_diffusion

clean:  ## remove all results, keep the environment
	git clean -fdXq outputs
