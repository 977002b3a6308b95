import pathlib
import re

import pytest

from bert_jax.config import Config, check_key, find_config
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training.config import sections

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request) -> str:
    return request.param.read_text()


def test_config_keys_exist(page):
    for key in re.findall(r"--config\.([a-z0-9_.]+)", page):
        section, _, field = key.partition(".")
        of_task = field in getattr(sections(FinetuneConfig).get(section), "__dataclass_fields__", {})
        check_key(key, FinetuneConfig if of_task else Config)


def test_config_names_exist(page):
    for name in re.findall(r"CONFIG=([\w/]+)|--config=([\w/]+)|`(bert_(?!jax)\w+)`", page):
        find_config("".join(name))


def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", page)) <= targets


def test_modules_exist(page):
    for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)+)", page):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


def test_annotated_tree_names_files_that_exist():
    block = re.search(r"```\n(bert_jax/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    parents, missing = [], []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split()
        parents = parents[: indent // 2]
        missing += [name for name in names if not ROOT.joinpath(*parents, name).exists()]
        parents.append(names[0])
    assert missing == []
