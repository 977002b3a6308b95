"""Kills a run again and again at random moments, damages what it left, and compares with an undisturbed one.

    python -m tests.soak --kills=50 [--seed=0] [--folder=FOLDER]

After a kill one of these happens: nothing, most often; a bit of a file of the newest checkpoint flips, or
such a file is cut short or deleted; the last line of metrics.jsonl is torn. The same command goes on each
time. At the end parameters and metrics must equal those of the undisturbed run, and no start may have begun
before the newest checkpoint that was sound.
"""

import argparse
import collections
import pathlib
import random
import re
import signal
import tempfile
import time

from tests.runs import Command, make_corpus

OVERRIDES = (
    *("train.num_steps=5000", "train.checkpoint_every=50"),
    *("train.eval_every=1000", "train.log_every=5"),
)
FAULTS = ("none", "none", "none", "flip", "truncate", "delete", "tear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    options = parser.parse_args()
    folder = options.folder or pathlib.Path(tempfile.mkdtemp(prefix="soak"))
    folder.mkdir(exist_ok=True)
    make_corpus(folder)
    undisturbed, killed = (Command(folder, name, *OVERRIDES) for name in ("undisturbed", "killed"))
    code, output = undisturbed.run()
    assert code == 0, output
    began, rng, counts = time.monotonic(), random.Random(options.seed), collections.Counter()
    lost = 0
    for kill in range(options.kills):
        sound = newest(killed)
        at_death = kill_at_random(killed, rng)
        lost += check_log(killed, sound, at_death)
        fault = rng.choice(FAULTS)
        if damage(killed, fault, rng):
            counts[fault] += 1
        print(f"kill {kill + 1}: after step {at_death}, {fault}", flush=True)
    code, output = killed.run()
    assert code == 0, output
    assert killed.rows_without_timings() == undisturbed.rows_without_timings()
    print(
        f"{options.kills} kills ({dict(counts)}) in {time.monotonic() - began:.0f} s: metrics and "
        f"params_digest {killed.rows()[-1]['params_digest']} equal the undisturbed run's; "
        f"{lost} steps were done twice, {lost / options.kills:.1f} a kill"
    )


def newest(command: Command) -> int:
    """The newest finished checkpoint, 0 if there is none."""
    return max(map(int, command.checkpoints(finished=True)), default=0)


def kill_at_random(command: Command, rng: random.Random) -> int:
    """Starts the command and kills it after a random time from its first step on; returns the step."""
    process = command.start()
    while not command.last_step_logged() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 3.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return command.last_step_logged()


def check_log(command: Command, sound: int, at_death: int) -> int:
    """Where the run went on, after the damage done before; returns how many of its steps are lost now."""
    output = command.log.read_text()
    assert "Traceback" not in output, output
    resumed = re.search(r"^resumed at step (\d+) of", output, re.MULTILINE)
    first = int(resumed[1]) if resumed else 0
    damaged = [
        int(step) for step in re.findall(r"^checkpoint (\d+) is damaged and not used", output, re.MULTILINE)
    ]
    assert first == sound or sound in damaged, f"went on from {first}, not {sound}:\n{output}"
    return max(0, at_death - newest(command))


def damage(command: Command, fault: str, rng: random.Random) -> bool:
    """Does something bad to the newest checkpoint or the metrics, unless it is the last good one."""
    if fault == "tear":
        with (command.workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 17, "lo')
        return True
    steps = sorted(map(int, command.checkpoints(finished=True)))
    if fault == "none" or len(steps) < 2:
        return fault == "none"
    folder = command.workdir / "checkpoints" / str(steps[-1])
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(file.read_bytes())
    if fault == "delete":
        file.unlink()
    elif fault == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    return True


if __name__ == "__main__":
    main()
