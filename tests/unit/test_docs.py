import pathlib
import re

import pytest

from bert_jax.config import Config, check_key, find_config
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training.config import sections

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = r"(?:py|json|tsv|safetensors)\b"  # `task.json` is no key
SECTIONS = {name for kind in (Config, FinetuneConfig) for name in sections(kind)}


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def path(request) -> pathlib.Path:
    return request.param


@pytest.fixture
def page(path) -> str:
    return path.read_text()


def check_key_of_any(key: str) -> None:
    section, _, field = key.partition(".")
    of_task = field in getattr(sections(FinetuneConfig).get(section), "__dataclass_fields__", {})
    check_key(key, FinetuneConfig if of_task else Config)


def test_config_keys_exist(page):
    keys = re.findall(r"--config\.([a-z0-9_.]+)", page)
    keys += re.findall(rf"`((?:{'|'.join(SECTIONS)})\.(?!{FILES})\w+)(?:=[^`]*)?`", page)
    for key in keys:
        check_key_of_any(key)


def test_config_names_exist(page):
    for name in re.findall(r"CONFIG=([\w/]+)|--config=([\w/]+)|`(bert_(?!jax)\w+|finetune/\w+)[`:]", page):
        find_config("".join(name))


def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= targets


def test_modules_exist(page):
    for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)+)", page):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


def test_paths_of_the_repository_exist(page):
    paths = re.findall(r"`((?:\w+/)+[\w.]*\.(?:py|md|json))`", page)
    assert [
        name for name in paths if not ((ROOT / name).exists() or (ROOT / "bert_jax" / name).exists())
    ] == []


def test_links_lead_to_headings_and_files_that_exist(path, page):
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", page):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


def test_log_lines_exist():
    table = (ROOT / "docs/metrics.md").read_text().partition("## Log lines")[2]
    code = "".join(path.read_text() for path in (ROOT / "bert_jax").rglob("*.py"))
    fragments = [
        fragment.strip()
        for line in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
        for fragment in re.split(r"\[N\]|\b[NMK]\b|…|\bnan\b", line)
        if len(fragment.strip()) > 2
    ]
    assert len(fragments) > 10
    assert [fragment for fragment in fragments if fragment not in code] == []


def missing_in_tree(tree: str) -> list[str]:
    """Files and folders that an annotated tree names, also in comments, and that do not exist."""
    parents: list[str] = []
    missing = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        listed, *comment = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        names = listed.split()
        parents = parents[: indent // 2]
        folder = ROOT.joinpath(*parents)
        missing += [name for name in names if not (folder / name).exists()]
        mentioned = re.findall(r"\b\w+\.(?:py|html)\b", "".join(comment))
        missing += [
            name
            for name in mentioned
            if not any((place / name).exists() for place in (folder, folder / names[0]))
        ]
        parents.append(names[0])
    return missing


def test_annotated_tree_names_files_that_exist():
    tree = re.search(r"```\n(bert_jax/\n.*?)```", (ROOT / "docs/code.md").read_text(), re.DOTALL)[1]
    assert missing_in_tree(tree) == []


def test_annotated_tree_with_a_file_that_does_not_exist():
    tree = "bert_jax/\n  config.py gone.py   find a config\n  data/   masking.py lost.py\n    astray.py\n"
    assert missing_in_tree(tree) == ["gone.py", "lost.py", "astray.py"]
