import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_installed_package_is_whole(tmp_path):
    """Installed from a copy into a folder of its own and used from there: corpus and configs came along."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("bert_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", site, source], check=True)

    def files(folder):
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}

    configs = {pathlib.Path("configs") / path for path in files(source / "configs")}
    assert files(site / "bert_jax") == files(source / "bert_jax") | configs
    tops = {path.name.split("-")[0] for path in site.iterdir()}
    assert tops == {"bert_jax"}  # and its .dist-info: no stray `configs` or `tests`

    def python(*words):
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.check_output([sys.executable, *words], cwd=tmp_path, env=environment, text=True)

    found = python("-c", "from bert_jax.config import find_config; print(find_config('bert_tiny'))")
    assert found.strip() == str(site / "bert_jax/configs/bert_tiny.py")

    (tmp_path / "text.txt").write_text("\n\n".join(f"It is {n}. So it was {n * n}." for n in range(100)))
    overrides = (
        "data.source=text:text.txt",
        "model.vocab_size=32",
        "phases=()",
        "train.num_steps=2",
        "train.eval_batches=1",
    )
    python("-m", "bert_jax.pretrain", "--config=bert_tiny", *(f"--config.{value}" for value in overrides))
    lines = python("-m", "bert_jax.predict", "fill-mask", "--text=It [MASK] 5.").splitlines()
    assert lines[0] == "It [MASK] 5."  # the log, with the name of the checkpoint, is on standard error
    assert lines[1].startswith("  mask 1: ")
    code = "import bert_jax; print(bert_jax.load('runs/bert_tiny').features(['a', 'b']).shape)"
    assert python("-c", code) == "(2, 128)\n"
