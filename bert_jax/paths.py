"""Paths as flags give them: buckets that can be reached, and names that libraries can write."""

import contextlib
import importlib.util
import os
import sys

from bert_jax.errors import UserError

CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}  # of buckets, which epath imports: scheme -> package


def check_path(flag: str, value: str) -> None:
    """Raises UserError for a bucket without its package, or a path whose bytes are not UTF-8."""
    scheme, remote, _ = value.partition("://")
    if flag == "data_dir" and remote and scheme == "s3":
        raise UserError(
            f"--data_dir={value}: prepared datasets are read from disks and gs:// only; prepare on a disk."
        )
    packages = (CLIENTS[scheme], "tensorflow") if remote and scheme in CLIENTS else ()  # epath takes either
    if packages and not any(map(importlib.util.find_spec, packages)):
        raise UserError(f"--{flag}={value} needs a package that is not installed: pip install {packages[0]}.")
    path = value if remote else os.path.abspath(value)
    with contextlib.suppress(UnicodeEncodeError):
        if path.encode() == os.fsencode(path):  # as UTF-8 libraries would write it
            return
    raise UserError(
        f"--{flag}={value}: the path {path!r} is not UTF-8, or this system's locale is not "
        f"({sys.getfilesystemencoding()}); use a folder with ASCII letters, or set LC_ALL=C.UTF-8."
    )
