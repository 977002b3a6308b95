import importlib.util
import logging
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from bert_jax import command
from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.interop.model_card import _command
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training import hosts


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command with these arguments: (exit code, stdout, stderr, resolved config or None)."""
    before = flagsaver.save_flag_values(flags.FLAGS)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    command.define_config_flags(data_dir="data_dir" not in flags.FLAGS)

    def run(*arguments, main=None):
        resolved = []
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.run(main or (lambda: resolved.append(command.resolved_config())))
        out, err = capsys.readouterr()
        return exit_.value.code, out, err, resolved[0] if resolved else None

    yield run
    flagsaver.restore_flag_values(before, flags.FLAGS)


@pytest.mark.parametrize("words", [["--config=bert_tiny"], ["--config", "bert_tiny"]], ids=str)
def test_shipped_name_with_overrides(run, words):
    code, _, err, config = run(
        *words,
        "--config.train.eval_every=7",
        "--config.optimizer.learning_rate",
        "1e-3",
        "--noconfig.data.lowercase",
    )
    assert (code, err) == (0, "")
    assert (config.train.eval_every, config.optimizer.learning_rate, config.data.lowercase) == (
        7,
        1e-3,
        False,
    )
    assert config.model.hidden_size == 128


def test_an_empty_data_dir_is_not_the_working_directory(run):
    code, _, err, _ = run("--config=bert_tiny", "--data_dir=")
    assert (code, err) == (2, "error: --data_dir is empty; give a folder, or leave it out.\n")


def test_a_bucket_needs_its_package(run, monkeypatch):
    installed = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    words = ["--config=bert_tiny", "--data_dir=gs://b/data"]
    code, _, err, _ = run(*words)
    assert (code, err) == (
        2,
        f"error: {words[1]} needs a package that is not installed: pip install gcsfs.\n",
    )
    for package in ("gcsfs", "tensorflow"):
        installed[:] = [package]
        assert run(*words)[0] == 0


@pytest.mark.parametrize("name", ["bert_base", "bert_tiny", "modern_mini", "ettin"])
def test_the_command_of_a_model_card_trains_the_same(run, name):
    config = run(f"--config={name}")[3]
    words = shlex.split(_command(config).replace("\\\n", " "))
    code, _, err, again = run(*words[words.index("bert_jax.pretrain") + 1 :])
    assert (code, err) == (0, "")
    assert again.identity() == config.identity()


COMMANDS = (
    "prepare", "pretrain", "inspect", "predict", "params", "finetune", "convert", "export", "plan",
    "benchmark",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_only_what_the_flags_need(name):
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"bert_jax.{name}", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rsplit("|")[-1].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "Flags:" in found.stdout
    assert "ml_collections" in imported
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "pyarrow", "sentencepiece"}
    assert imported & (heavy | {"tensorflow_datasets", "sklearn", "etils"}) == set()


def test_a_mistake_in_the_flags_is_found_before_the_program_is_imported(run):
    code, _, err, _ = run("--config=bert_tiny", "--config.train.seed=x", main=command.main_of("no_module"))
    assert code == 2
    assert err.startswith("error: --config.train.seed=x is not valid")


def test_probes_are_added_and_changed(run, tmp_path):
    code, _, err, config = run(
        "--config=bert_tiny", "--config.train.probes[0].file=a.tsv", "--config.train.probes[0].layer=1",
        "--config.train.probes[1].file=b.csv",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert [(probe.file, probe.layer) for probe in config.train.probes] == [("a.tsv", 1), ("b.csv", -1)]
    (tmp_path / "mine.py").write_text(
        "from bert_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.train.probes = ({'file': 'a.tsv'},)\n    return config\n"
    )
    _, _, _, config = run(f"--config={tmp_path}/mine.py", "--config.train.probes[0].pooling=cls")
    assert [(probe.file, probe.pooling) for probe in config.train.probes] == [("a.tsv", "cls")]
    whole = "--config.train.probes=({'file': 'c.tsv'},)"
    _, _, _, config = run("--config=bert_tiny", whole, "--config.train.probes[0].layer=1")
    assert [(probe.file, probe.layer) for probe in config.train.probes] == [("c.tsv", 1)]


def test_phases_are_replaced_and_single_keys_follow(run):
    single = "--config.phases[0].data.mask_rate=0.2", "--config.phases[0].num_steps=9"
    joined, apart = ("--config.phases=()",), ("--config.phases", "()")
    for words in ((*joined, *single), (*single, *joined), (*apart, *single), (*single, *apart)):
        code, _, err, config = run("--config=bert_tiny", *words)
        assert (code, err) == (0, "")
        assert config.phases == ({"data": {"mask_rate": 0.2}, "num_steps": 9},)
        assert config.train.num_steps == 9
    code, _, err, config = run("--config=bert_tiny", "--config.phases=()", "--config.train.num_steps=7")
    assert (code, err, config.phases, config.train.num_steps) == (0, "", (), 7)
    code, _, err, _ = run("--config=bert_tiny", "--config.phases=7")
    assert code == 2
    assert "config.phases[0]=7 must be a dict" in err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("probes[1].file=a", "config.train.probes[1].file: there are 0 probes, counted from 0; the next is "
         "train.probes[0]."),
        ("probes[0].fil=a", "config.train.probes[0].fil does not exist; did you mean train.probes[0].file"),
        ("probes[0].layer=x", "--config.train.probes[0].layer=x is not valid: invalid literal for int() with "
                              "base 10: 'x'; give a value of type int."),
    ],
)  # fmt: skip
def test_overrides_of_probes_that_are_wrong(run, flag, message):
    code, _, err, _ = run("--config=bert_tiny", f"--config.train.{flag}")
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_overrides_may_stand_before_the_config(run):
    code, _, err, config = run(
        "--config.train.num_steps=7", "--noconfig.data.lowercase", "--config=bert_small"
    )
    assert (code, err) == (0, "")
    assert (config.train.num_steps, config.data.lowercase, config.model.hidden_size) == (7, False, 512)


def test_a_config_file_is_run_once_and_takes_its_argument(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import pathlib\n"
        "from bert_jax.config import default_config\n"
        "def get_config(size):\n"
        f"    with pathlib.Path({str(tmp_path / 'runs')!r}).open('a') as runs:\n"
        "        runs.write(size + ' ')\n"
        "    return default_config()\n"
    )
    code, _, err, config = run("--config.train.seed=4", f"--config={file}:large")
    assert (code, err, config.train.seed) == (0, "", 4)
    assert (tmp_path / "runs").read_text() == "large "
    assert (command.config_argument(), command.config_name()) == (f"{file}:large", "mine_large")


def test_a_tilde_in_a_flag_is_the_home_of_the_user(run, monkeypatch):
    """As in `--workdir=~/runs`, where shells leave it as it is."""
    monkeypatch.setenv("HOME", "/home/ada")
    if "workdir" not in flags.FLAGS:
        flags.DEFINE_string("workdir", None, "")
    seen = []
    run("--config=bert_tiny", "--workdir=~/runs", main=lambda: seen.append(flags.FLAGS.workdir))
    assert seen == ["/home/ada/runs"]


def test_path_with_overrides(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "'''My run.'''\n"
        "from bert_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.train.num_steps = 33\n"
        "    return config\n"
    )
    code, _, err, config = run(f"--config={file}", "--config.train.seed=4")
    assert (code, err) == (0, "")
    assert (config.train.num_steps, config.train.seed) == (33, 4)
    assert (command.config_argument(), command.config_name()) == (str(file), "mine")


TINY = "--config=bert_tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing; shipped configs: bert_base, bert_base_24h, bert_large,"),
        (["--config"], "--config has no value; give a shipped config's name or a path."),
        (
            ["--config.train.num_steps=3"],
            "--config is missing; shipped configs: bert_base, bert_base_24h, bert_large,",
        ),
        (
            ["--config=bert_tinny"],
            "--config=bert_tinny: there is no config of this name; did you mean bert_tiny",
        ),
        (["--config", "bert_tinny"], "did you mean bert_tiny"),
        (["--config=nowhere.py"], "--config=nowhere.py: there is no such file"),
        (
            [TINY, "--config.train.num_stepz=3"],
            "config.train.num_stepz does not exist; did you mean train.num_steps",
        ),
        ([TINY, "--config.num_steps=3"], "config.num_steps does not exist; did you mean train.num_steps?"),
        ([TINY, "--config.trian.num_steps=3"], "did you mean train.num_steps"),
        (
            [TINY, "--config.train.num_steps=many"],
            "--config.train.num_steps=many is not valid: ",
        ),
        (
            [TINY, "--config.train.num_steps=1.5"],
            "--config.train.num_steps=1.5 is not valid: ",
        ),
        (
            [TINY, "--config.train.num_steps="],
            "--config.train.num_steps= is not valid: ",
        ),
        ([TINY, "--config.train.num_steps"], "Missing value for flag --config.train.num_steps"),
        (
            [TINY, "--config.optimizer.learning_rate=fast"],
            "--config.optimizer.learning_rate=fast is not valid: ",
        ),
        (
            [TINY, "--config.data.lowercase=maybe"],
            "--config.data.lowercase=maybe is not valid: ",
        ),
        ([TINY, "--config.train=5"], "--config.train=5 is not valid: "),
        (["--config=bert_small", "--config.train.num_steps=0"], "train.num_steps=0 must be at least 1."),
        (
            [TINY, "--config.data.mask_rate=2"],
            "data.mask_rate=2.0 must be above 0 and below 1.",
        ),
        (
            [TINY, "--config.model.hidden_size=100", "--config.model.num_attention_heads=3"],
            "is not divisible by",
        ),
        (
            [TINY, "--config.data.max_seq_length=4096"],
            "data.max_seq_length=4096 is longer than model.max_position",
        ),
        (
            [TINY, "--confg.train.num_steps=3"],
            "Unknown command line flag 'confg.train.num_steps'; --help lists the flags",
        ),
        ([TINY, "--data_dirr=x"], "Unknown command line flag 'data_dirr'. Did you mean: data_dir"),
        ([TINY, "bert_base"], "'bert_base' is not a flag; flags look like --name=value"),
    ],
    ids=str,
)
def test_bad_command_line_is_one_line_and_exit_code_2(run, arguments, message):
    code, out, err, config = run(*arguments)
    assert (code, out, config) == (2, "", None)
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_exit_codes(run):
    def main_that_raises(error):
        def main():
            raise error

        return main

    assert run(TINY, main=lambda: 75)[0] == 75
    assert run(TINY, main=lambda: None)[0] == 0
    code, _, err, _ = run(
        TINY, main=main_that_raises(UserError("data.source='x' is not there; give another."))
    )
    assert (code, err) == (2, "error: data.source='x' is not there; give another.\n")
    code, _, err, _ = run(TINY, main=main_that_raises(KeyboardInterrupt))
    assert (code, err) == (130, "")
    with pytest.raises(ZeroDivisionError):  # a bug is not the user's mistake: its trace must be seen
        command.run(lambda: 1 // 0)


def test_log_goes_to_stdout(run):
    def main():
        logging.getLogger("bert_jax").info("step %d", 3)

    _, out, err, _ = run(TINY, main=main)
    assert (out, err) == ("step 3\n", "")


def test_what_tensorstore_says_after_a_failed_save_is_left_out_and_nothing_else(run):
    class Dropped:
        def __init__(self, message):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    def main():
        Dropped("Event loop is closed")
        Dropped("Event loop is open")

    err = run(TINY, main=main)[2]
    assert err.splitlines()[-1] == "RuntimeError: Event loop is open"
    assert err.count("RuntimeError: ") == 1


def test_command_as_people_run_it():
    def params(*arguments):
        words = [sys.executable, "-m", "bert_jax.params", *arguments]
        return subprocess.run(words, capture_output=True, text=True)

    lecture = params("--config=bert_base", "--like-lecture")
    assert lecture.stdout.endswith("= 107 M (with the layers unrounded 108.4 M)\n")
    assert (lecture.returncode, lecture.stderr) == (0, "")
    help_ = params("--help")
    assert (help_.returncode, help_.stderr) == (0, "")
    assert "--data_dir" not in help_.stdout  # which it does not read
    assert all(word in help_.stdout for word in ("--like_lecture", "--config", "--devices", "bert_base"))


@pytest.mark.parametrize("config", [Config(), FinetuneConfig()], ids=["pretraining", "fine-tuning"])
def test_processes_of_a_training_command_compare_their_whole_config(monkeypatch, config):
    compared, order = {}, []
    monkeypatch.setattr(hosts, "connect", lambda: order.append("connect"))
    monkeypatch.setattr(
        hosts, "require_same", lambda facts: compared.update(facts) or order.append("compare")
    )
    set_up = command.Training(config, {"data": "ab"}, lambda: order.append("work") or 75)
    assert command.train(lambda: order.append("set up") or set_up) == 75
    assert order == ["connect", "set up", "compare", "work"]
    assert compared.keys() > {f"config.{key}" for key in config.flat()} | {"data", "jax"}
    assert compared["config.optimizer.learning_rate"] == repr(config.optimizer.learning_rate)
