"""What commands share: flags, the log, errors as one line, and the set-up of a training command."""

import ast
import contextlib
import errno
import hashlib
import importlib
import itertools
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from bert_jax import config as config_lib
from bert_jax import streams
from bert_jax.errors import UserError
from bert_jax.paths import check_path
from bert_jax.training.config import RunConfig, sections

flags.disclaim_key_flags()  # flags defined here belong to the command that defines them through this module

PATHS = {"workdir", "data_dir", "checkpoint", "input", "output", "peer_python"}  # flags that hold one
HELP = {"--help", "-h", "-help", "--helpshort", "--helpfull"}
CONFIG_HELP = "A shipped config's name or a path to a config file; --config.KEY=VALUE overrides a value."
OVERRIDE = re.compile(r"--(no)?config\.")
WHOLE_TUPLES = ("phases", "train.probes")  # of dicts, whose keys can also be set one by one
USAGE_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141  # the last as of programs that SIGPIPE ends
DISK_ERRORS = {  # no bug of ours: full, forbidden, or gone
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ESTALE, errno.EIO),
}
log = logging.getLogger("bert_jax")


class ConfigFlag(NamedTuple):
    """The value of --config."""

    kind: Any  # of config that the command takes
    typed: str = ""  # as it was typed: bert_tiny, my.py:large
    path: pathlib.Path | None = None  # of the file


_config = ConfigFlag(None)


def define_config_flags(kind: Any = config_lib.Config, data_dir: bool = False) -> None:
    """Has the command take --config, with overrides like --config.train.num_steps=1000.

    Args:
        kind: of config.
        data_dir: whether it reads prepared datasets, and takes --data_dir.
    """
    global _config
    _config = ConfigFlag(kind)
    if data_dir:
        flags.DEFINE_string("data_dir", "data_dir", "Where prepared datasets are kept; may be a gs:// path.")


def define_download_flag() -> None:
    """Defines the flag by which the user agrees to a download."""
    flags.DEFINE_bool(
        "download",
        False,
        "Download wikipedia:LANG; without it, the command says what that takes.",
    )


def define_process_flags() -> None:
    """Defines the flags with which a launcher numbers processes; TPU, GKE and Slurm need none."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; for several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)


def resolved_config() -> Any:
    """Returns the checked config of the command line, of the kind that the flags were defined for.

    Raises:
        UserError: when --config is missing or a value is not valid.
    """
    if _config.path is None:
        raise UserError(f"--config is missing; shipped configs: {', '.join(config_lib.config_files())}.")
    values = flags.FLAGS.config.to_dict()
    if ("task" in values) != ("task" in sections(_config.kind)):
        names = [
            name for name in config_lib.config_files() if name.startswith("finetune/") != ("task" in values)
        ]
        kind, other = ("fine-tuning", "pretraining") if "task" in values else ("pretraining", "fine-tuning")
        raise UserError(
            f"--config={config_argument()} is a config of {kind}, and this command takes one of {other}: "
            f"{', '.join(names)}."
        )
    return config_lib.from_dict(values, _config.kind)


def config_argument() -> str:
    """Returns --config as it was typed, for messages."""
    return _config.typed


def config_name() -> str:
    """Returns the config's name for folders: `bert_tiny`, `finetune/glue_mrpc`; the last part of a path."""
    name, *argument = config_lib.split_argument(_config.typed)
    return "_".join([pathlib.Path(name).stem if name.endswith(".py") else name, *argument])


def folder_flag(name: str) -> pathlib.Path:
    """Returns the path of a flag that names a folder; raises UserError if it is missing."""
    if not (value := flags.FLAGS[name].value):
        raise UserError(f"--{name} is missing; give a folder (see --help).")
    check_path(name, value)
    return pathlib.Path(value)


def check_flags(chosen: str, taken_by: Mapping[str, Collection[str]]) -> None:
    """Raises UserError for a flag that was given and has no effect on what was chosen.

    Args:
        chosen: a mode of the command, as it was typed.
        taken_by: flags -> the modes that take them; other flags are not checked.
    """
    for name, takers in taken_by.items():
        if flags.FLAGS[name].present and chosen not in takers:
            raise UserError(
                f"--{name}={flags.FLAGS[name].value} has no effect on {chosen}; it is for "
                f"{' and '.join(takers)}."
            )


