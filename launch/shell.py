"""What the launchers of clusters share: a command line with a verb, and the programs of the cluster.

    python launch/TARGET.py [VERB] --flags-of-the-launcher … --flags-of-the-command …

Flags that a launcher does not know go to the command (`--module`, by default bert_jax.pretrain) as they are.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

FAILED, MISTAKE = 1, 2
NOT_AGAIN = (2, 130)  # exit codes of the command: a mistake in its input; Ctrl-C. As in local.py
COMMAND = "bert_jax.pretrain"


class Mistake(Exception):
    """The user can mend it: one line, exit code 2."""


class Failure(Exception):
    """The cluster has refused, or the run has failed for good: one line, exit code 1."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawTextHelpFormatter,
                         allow_abbrev=False, usage="%(prog)s [VERB] [FLAGS …]")  # fmt: skip
        self.add_argument("--module", default=COMMAND, help="the command (default: %(default)s)")
        self.add_argument("--dry_run", action="store_true", help="print what would be run, run nothing")

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message.rstrip('.')}; --help lists the flags.")

    def verb_and_flags(self, verbs: Sequence[str]) -> tuple[str, argparse.Namespace, list[str]]:
        """The first word, or the first of `verbs` if there is none; our flags; the flags of the command."""
        words = sys.argv[1:]
        verb = words.pop(0) if words and not words[0].startswith("-") else verbs[0]
        if verb not in verbs:
            raise Mistake(f"the first word says what to do: {', '.join(verbs)}, not {verb!r}.")
        return verb, *self.parse_known_args(words)


class Programs:
    """Runs programs of this machine, or with `dry_run` only prints how."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, *words: str, text: str | None = None) -> None:
        """Shows what the program says; `text` is its input.

        Raises:
            Failure: when it ends with an error.
        """
        if self._printed(words, text):
            return
        code = subprocess.run([find(words[0]), *words[1:]], input=text, text=True).returncode
        if code:
            raise Failure(f"{' '.join(words[:4])} ended with code {code}.")

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What the program answers: `returncode`, `stdout` and `stderr`; nothing in a dry run."""
        if self._printed(words):
            return subprocess.CompletedProcess(words, 0, "", "")
        return subprocess.run([find(words[0]), *words[1:]], capture_output=True, text=True)

    def start(self, *words: str) -> subprocess.Popen[bytes] | None:
        """Starts the program in a group of its own, for `end`, and does not wait for it."""
        if self._printed(words):
            return None
        program = [find(words[0]), *words[1:]]
        return subprocess.Popen(program, stdin=subprocess.DEVNULL, start_new_session=True)

    def _printed(self, words: Sequence[str], text: str | None = None) -> bool:
        if self.dry_run:
            print(shlex.join(words) + (f" <<'END'\n{text.rstrip()}\nEND" if text else ""), flush=True)
        return self.dry_run


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Ends a started program with all that it has started, like gcloud's ssh."""
    if process:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def find(program: str) -> str:
    """The path of a program of this machine."""
    path = shutil.which(program)
    if path is None:
        raise Mistake(f"{program} is not installed, or not in PATH; docs/pods.md says what is needed.")
    return path


def require(options: argparse.Namespace, *names: str) -> None:
    """Raises Mistake for flags that were not given."""
    missing = [f"--{name}" for name in names if not getattr(options, name)]
    if missing:
        raise Mistake(f"{' and '.join(missing)} missing; --help lists the flags.")


def require_shared(module: str, rest: Sequence[str]) -> None:
    """Raises Mistake where the command would keep its results on a disk that goes with the machines."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("workdir", "data_dir"):
        parser.add_argument(f"--{name}", nargs="?")
    for name, given in vars(parser.parse_known_args(rest)[0]).items():
        if given is None and module == COMMAND:
            raise Mistake(
                f"--{name} missing: give a folder that all hosts see, like --{name}=gs://BUCKET/{name}."
            )
        if given is not None and not given.startswith(("gs://", "/")):
            raise Mistake(
                f"--{name}={given} would be on the disk of one host, and go with it; give a gs:// "
                "path, or the absolute path of a folder that all hosts mount."
            )


def say(message: str) -> None:
    print(f"[launch] {message}", flush=True)


def exit_with(main: Callable[[], int]) -> NoReturn:
    try:
        sys.exit(main())
    except (Mistake, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE if isinstance(error, Mistake) else FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
