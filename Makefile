# The front door. `make help` lists the targets; each of them sets the project up when that has not been done.

CONFIG ?= bert_tiny
WORKDIR ?=
DATA_DIR ?=
STEP ?= 0
MODE ?= fill-mask
WHAT ?= prepare input step
ARGS ?=
TARGET ?= local
TOPOLOGY ?= v5e:4x4
PROCESSES ?= 2
VERB ?=
VENV ?= .venv
WORKERS ?= 2

# The stamp holds what $(VENV) was made with, e.g. "python3 tpu", so that it need be said only once.
STAMP := $(VENV)/.stamp
AOT := $(VENV)/aot/.stamp
MADE_WITH := $(shell cat $(STAMP) 2>/dev/null)
PYTHON ?= $(or $(firstword $(MADE_WITH)),python3)
ACCELERATOR ?= $(word 2,$(MADE_WITH))
ASKED_FOR := $(strip $(PYTHON) $(ACCELERATOR))
ifneq ($(ASKED_FOR),$(MADE_WITH))
CHANGED := changed
endif

RUN := exec $(VENV)/bin/python -m
# A file's tests stay together, for they share what they set up; in the order of the files, long ones first.
PYTEST = $(RUN) pytest -q --numprocesses="$$BERT_JAX_WORKERS" --dist=loadfile --no-loadscope-reorder

# What these hold reaches a command as one word, also $, quotes and line breaks: through the environment, since
# make would expand it in a recipe and the shell again.
ONE_WORD := CONFIG WORKDIR DATA_DIR STEP MODE WHAT TARGET TOPOLOGY PROCESSES VERB WORKERS \
    INIT_FROM CHECKPOINT TEXT NEXT INPUT OUTPUT
unexport $(ONE_WORD) ARGS
$(foreach name,$(ONE_WORD),$(eval export BERT_JAX_$(name) = $$(value $(name))))
# --flag=VALUE where VARIABLE is set.
option = $(if $(value $(2)),--$(1)="$$BERT_JAX_$(2)")
PATHS = $(call option,workdir,WORKDIR) $(call option,data_dir,DATA_DIR)
# ARGS holds words as the shell reads them, and nothing that make expands; a line break separates words.
define NEWLINE


endef
WORDS = $(subst $(NEWLINE), ,$(value ARGS))

.DEFAULT_GOAL := help
.PHONY: help setup pretrain finetune launch prepare inspect params predict convert export plan test test-slow test-plan lint bench lock clean changed

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: CONFIG=$$BERT_JAX_CONFIG WORKDIR= DATA_DIR= STEP=$$BERT_JAX_STEP ARGS='--config.KEY=VALUE …'"
	@echo "           PYTHON=$(PYTHON) ACCELERATOR=cuda12|cuda13|tpu"

setup: $(STAMP)  ## create .venv from requirements.lock; PYTHON= and ACCELERATOR= choose what for
	@echo "$(VENV) is ready: $$($(VENV)/bin/python --version), $$($(VENV)/bin/python -c 'import jax; print("JAX", jax.__version__)')."

$(STAMP): setup.cfg requirements.lock $(CHANGED)
	@echo "Setting up $(VENV) ($(PYTHON)$(ACCELERATOR:%=, %)): once, one to three minutes, about 1 GB on disk."
	@$(PYTHON) -m venv $(if $(CHANGED),--clear) $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint requirements.lock --editable ".[test$(ACCELERATOR:%=,%)]"
	@echo "$(ASKED_FOR)" > $@

pretrain: $(STAMP)  ## pretrain CONFIG into WORKDIR; the same command resumes
	@$(RUN) bert_jax.pretrain --config="$$BERT_JAX_CONFIG" $(PATHS) $(WORDS)

finetune: $(STAMP)  ## fine-tune INIT_FROM as CONFIG (finetune/…) says into WORKDIR; the same command resumes
	@$(RUN) bert_jax.finetune $(call option,config.init_from,INIT_FROM) $(call option,workdir,WORKDIR) $(WORDS) \
	    --config=$(if $(filter file,$(origin CONFIG)),finetune/classification,"$$BERT_JAX_CONFIG")