def main_of(module: str) -> Callable[..., int | None]:
    """Returns the `main` of a command's module, which is imported when it is called.

    `python -m` runs the module itself only up to its flags: JAX and what else a command works with take
    seconds to import, which --help and a mistake in the flags need not wait for.
    """

    def main(*arguments: str) -> int | None:
        return importlib.import_module(module).main(*arguments)

    return main


def run(main: Callable[..., int | None], takes_mode: bool = False) -> None:
    """Parses the command line, runs `main` and exits with its return code.

    With `takes_mode`, `main` is called with the first argument, "" if that is a flag or missing. A
    `UserError` becomes one line on stderr and exit code 2. The command ends quietly when the reader of its
    output is gone (`| head`).
    """
    streams.open_streams()
    _set_up_log()
    try:
        arguments = [_take_mode()] if takes_mode else []
        _parse_flags()
        code = main(*arguments) or 0
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        streams.discard_output()
        sys.exit(READER_GONE)
    except UserError as error:
        problem = str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"{error}; correct this and repeat the command; saved files are unchanged."
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


class Training(NamedTuple):
    """The work of a training command, set up on one process.

    `must_match` is compared between all processes; `work` returns the exit code.
    """

    config: RunConfig
    must_match: dict[str, str]
    work: Callable[[], int]


def train(set_up: Callable[[], Training]) -> int:
    """Connects the processes of a training command, checks that they agree on the work, and trains.

    Raises:
        UserError: on every process, for an error of one, or where config, data, code or versions differ.
    """
    import jax  # here, since preparing data needs no accelerator

    from bert_jax.training import hosts
    from bert_jax.training.memory import keep_freed_memory
    from bert_jax.training.workdir import versions

    keep_freed_memory()
    keep_going()
    hosts.connect()
    if jax.process_index():
        log.setLevel(logging.WARNING)  # the first process logs
    try:
        training = set_up()
    except UserError as error:
        hosts.require_same({}, str(error))  # raises it on every process
        raise
    config = {f"config.{key}": repr(value) for key, value in training.config.flat().items()}
    code = {"digest of the code": hosts.code_digest()}
    hosts.require_same(config | training.must_match | code | versions())
    with hosts.fail_fast():
        return training.work()


def keep_going() -> None:
    """Has a command whose result are files go on when nobody can read what it prints."""
    streams.keep_going()
    _set_up_log()


