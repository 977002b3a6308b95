"""Acts as the program that it is called by: gcloud, kubectl, sbatch, squeue, srun, uv, python, …

Every call is a line of calls.jsonl. plan.json says how to answer; files beside it keep what happened. While
the file no_ssh exists, gcloud reaches no worker.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

STAGE = pathlib.Path(os.environ["STAGE"])
PROGRAM, ARGUMENTS = pathlib.Path(sys.argv[0]).name, sys.argv[1:]


def main() -> int:
    text = sys.stdin.read() if PROGRAM == "sbatch" or "--filename=-" in ARGUMENTS else ""
    call = {"program": PROGRAM, "arguments": ARGUMENTS, "input": text, "home": os.environ["HOME"]}
    with (STAGE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    acts = {"gcloud": gcloud, "python": command, "python3": pip, "uv": uv, "make": make}
    return (acts | {"srun": srun, "squeue": squeue}).get(PROGRAM, simple)()


def plan(key, default):
    return json.loads((STAGE / "plan.json").read_text()).get(key, default)


def take(name, default):
    """The next entry of a list of the plan; the last one stays."""
    entries = plan(name, default)
    counter = STAGE / f"{name}.taken"
    taken = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(taken + 1))
    return entries[min(taken, len(entries) - 1)]


def simple() -> int:
    print(plan(PROGRAM, ""))
    return 0


def make() -> int:
    """`make launch` as the Makefile does it; other targets are only recorded."""
    given = dict(word.split("=", 1) for word in ARGUMENTS[1:])
    if ARGUMENTS[0] != "launch":
        return 0
    flags = {"config": "CONFIG", "workdir": "WORKDIR", "data_dir": "DATA_DIR"}
    words = [f"--{flag}={given[name]}" for flag, name in flags.items() if name in given]
    # The guide looks at the TPU while the launcher watches, so it must not be gone.
    more = "--poll=0.1 --keep" if given["TARGET"] == "tpu" else ""
    launcher = f"{os.environ['REPOSITORY']}/launch/{given['TARGET']}.py"
    line = [sys.executable, launcher, given.get("VERB", ""), *words, more, given["ARGS"]]
    return subprocess.run(["sh", "-c", " ".join(line)]).returncode


def squeue() -> int:
    """What is planned; None is a failure."""
    answer = take("squeue", [""])
    if answer is None:
        print("Unable to contact slurm controller", file=sys.stderr)
        return 1
    print(answer)
    return 0


def gcloud() -> int:
    """A queued resource: each one that is created goes through the next list of `lives`."""
    if ARGUMENTS[:3] != ["compute", "tpus", "queued-resources"] or ARGUMENTS[3] == "list":
        return 0
    verb = ARGUMENTS[3]
    life, seen = STAGE / "life", STAGE / "seen"
    lives = plan("lives", [["ACTIVE"]])
    if plan("refusal", None):
        print(plan("refusal", None), file=sys.stderr)
        return 1
    if verb == "create":
        number = int((STAGE / "created").read_text()) if (STAGE / "created").exists() else 0
        (STAGE / "created").write_text(str(number + 1))
        life.write_text(json.dumps(lives[min(number, len(lives) - 1)]))
        seen.write_text("0")
        return 0
    states = json.loads(life.read_text()) if life.exists() else []
    position = int(seen.read_text()) if life.exists() else 0
    state = states[min(position, len(states) - 1)] if states else "NONE"
    if verb == "describe":
        if state == "NONE":
            print(
                "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource", file=sys.stderr
            )
            return 1
        seen.write_text(str(position + 1))
        print(state)
    elif verb == "delete":
        life.unlink()
        for home in STAGE.glob("worker*"):
            wipe(home)
    elif state != "ACTIVE":
        print(f"ERROR: the TPU is {state}", file=sys.stderr)
        return 1
    elif (STAGE / "no_ssh").exists():
        print("ssh: connect to host port 22: Connection timed out", file=sys.stderr)
        return 255
    elif verb == "ssh":
        return ssh()
    elif verb == "scp":
        for home in workers():
            shutil.copy(ARGUMENTS[4], home / ARGUMENTS[5].split(":")[1])
    return 0


def workers():
    homes = [STAGE / f"worker{number}" for number in range(plan("workers", 2))]
    for home in homes:
        home.mkdir(exist_ok=True)
    return homes if "--worker=all" in ARGUMENTS else homes[:1]


def ssh() -> int:
    """Each worker's shell, with a folder of this machine for a home."""
    script = next(word for word in ARGUMENTS if word.startswith("--command=")).removeprefix("--command=")
    codes = []
    for home in workers():
        hostname = f"hostname() {{ echo {home.name}; }}\n"
        environment = os.environ | {"HOME": str(home)}
        codes.append(subprocess.run(["sh", "-c", hostname + script], cwd=home, env=environment).returncode)
    return max(codes)


def wipe(home: pathlib.Path) -> None:
    session = home / "bert_jax" / "session"
    if session.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(session.read_text()), signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)


def pip() -> int:
    """`python3 -m pip install --user uv`"""
    folder = pathlib.Path.home() / ".local" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "uv").exists():
        (folder / "uv").symlink_to(STAGE / "bin" / "uv")
    return 0


def uv() -> int:
    """`uv venv venv` puts a stand-in for the command there."""
    if ARGUMENTS[0] == "venv":
        folder = pathlib.Path("venv", "bin")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "python").unlink(missing_ok=True)
        (folder / "python").symlink_to(STAGE / "bin" / "python")
    return 0


def command() -> int:
    """The command on a worker: ends as the next entry of `codes` says; "hang" waits for a signal."""
    name = f"codes.{pathlib.Path(os.environ['HOME']).name}"
    code = take(name, plan("codes", [0]))
    print("training", ARGUMENTS, flush=True)
    if code == "hang":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        time.sleep(60)
    return code


def srun() -> int:
    return take("codes", [0])


sys.exit(main())