launch: $(STAMP)  ## pretrain CONFIG on TARGET: local (PROCESSES), tpu, gke, slurm; VERB=status, logs, … (docs/pods.md)
	@case "$$BERT_JAX_TARGET" in local|tpu|gke|slurm) ;; *) printf 'error: TARGET=%s is unknown; there are: %s.\n' \
	    "$$BERT_JAX_TARGET" "local, tpu, gke, slurm" >&2; exit 2;; esac
	@exec $(VENV)/bin/python launch/"$$BERT_JAX_TARGET".py \
	    $(if $(filter local,$(value TARGET)),--processes="$$BERT_JAX_PROCESSES",$(if $(value VERB),"$$BERT_JAX_VERB")) \
	    --config="$$BERT_JAX_CONFIG" $(PATHS) $(WORDS)

prepare: $(STAMP)  ## build the tokenizer and dataset of CONFIG (pretrain does so when there is none)
	@$(RUN) bert_jax.prepare --config="$$BERT_JAX_CONFIG" $(call option,data_dir,DATA_DIR) $(WORDS)

inspect: $(STAMP)  ## print the batch of STEP as a person reads it
	@$(RUN) bert_jax.inspect --config="$$BERT_JAX_CONFIG" --step="$$BERT_JAX_STEP" $(call option,data_dir,DATA_DIR) $(WORDS)

params: $(STAMP)  ## print where the parameters of CONFIG are
	@$(RUN) bert_jax.params --config="$$BERT_JAX_CONFIG" $(WORDS)

predict: $(STAMP)  ## fill the masks of TEXT (MODE=next-sentence, classify, …) with CHECKPOINT or the newest run
	@$(RUN) bert_jax.predict "$$BERT_JAX_MODE" $(call option,checkpoint,CHECKPOINT) $(call option,text,TEXT) \
	    $(call option,next,NEXT) $(call option,input,INPUT) $(call option,output,OUTPUT) $(WORDS)

convert: $(STAMP)  ## import the Hugging Face or Google directory INPUT as the checkpoint OUTPUT
	@$(RUN) bert_jax.convert $(call option,input,INPUT) $(call option,output,OUTPUT) $(WORDS)

export: $(STAMP)  ## write the checkpoint INPUT as a Hugging Face directory OUTPUT
	@$(RUN) bert_jax.export $(call option,input,INPUT) $(call option,output,OUTPUT) $(WORDS)

test: $(STAMP)  ## run the fast tests in WORKERS processes
	@$(PYTEST) -m "not slow" $(WORDS)

test-slow: $(STAMP)  ## run the tests that train, kill and resume whole runs
	@$(PYTEST) -m slow $(WORDS)

plan: $(AOT)  ## tell by the TPU compiler, without a TPU, whether CONFIG fits TOPOLOGY, and what it takes
	@export PYTHONPATH=$(VENV)/aot; $(RUN) bert_jax.plan --config="$$BERT_JAX_CONFIG" --topology="$$BERT_JAX_TOPOLOGY" $(WORDS)

test-plan: $(AOT)  ## compare what the TPU compiler makes of the configs with tests/plans
	@export PYTHONPATH=$(VENV)/aot; $(PYTEST) --dist=load --maxschedchunk=1 tests/plans $(WORDS)

# Beside the environment and not in it: with libtpu there, JAX looks for a TPU wherever it is used.
$(AOT): $(STAMP) requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target $(VENV)/aot --constraint requirements.lock libtpu
	@touch $@

lint: $(STAMP)  ## check style, formatting and types
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

bench: $(STAMP)  ## measure WHAT (prepare, input, step, start, checkpoint, products, index, gpu) on this machine
	@set -f; for what in $$BERT_JAX_WHAT; do $(VENV)/bin/python -m bert_jax.benchmark --config="$$BERT_JAX_CONFIG" --what=$$what $(WORDS) || exit; done

# All extras but `peer`: PyTorch names the versions of CUDA libraries that JAX would then have to take. And but
# `beam`, which needs older versions, and `huggingface` and `s3`, which CI does without.
lock:  ## resolve requirements.lock anew for all supported Pythons and extras (needs uv)
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy requires-python \
	    $(addprefix --extra=,cuda12 cuda13 tpu tpu-aot test) --no-annotate --custom-compile-command "make lock" --output-file requirements.lock setup.cfg

clean:  ## remove the environment and caches; runs and prepared data stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bert_jax configs launch tests -name __pycache__ -prune -exec rm -rf {} +
