"""What all launchers share: their command line, their templates, and running the programs of a cluster.

    python launch/TARGET.py [VERB] --flags-of-the-launcher … --flags-of-the-command …

Flags that a launcher does not know go to the command (`--module`, by default bert_jax.pretrain) as they are.
"""

import argparse
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from restarts import FAILED, INTERRUPTED, MISTAKE

FOLDER = pathlib.Path(__file__).resolve().parent
COMMAND = "bert_jax.pretrain"
SHARED = {  # what all hosts must see
    COMMAND: ("workdir", "data_dir"),
    "bert_jax.finetune": ("workdir",),
    "bert_jax.prepare": ("data_dir",),
}


class Mistake(Exception):
    """An error in the input: one line, exit code 2."""


class Failure(Exception):
    """The cluster refuses, or the run has failed for good: one line, exit code 1."""


class Parser(argparse.ArgumentParser):
    """Parses `[VERB] [FLAGS …]`. An error is one line."""

    def __init__(self, description: str | None, verbs: Sequence[str] = ()):
        usage = f"%(prog)s {'[VERB] ' if verbs else ''}[FLAGS …]"
        super().__init__(description=description, formatter_class=argparse.RawTextHelpFormatter,
                         allow_abbrev=False, usage=usage)  # fmt: skip
        self._verbs = verbs
        self.add_argument("--module", default=COMMAND, help="the command (default: %(default)s)")
        self.add_argument("--dry_run", action="store_true", help="print what would be run, run nothing")

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message.rstrip('.')}; --help lists the flags.")

    def parse_known_args(self, args=None, namespace=None):
        """Takes hyphens in the names of flags for underscores, as the commands do."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_underscores(word) for word in words], namespace)

    def verb_and_flags(self) -> tuple[str, argparse.Namespace, list[str]]:
        """Returns the verb (without one, the first that exists), our flags, and the flags of the command."""
        words = sys.argv[1:]
        verb = words.pop(0) if words and not words[0].startswith("-") else self._verbs[0]
        if verb not in self._verbs:
            raise Mistake(f"the verb {verb!r} is unknown; give one of {', '.join(self._verbs)}.")
        return verb, *self.parse_known_args(words)


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--") or re.search(r"\s-", word):  # flags for another program, a value of ours
        return word
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


class Programs:
    """Runs programs of this machine; with `dry_run`, only prints their command lines."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, *words: str, text: str | None = None) -> None:
        """Runs a program with `text` as its input, and shows its output.

        Raises:
            Failure: when the program ends with an error.
        """
        if self._printed(words, text):
            return
        code = subprocess.run([find(words[0]), *words[1:]], input=text, text=True).returncode
        if code:
            raise Failure(f"{' '.join(words[:4])} ended with code {code}.")

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a program; returns its exit code and output, which are 0 and empty in a dry run."""
        if self._printed(words):
            return subprocess.CompletedProcess(words, 0, "", "")
        return subprocess.run([find(words[0]), *words[1:]], capture_output=True, text=True)

    def start(self, *words: str) -> subprocess.Popen[bytes] | None:
        """Starts a program in a session of its own, for `end`, and does not wait for it."""
        if self._printed(words):
            return None
        program = [find(words[0]), *words[1:]]
        return subprocess.Popen(program, stdin=subprocess.DEVNULL, start_new_session=True)

    def _printed(self, words: Sequence[str], text: str | None = None) -> bool:
        if self.dry_run:
            print(shlex.join(words) + (f" <<'END'\n{text.rstrip()}\nEND" if text else ""), flush=True)
        return self.dry_run


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Ends a started program and its children, like gcloud's ssh."""
    if process:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def find(program: str) -> str:
    """Returns the path of a program of this machine."""
    path = shutil.which(program)
    if path is None:
        raise Mistake(f"{program} is not installed, or not in PATH; docs/pods.md lists what is needed.")
    return path


def require(options: argparse.Namespace, *names: str) -> None:
    """Raises Mistake where one of these flags was not given."""
    missing = [f"--{name}" for name in names if not getattr(options, name)]
    if missing:
        raise Mistake(f"{' and '.join(missing)} missing; --help lists the flags.")


def require_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises Mistake where one of these flags is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise Mistake(f"--{name}={getattr(options, name)} must be at least 1.")


def require_shared(module: str, rest: Sequence[str]) -> None:
    """Raises Mistake where the dataset or the run would be on a disk of one host."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("workdir", "data_dir"):
        parser.add_argument(f"--{name}", f"-{name}", nargs="?")  # the commands take both
    for name, given in vars(parser.parse_known_args(rest)[0]).items():
        if given is None and name in SHARED.get(module, ()):
            raise Mistake(
                f"--{name} missing; give a folder that all hosts see, like --{name}=gs://BUCKET/{name}."
            )
        if given is not None and not given.startswith(("gs://", "/")):
            raise Mistake(
                f"--{name}={given} is on the disk of one host, and is lost with it; give a gs:// path, "
                "or the absolute path of a folder that all hosts mount."
            )


def fill(template: str, /, **values: object) -> str:
    """Returns a template of this folder with every <word> replaced by the value of that name."""
    text = (FOLDER / template).read_text(encoding="utf-8")
    words = set(re.findall(r"<([a-z_]+)>", text))
    if unknown := sorted(words - values.keys()):
        raise Mistake(
            f"launch/{template} has <{unknown[0]}>; give one of {', '.join(f'<{key}>' for key in values)}."
        )
    return re.sub(r"<([a-z_]+)>", lambda match: str(values[match[1]]), text)


def say(message: str) -> None:
    show(f"[launch] {message}\n")


def show(text: str) -> None:
    """Writes to standard output what it can show; a reader that is gone neither ends a run nor blocks it."""
    try:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def exit_with(main: Callable[[], int]) -> NoReturn:
    if sys.stdout is None:  # it is closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        sys.exit(main())
    except (Mistake, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE if isinstance(error, Mistake) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
