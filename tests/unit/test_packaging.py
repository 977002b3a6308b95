import ast
import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
UNLOCKED = ("peer", "beam", "huggingface", "s3")
PEER_WORKER = ROOT / "bert_jax" / "benchmarks" / "peer_worker.py"  # runs in another Python
BEAM = ROOT / "bert_jax" / "corpus" / "beam.py"  # runs where its extra is installed


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def canonical(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported_by(path: pathlib.Path) -> set[str]:
    """Top-level packages that a file imports, without the standard library and this package."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module)
    return {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"bert_jax"}


def test_every_package_is_listed(setup_cfg):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "bert_jax").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    packages |= {"bert_jax.configs", "bert_jax.configs.finetune"}
    assert set(lines(setup_cfg["options"]["packages"])) == packages


def test_every_package_that_is_imported_is_required_and_the_reverse(setup_cfg):
    files = set((ROOT / "bert_jax").rglob("*.py")) - {PEER_WORKER, BEAM}
    tops = set().union(*map(imported_by, files))
    # `orbax` and `google` are shared by several distributions; the one that is meant is the one required.
    distributions = importlib.metadata.packages_distributions()
    candidates = {top: {canonical(name) for name in distributions[top]} for top in tops}
    required = {canonical(line) for line in lines(setup_cfg["options"]["install_requires"])}
    assert {top for top, names in candidates.items() if not names & required} == set()
    assert required - set().union(*candidates.values()) == set()


def test_the_worker_of_the_peer_needs_the_packages_of_its_extra_alone(setup_cfg):
    extra = {canonical(line) for line in lines(setup_cfg["options.extras_require"]["peer"])}
    assert extra == {"torch", "transformers"}
    assert imported_by(PEER_WORKER) == extra | {"numpy"}  # which Transformers requires
    assert "bert_jax" not in re.findall(r"^(?:from|import) (\w+)", PEER_WORKER.read_text(), re.MULTILINE)


def test_lock_pins_every_requirement(setup_cfg):
    """But the peer's, as PyTorch would decide which CUDA libraries JAX gets, and what CI does without."""
    pinned = {canonical(line) for line in lines((ROOT / "requirements.lock").read_text()) if "==" in line}
    sections = setup_cfg["options.extras_require"]
    extras = [line for name in sections if name not in UNLOCKED for line in lines(sections[name])]
    required = {canonical(line) for line in lines(setup_cfg["options"]["install_requires"]) + extras}
    assert required - pinned == set()


def test_beam_limits_only_where_it_is_asked_for(setup_cfg):
    """Its protobuf is below 7, which the newest sentencepiece cannot be imported with."""
    required = lines(setup_cfg["options"]["install_requires"])
    assert not [
        line for line in required if line.startswith(("protobuf", "numpy", "sentencepiece")) and "<" in line
    ]
    assert "sentencepiece < 0.2.3" in lines(setup_cfg["options.extras_require"]["beam"])
    pinned = re.search(r"^protobuf==(\d+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert int(pinned[1]) >= 7


def test_lock_names_no_host_and_no_path():
    assert re.findall(r"://|--|(?<!\w)/\w", (ROOT / "requirements.lock").read_text()) == []


def test_training_starts_without_what_only_scores_need():
    """Importing them takes seconds."""
    code = "import sys, bert_jax.pretrain\nprint({'sklearn', 'scipy.stats'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