def digest(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _take_mode() -> str:
    return "" if len(sys.argv) < 2 or sys.argv[1].startswith("-") else sys.argv.pop(1)


def _parse_flags() -> None:
    if HELP & set(sys.argv[1:]):
        _print_help()
        sys.exit(0)
    sys.argv[:] = [_with_underscores(word) for word in sys.argv]
    if _config.kind is not None:
        sys.argv[:] = _parse_config(sys.argv)
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise _bad_flag(error) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --name=value (--help lists them).")
    for name in PATHS & set(flags.FLAGS):  # a shell expands `~` at the start of a word only
        if value := flags.FLAGS[name].value:
            flags.FLAGS[name].value = os.path.expanduser(value)
            if name != "input":  # mostly a file, which Python itself reads
                check_path(name, os.path.expanduser(value))
        elif value == "" and name in ("data_dir", "checkpoint"):  # it would be the working directory
            raise UserError(f"--{name} is empty; give a folder, or leave it out.")


def _print_help() -> None:
    print(f"{sys.modules['__main__'].__doc__}\nFlags:")
    if _config.kind is not None:
        print(f"  --config: {CONFIG_HELP}\n    shipped: {', '.join(config_lib.config_files())}")
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        print(f"  --{flag.name}: {flag.help}{default}")


def _with_underscores(word: str) -> str:
    """Replaces hyphens in the name of a flag: --like-lecture is --like_lecture."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _parse_config(argv: list[str]) -> list[str]:
    """Takes --config out of the command line and defines its overrides, wherever these stand.

    Raises:
        UserError: for a config that is missing or broken, or an override of a key that does not exist.
    """
    global _config
    rest, typed = [], None
    words = iter(argv)
    for word in words:
        if word == "--config":
            if (typed := next(words, None)) is None:
                raise UserError("--config has no value; give a shipped config's name or a path.")
        elif word.startswith("--config="):
            typed = word.removeprefix("--config=")
        else:
            rest.append(word)
    for word in rest:
        if OVERRIDE.match(word):
            config_lib.check_key(OVERRIDE.sub("", word).split("=", 1)[0], _config.kind)
    known = [name for name in flags.FLAGS if name == "config" or name.startswith("config.")]
    flags.FLAGS.remove_flag_values(known)  # of another command in this process
    values, path = ml_collections.ConfigDict(), None
    if typed is not None:
        path, values = config_lib.load_config(os.path.expanduser(typed))
        _config = _config._replace(typed=typed, path=path)
    elif any(OVERRIDE.match(word) for word in rest):
        resolved_config()  # raises: --config is missing
    rest = _set_whole_tuples(values, rest)
    keys = [OVERRIDE.sub("", word).split("=", 1)[0] for word in rest if OVERRIDE.match(word)]
    _check_present(values, keys)
    config_lib.add_overrides_of_phases(values, keys, _config.kind)
    config_lib.add_overrides_of_probes(values, keys)
    try:
        config_flags.DEFINE_config_dict("config", values, CONFIG_HELP, sys_argv=rest)
    except (flags.Error, KeyError, AttributeError) as error:
        raise _bad_flag(error) from None
    return rest


def _check_present(values: ml_collections.ConfigDict, keys: list[str]) -> None:
    """Raises UserError for an override of what the config file leaves out, and so has no type."""
    for key in keys:
        section, _, name = config_lib.KEY.sub(r"\2", key).partition(".")
        name = name.partition("[")[0]  # of a probe
        if section != "num_steps" and (section not in values or (name and name not in values[section])):
            finetunes = section == "model" and "task" in sections(_config.kind)
            raise UserError(
                f"config.{key} cannot be set: --config={_config.typed} leaves it out; "
                + (
                    "the network is that of init_from."
                    if finetunes
                    else "begin the file with default_config()."
                )
            )


def _set_whole_tuples(values: ml_collections.ConfigDict, words: list[str]) -> list[str]:
    """Sets `phases` and `train.probes` where they are given whole, so that single keys of them can follow.

    Returns:
        The other words. A value that is no tuple stays among them, for the error that its flag gives.
    """
    others, rest = [], iter(words)
    for word in rest:
        key, equals, value = OVERRIDE.sub("", word).partition("=")
        if not OVERRIDE.match(word) or key not in WHOLE_TUPLES:
            others.append(word)
            continue
        given = [word] if equals else [word, *itertools.islice(rest, 1)]
        try:
            whole = ast.literal_eval(value if equals else given[-1])
        except (ValueError, SyntaxError):
            whole = None
        if isinstance(whole, tuple):
            values.update_from_flattened_dict({key: whole})
        else:
            others += given
    return others


def _bad_flag(error: Exception) -> UserError:
    message = " ".join(str(error).split())
    if wrong := re.fullmatch(r"flag (--([\w.\[\]]+)=.*?): (.*)", message):
        kind = flags.FLAGS[wrong[2]].flag_type()
        remedy = f"; give a value of type {kind}" if kind in ("int", "float", "bool") else ""
        message = f"{wrong[1]} is not valid: {wrong[3].rstrip('.')}{remedy}."
    elif isinstance(error, flags.UnrecognizedFlagError) and "Did you mean" not in message:
        message = f"{message}; --help lists the flags of this command."
    return UserError(message)


def _set_up_log() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS also raise what they call an error
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the same of Orbax's threads
    sys.unraisablehook = _unraisable
    handler = _LogHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _LogHandler(logging.StreamHandler):
    """Raises what goes wrong with the stream, instead of printing a trace for every line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(error := sys.exception(), OSError):
            raise error
        super().handleError(record)


def _unraisable(ignored: Any) -> None:
    """Leaves out TensorStore's traces, one for each array, of writes that end after a failed one."""
    if not (isinstance(ignored.exc_value, RuntimeError) and str(ignored.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(ignored)
