"""Plan a run on a TPU topology without a TPU: the TPU compiler computes memory, communication and time.

    python -m bert_jax.plan --config=bert_large --topology=v5e:16x16 --config.mesh.fsdp=16
    python -m bert_jax.plan --config=bert_large --topology=v5e:16x16 --search

Memory and collectives are the compiler's own numbers; times are estimates. Needs libtpu, which `make plan`
installs. --topology=local plans for this machine's devices instead.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags()
    flags.DEFINE_string("topology", "v5e:4x4", "e.g. v5e:16x16, v5p:4x4x4, v6e:16x16; `local`: this machine.")
    flags.DEFINE_integer("slices", 1, "Number of slices, joined by the data-centre network.", lower_bound=1)
    flags.DEFINE_bool("search", False, "Try batch, remat and fsdp; print the best that fits. Takes minutes.")
    flags.DEFINE_bool("compare", False, "Also compile with plain attention.")
    flags.DEFINE_bool("profile", False, "Also list the most expensive operations.")
    flags.DEFINE_integer("phase", 0, "Plan this phase alone, from 1; 0: all phases.", lower_bound=0)
    flags.DEFINE_float("price", None, "Price of a device-hour in any currency, for the cost of the run.")
    flags.DEFINE_string("output", None, "Also write shardings, memory and collectives to this file as JSON.")
    command.run(command.main_of("bert_jax.plan"))

import dataclasses
import functools

from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.scaling.compile import compile_step
from bert_jax.scaling.described import comparison, describe, write_summary
from bert_jax.scaling.search import search
from bert_jax.scaling.topology import topology_devices


def main() -> None:
    config: Config = command.resolved_config()
    devices = topology_devices(flags.FLAGS.topology, flags.FLAGS.slices)
    kind, slices = devices[0].device_kind, flags.FLAGS.slices
    print(f"{len(devices)} × {kind}{f' in {slices} slices' if slices > 1 else ''}")
    phases = phase_configs(config, flags.FLAGS.phase)
    if (flags.FLAGS.search or flags.FLAGS.compare) and len(phases) > 1:
        raise UserError(
            "--search and --compare look at one phase; choose it with --phase=1 or another number."
        )
    if flags.FLAGS.search:
        key_of = functools.partial(key_of_phase, config, max(flags.FLAGS.phase, 1) - 1)
        best = search(phases[0], devices, print, key_of)
        if best is None:
            print("verdict: does not fit\nNo attempt fits: use more or larger chips.")
            return
        print(f"\nbest: {best.overrides}\n")
        compiled = [best.compiled]
    else:
        compiled = [compile_step(phase, devices) for phase in phases]
    print(describe(compiled, flags.FLAGS.price, flags.FLAGS.profile))
    if flags.FLAGS.compare:
        train = dataclasses.replace(compiled[0].config.train, attention="plain")
        plain = compile_step(dataclasses.replace(compiled[0].config, train=train), devices)
        print(f"\n{comparison(compiled[0], plain)}")
    if flags.FLAGS.output:
        write_summary(compiled, flags.FLAGS.output)


def phase_configs(config: Config, number: int) -> list[Config]:
    """Returns the config of every phase, or of one by its number, with `train.num_steps` of its own."""
    phases = config.phase_list()
    if number > len(phases):
        raise UserError(f"--phase={number}: this config has {len(phases)} phases.")
    chosen = phases[number - 1 : number] if number else phases
    return [
        dataclasses.replace(
            phase.config, train=dataclasses.replace(phase.config.train, num_steps=phase.num_steps), phases=()
        )
        for phase in chosen
    ]


def key_of_phase(config: Config, index: int, name: str) -> str:
    """Names the key that decides a value in a phase: that of the phase, where it has one of its own."""
    section, _, field = name.partition(".")
    own = config.phases[index].get(section, {}) if config.phases else {}
    return f"phases[{index}].{name}" if field in own else name
