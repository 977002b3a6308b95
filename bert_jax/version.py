"""Versions of this package, which setup.cfg reads too, and of its libraries."""

from importlib import metadata

__version__ = "0.1.0"


def versions(*libraries: str) -> dict[str, str]:
    """Returns the version of this package and of installed libraries, by name."""
    return {"bert_jax": __version__} | {name: metadata.version(name) for name in libraries}
