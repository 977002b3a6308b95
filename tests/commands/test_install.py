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

    code = "from bert_jax.config import find_config; print(find_config('bert_tiny'))"
    environment = os.environ | {"PYTHONPATH": str(site)}
    found = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert found.strip() == str(site / "bert_jax/configs/bert_tiny.py")
