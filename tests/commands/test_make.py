"""What the variables of `make` hold reaches the commands as it is."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ANY = (
    "plain",
    'It\'s "so" [MASK]',
    "$5, $(HOME), ${HOME} or $$x `id` $(shell id) \\ #a %",
    "$(5 ( so; & | > < * ? ~ !",
    "'$'",
    "two\nlines\n\nand more",
    "tab\tand trailing blank ",
    "-n=,)(,=",
    "ü 日 😀",
)
# Variable -> the command that it is of, with what else that needs, and the arguments that it becomes.
OPTIONS = {
    "TEXT": ("predict", [], "--text="),
    "NEXT": ("predict", [], "--next="),
    "INPUT": ("predict", [], "--input="),
    "OUTPUT": ("export", [], "--output="),
    "CHECKPOINT": ("predict", [], "--checkpoint="),
    "MODE": ("predict", [], ""),
    "CONFIG": ("pretrain", [], "--config="),
    "WORKDIR": ("finetune", [], "--workdir="),
    "DATA_DIR": ("prepare", [], "--data_dir="),
    "INIT_FROM": ("finetune", [], "--config.init_from="),
    "STEP": ("inspect", [], "--step="),
    "TOPOLOGY": ("plan", [], "--topology="),
    "PROCESSES": ("launch", ["TARGET=local"], "--processes="),
    "VERB": ("launch", ["TARGET=gke"], ""),
    "WORKERS": ("test", [], "--numprocesses="),
}
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """An environment that is made already, with a Python that writes its arguments to a file."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(
        f"#!{sys.executable} -S\nimport json, sys\n"
        f"with open({str(folder / 'arguments')!r}, 'a') as file: print(json.dumps(sys.argv[1:]), file=file)\n"
    )
    python.chmod(0o755)
    (folder / ".stamp").write_text("python3\n")
    (folder / "aot").mkdir()
    (folder / "aot" / ".stamp").touch()
    return folder


def arguments(venv, *words, **environment):
    """Runs make; returns the arguments of every call of Python."""
    (venv / "arguments").unlink(missing_ok=True)
    fixed = (f"VENV={venv}", "PYTHON=python3", "ACCELERATOR=")  # or those of `make test` come
    made = subprocess.run(
        ["make", "-s", *words, *fixed, *(() if any(w.startswith("ARGS=") for w in words) else ("ARGS=",))],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))} | environment,
    )  # fmt: skip
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    return [json.loads(line) for line in (venv / "arguments").read_text().splitlines()]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_variable_is_one_word_whatever_it_holds(venv, name):
    target, needs, option = OPTIONS[name]
    for value in ANY:
        (found,) = arguments(venv, target, *needs, f"{name}={value}")
        assert [word for word in found if word == option + value] == [option + value], value
        (found,) = arguments(venv, target, *needs, **{name: value})  # from the environment
        assert option + value in found, value


def test_all_variables_of_a_command_together(venv):
    words = [f"{name}={value}" for name, value in zip(("CHECKPOINT", "TEXT", "NEXT"), ANY[1:], strict=False)]
    (found,) = arguments(venv, "predict", "MODE=next-sentence", *words)
    options = [f"--checkpoint={ANY[1]}", f"--text={ANY[2]}", f"--next={ANY[3]}"]
    assert found == ["-m", "bert_jax.predict", "next-sentence", *options]


def test_unset_variables_are_left_out_and_defaults_are_those_of_the_makefile(venv):
    assert arguments(venv, "pretrain") == [["-m", "bert_jax.pretrain", "--config=bert_tiny"]]
    assert arguments(venv, "finetune", "INIT_FROM=a") == [
        ["-m", "bert_jax.finetune", "--config.init_from=a", "--config=finetune/classification"]
    ]
    assert arguments(venv, "launch", "PROCESSES=4") == [
        ["launch/local.py", "--processes=4", "--config=bert_tiny"]
    ]
    assert [found[-1] for found in arguments(venv, "bench")] == [
        "--what=prepare", "--what=input", "--what=step"
    ]  # fmt: skip
    assert [found[-1] for found in arguments(venv, "bench", "WHAT=step *")] == ["--what=step", "--what=*"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--a=1 --b='x y' --c=\"$5\"", ["--a=1", "--b=x y", "--c="]),
        ("--d='text:$a/*.txt'\n--e=1", ["--d=text:$a/*.txt", "--e=1"]),
        ("'--f=$(HOME)' --g=it\\'s", ["--f=$(HOME)", "--g=it's"]),
    ],
)
def test_args_are_words_as_the_shell_reads_them(venv, args, words):
    (found,) = arguments(venv, "pretrain", f"ARGS={args}")
    assert found == ["-m", "bert_jax.pretrain", "--config=bert_tiny", *words]


def test_a_target_that_does_not_exist_is_named_as_it_is(venv):
    target = "t'p$u"
    words = ["make", "-s", "launch", f"TARGET={target}", f"VENV={venv}", "PYTHON=python3", "ACCELERATOR="]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert made.stderr.startswith(f"error: TARGET={target} is unknown; there are: local, tpu, gke, slurm.\n")
