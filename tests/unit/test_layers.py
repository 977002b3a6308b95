"""No module of the package imports one of a higher layer: the imports are read from the files."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "bert_jax"
# From the ground up; a name is a module or folder of the package. Modules of one layer may import each other.
LAYERS = (
    ("errors", "version", "settings"),
    ("model", "files", "paths", "streams"),
    ("corpus", "report"),
    ("data", "training"),
    ("config",),
    ("tasks", "scaling", "command"),
    ("inference",),
    ("interop",),
    [
        "pretrain",
        "finetune",
        "prepare",
        "inspect",
        "predict",
        "params",
        "convert",
        "export",
        "plan",
        "benchmark",
        "benchmarks",
    ],
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Of one layer, and yet the first knows nothing of the other.
APART = (("data", "training"), ("report", "corpus"))


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it, but for what type checkers alone see."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("bert_jax.") and name.count(".")}
    return found & LEVEL.keys()


def test_every_module_has_a_layer():
    assert {part_of(path) for path in modules()} == LEVEL.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_from_a_higher_layer(path):
    higher = {name for name in imported(path) if LEVEL[name] > LEVEL[part_of(path)]}
    assert higher == set()


@pytest.mark.parametrize(("folder", "other"), APART)
def test_parts_of_a_layer_that_do_not_know_each_other(folder, other):
    assert [path for path in (PACKAGE / folder).rglob("*.py") if other in imported(path)] == []


def test_files_and_functions_are_short():
    """A file has under 400 lines, and a function under 50 of code."""
    for path in [*modules(), *(PACKAGE.parent / "launch").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = (
                    node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
                )
                assert node.end_lineno - node.lineno + 1 - docstring < 50, f"{path}: {node.name}"
