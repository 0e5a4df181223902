"""Imported by the fork server: what ranks import, also what DeepSpeed and transformers import on first use."""

from __future__ import annotations

import gc
import importlib
import os

# Read when torch and DeepSpeed are imported.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

from slap_fast import train  # noqa: F401
from slap_fast.training.distributed.process_group import import_deepspeed
from tests.training import tiny

import_deepspeed()
for module in (
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
):
    importlib.import_module(module)
config = tiny.run_config()
tiny.build(config)(tiny.batch(config, 0), 0.05)
# DeepSpeed collects garbage many times: half the time of the tests if that includes all modules.
gc.collect()
gc.freeze()
