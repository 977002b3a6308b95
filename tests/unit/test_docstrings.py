import ast
import doctest
import importlib
import pathlib

import numpy as np
import pytest

import bert_jax

PACKAGE = pathlib.Path(bert_jax.__file__).parent
FILES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize("path", [path for path in FILES if ">>>" in (PACKAGE / path).read_text()], ids=str)
def test_the_examples_of_docstrings_are_true(path, tmp_path):
    module = importlib.import_module(".".join(["bert_jax", *path.with_suffix("").parts]))
    result = doctest.testmod(module, extraglobs={"np": np, "directory": tmp_path})
    assert result.attempted > 0
    assert result.failed == 0


def test_no_docstring_joins_lines():
    """A single backslash at the end of a line joins it to the next, as in a command that --help shows."""
    for path in FILES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and (shown := ast.get_docstring(node, clean=False)) is not None:
                lines = node.body[0].end_lineno - node.body[0].lineno
                assert shown.count("\n") == lines, f"{path}: {shown}"
