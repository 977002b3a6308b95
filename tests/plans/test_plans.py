"""Compares the TPU compiler's plan of every shipped config with a committed summary (`make test-plan`).

A summary that changes is a finding: another sharding, another collective, more memory. If the change is
intended, rewrite it with `python -m tests.plans.test_plans [NAME …]`. The numbers hold for one version of
libtpu, the one in the lock file for Python 3.11.
"""

import importlib.util
import json
import pathlib
import runpy
import sys
from importlib import metadata

import pytest

from bert_jax.config import Config, find_config, from_dict
from bert_jax.plan import phase_configs
from bert_jax.scaling.compile import compile_step
from bert_jax.scaling.described import summary
from bert_jax.scaling.topology import topology_devices

COMPILER = "0.0.42.1"
LONG = {"max_seq_length": 512, "max_sequences_per_row": 8}
# The published recipe's second phase at the batch of docs/performance.md: 64 rows a chip in four parts.
FULL = {
    "train": {"remat": "dots", "gradient_accumulation_steps": 4},
    "data": {**LONG, "global_batch_size": 256},
}
# Name of the summary -> config, topology, slices, changed sections; of the first phase. The slowest come
# first, so that two processes end together.
PLANS: dict[str, tuple[str, str, int, dict[str, dict]]] = {
    "modernbert_base_long": (
        "modernbert_base", "v5e:4x4", 1,
        {"data": {"max_seq_length": 8192, "global_batch_size": 576, "max_sequences_per_row": 32}},
    ),
    "modernbert_base": (
        "modernbert_base", "v5p:4x4x4", 1, {"train": {"remat": "dots", "gradient_accumulation_steps": 3}},
    ),
    "bert_large": ("bert_large", "v5e:4x4", 1, {}),
    "bert_base_fsdp": (
        "bert_base", "v5e:4x4", 1, {"mesh": {"fsdp": 16}, "data": {**LONG, "global_batch_size": 256}},
    ),
    "bert_base_tensor": (
        "bert_base", "v5e:4x4", 1,
        {"mesh": {"fsdp": 2, "tensor": 2}, "data": {**LONG, "global_batch_size": 128}},
    ),
    "bert_base": ("bert_base", "v5e:4x4", 1, {}),
    "bert_base_two_slices": ("bert_base", "v5e:4x4", 2, {"data": {"global_batch_size": 512}}),
    "bert_small": ("bert_small", "v5e:4x4", 1, {}),
    "bert_large_fsdp": ("bert_large", "v5e:4x4", 1, {"mesh": {"fsdp": 8}}),
    "bert_large_512_v5e": ("bert_large", "v5e:2x2", 1, FULL),
    "bert_large_512_v5p": ("bert_large", "v5p:2x2x1", 1, FULL),
    "bert_large_512_v6e": ("bert_large", "v6e:2x2", 1, FULL),
    "bert_tiny": ("bert_tiny", "v5e:2x2", 1, {}),
}  # fmt: skip
# CI leaves them out.
VARIANTS = {
    *("modernbert_base", "modernbert_base_long", "bert_large_fsdp"),
    *(name for name in PLANS if "_512_" in name),
}
FOLDER = pathlib.Path(__file__).parent


def plan(name: str) -> dict:
    config, topology, slices, changes = PLANS[name]
    values = runpy.run_path(str(find_config(config)))["get_config"]().to_dict()
    first = phase_configs(from_dict(values, Config), 1)[0].to_dict()
    for section, fields in changes.items():
        first[section] |= fields
    return summary(compile_step(from_dict(first, Config), topology_devices(topology, slices)))


def installed() -> str:
    """The TPU compiler's version; "" without one."""
    return metadata.version("libtpu") if importlib.util.find_spec("libtpu") else ""


@pytest.mark.skipif(
    installed() != COMPILER, reason=f"needs libtpu {COMPILER}: make test-plan, on Python 3.11"
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.variant] * (name in VARIANTS)) for name in PLANS]
)
def test_the_plan_is_the_committed_one(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    found = plan(name)
    near = {"temporaries_mib", "collectives_mib", "computing_ms", "sending_alone_ms"}
    for kind in found.keys() - near:
        assert found[kind] == expected[kind], kind
    assert found["temporaries_mib"] == pytest.approx(expected["temporaries_mib"], rel=0.02, abs=1)
    assert found["computing_ms"] == pytest.approx(expected["computing_ms"], rel=0.02)
    assert found["sending_alone_ms"] == pytest.approx(expected["sending_alone_ms"], rel=0.02, abs=0.1)
    assert found["collectives_mib"].keys() == expected["collectives_mib"].keys()
    for kind, size in expected["collectives_mib"].items():
        assert found["collectives_mib"][kind] == pytest.approx(size, rel=0.02, abs=0.2), kind


if __name__ == "__main__":
    for each in sys.argv[1:] or PLANS:
        (FOLDER / f"{each}.json").write_text(json.dumps(plan(each), indent=1) + "\n")
        print(each, json.loads((FOLDER / f"{each}.json").read_text())["collectives_mib"], flush=True)
