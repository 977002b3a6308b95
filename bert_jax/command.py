"""What every command shares: flags, the log, and errors as one line instead of a stack trace."""

import ast
import errno
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from bert_jax import config as config_lib
from bert_jax.errors import UserError

flags.disclaim_key_flags()  # flags defined here belong to the command that asks for them

PATHS = {"workdir", "data_dir", "checkpoint", "input", "output"}  # flags that hold one
HELP = {"--help", "-h", "-help", "--helpshort", "--helpfull"}
USAGE_ERROR, INTERRUPTED = 2, 130
DISK_ERRORS = {  # no bug of ours: full, forbidden, or gone
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ESTALE, errno.EIO),
}
log = logging.getLogger("bert_jax")


_kind: Any = config_lib.Config  # of config that this command takes


def define_config_flags(kind: Any = config_lib.Config) -> None:
    """Defines --config (a shipped name or a path) with overrides like --config.train.num_steps=1000."""
    global _kind
    _kind = kind
    config_flags.DEFINE_config_file("config", None, "A shipped config's name or a path to a config file.")
    flags.DEFINE_string("data_dir", "data_dir", "Where prepared datasets are kept; may be a gs:// path.")


def resolved_config() -> Any:
    """The checked config of the command line, of the kind that the flags were defined for.

    Raises:
        UserError: when --config is missing or a value is not valid.
    """
    if flags.FLAGS.config is None:
        raise UserError(f"--config is missing; shipped configs: {', '.join(config_lib.config_files())}.")
    values = flags.FLAGS.config.to_dict()
    if ("task" in values) != ("task" in config_lib.sections(_kind)):
        names = [
            name for name in config_lib.config_files() if name.startswith("finetune/") != ("task" in values)
        ]
        kind, other = ("fine-tuning", "pretraining") if "task" in values else ("pretraining", "fine-tuning")
        raise UserError(
            f"--config={config_name()} is a config of {kind}, and this command takes one of {other}: "
            f"{', '.join(names)}."
        )
    return config_lib.from_dict(values, _kind)


def config_file() -> pathlib.Path:
    """The config file of the command line."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))


def config_name() -> str:
    """The name of the command line's config, as runs are named by it: `bert_tiny`, `finetune/glue:mrpc`."""
    path, colon, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    names = {str(shipped): name for name, shipped in config_lib.config_files().items()}
    return names.get(path, pathlib.Path(path).stem) + colon + argument


def config_docstring() -> str:
    """What the config of the command line says of itself."""
    return ast.get_docstring(ast.parse(config_file().read_text())) or ""


def folder_flag(name: str) -> pathlib.Path:
    """The path of a flag that names a folder; raises UserError where it is missing."""
    if not (value := flags.FLAGS[name].value):
        raise UserError(f"--{name} is missing: a folder (--help says more).")
    return pathlib.Path(value)


def run(main: Callable[..., int | None], modes: Sequence[str] = ()) -> None:
    """Parses the command line, runs `main` and exits with its return code.

    With `modes` the first word of the command line is one of them, and `main` takes it. A `UserError` becomes
    one line on stderr and exit code 2.
    """
    _set_up_log()
    try:
        arguments = [_take_mode(modes)] if modes and not HELP & set(sys.argv[1:]) else []
        _parse_flags()
        sys.exit(main(*arguments) or 0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"{error}; mend that, and the same command goes on: nothing saved is lost."
    sys.stdout.flush()
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _take_mode(modes: Sequence[str]) -> str:
    if len(sys.argv) < 2 or sys.argv[1] not in modes:
        given = f", not {sys.argv[1]!r}" if len(sys.argv) > 1 else ""
        raise UserError(f"the first word says what to do: {', '.join(modes)}{given}.")
    return sys.argv.pop(1)


def _parse_flags() -> None:
    module = sys.modules["__main__"]
    if HELP & set(sys.argv[1:]):
        print(f"{module.__doc__}\nFlags:")
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
            default = "" if flag.default in (None, "") else f" (default: {flag.default})"
            print(f"  --{flag.name}: {flag.help}{default}")
        sys.exit(0)
    sys.argv[:] = _with_config_path(sys.argv)  # config_flags reads overrides from sys.argv itself
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        message = " ".join(str(error).split())
        if wrong := re.fullmatch(r"flag (--([\w.]+)=.*?): (.*)", message):
            kind = flags.FLAGS[wrong[2]].flag_type()
            remedy = f"; give a value of type {kind}" if kind in ("int", "float", "bool") else ""
            message = f"{wrong[1]} is not valid: {wrong[3].rstrip('.')}{remedy}."
        raise UserError(message) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --name=value (--help lists them).")
    for name in PATHS & set(flags.FLAGS):  # a shell expands `~` at the start of a word only
        if value := flags.FLAGS[name].value:
            flags.FLAGS[name].value = os.path.expanduser(value)


def _with_config_path(argv: list[str]) -> list[str]:
    """Replaces a config's name by its path; checks the keys of overrides, which absl would not explain."""
    result = []
    for position, word in enumerate(argv):
        if word.startswith("--"):  # --like-lecture is --like_lecture
            name, equals, value = word.partition("=")
            word = name.replace("-", "_").replace("__", "--", 1) + equals + value
        if word.startswith("--config="):
            word = f"--config={_config_path(word.removeprefix('--config='))}"
        elif position and argv[position - 1] == "--config":
            word = _config_path(word)
        elif word.startswith("--config."):
            config_lib.check_key(word.removeprefix("--config.").split("=", 1)[0], _kind)
        result.append(word)
    return result


def _config_path(name: str) -> str:
    """The path of a config, with the argument for its `get_config` that may follow after a colon."""
    name, *argument = name.split(":", 1)
    path = config_lib.find_config(os.path.expanduser(name))
    config_lib.check_file(path, *argument)
    return ":".join([str(path), *argument])


def _set_up_log() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS also raise what they call an error
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the same of Orbax's threads
    sys.unraisablehook = _unraisable
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _unraisable(ignored: Any) -> None:
    """Leaves out what TensorStore says, a trace for each array, of writes that end after a failed one."""
    if not (isinstance(ignored.exc_value, RuntimeError) and str(ignored.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(ignored)
