"""Commands with the standard streams of other people's terminals, each as a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TEXT = "é ± … 日 😀 \\ud800"
COMMAND = f"""
import sys
from bert_jax import command, streams
def main():
    BEFORE
    print("{TEXT}")
    for _ in range(5):
        print("line", flush=True)
        command.log.info("log {TEXT}")
    print("result", file=open("result", "w"))
    return 3
command.run(main)
"""
SEARCHING, TRAINING = COMMAND.replace("BEFORE", ""), COMMAND.replace("BEFORE", "streams.keep_going()")


def run(folder, code, redirections="", **environment):
    """Runs the command in a shell; returns its exit code, standard output and error."""
    (folder / "command.py").write_text(code, encoding="utf-8")
    line = f'"{sys.executable}" command.py {redirections}'
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "é ± … 日 😀 \\ud800"),
        ("latin-1", "é ± \\u2026 \\u65e5 \\ud83d\\ude00 \\ud800"),
        ("ascii", "\\u00e9 \\u00b1 \\u2026 \\u65e5 \\ud83d\\ude00 \\ud800"),
        ("shift_jis", "\\u00e9 ± … 日 \\ud83d\\ude00 \\ud800"),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped_as_in_json(tmp_path, encoding, expected):
    code, out, err = run(tmp_path, SEARCHING, PYTHONIOENCODING=encoding)
    assert (code, err) == (3, b"")
    lines = out.decode(encoding).splitlines()
    assert lines[:3] == [expected, "line", f"log {expected}"]
    if encoding != "utf-8":  # in which only half a character is escaped
        assert json.loads(f'"{lines[0]}"').startswith("é ± … 日 😀")


@pytest.mark.parametrize("code", [SEARCHING, TRAINING])
def test_closed_streams_are_opened_on_nothing(tmp_path, code):
    tell = (
        "\nimport os\n"
        "for number in range(3): os.fstat(number)\n"
        "assert sys.stdin.read() == ''\n"
        "os.write(1, b'from a library')\n"
    )
    code = code.replace("def main():", "def main():" + tell.replace("\n", "\n    "))
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        (tmp_path / "result").unlink(missing_ok=True)
        assert run(tmp_path, code, closed)[0] == 3, closed
        assert (tmp_path / "result").read_text() == "result\n"


def test_a_command_ends_quietly_when_the_reader_of_its_output_is_gone(tmp_path):
    code, out, err = run(tmp_path, SEARCHING, "| true; echo ${PIPESTATUS:-}")
    assert (code, out.strip(), err) == (0, b"", b"")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "command.py"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("error_too", [False, True])
@pytest.mark.parametrize("what", ["Broken pipe", "No space left on device"])
def test_training_goes_on_when_nothing_can_be_written(tmp_path, what, error_too):
    (tmp_path / "command.py").write_text(TRAINING, encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone, pathlib.Path("/dev/full").open("wb") as full:
        out = gone if what == "Broken pipe" else full
        err = out if error_too else subprocess.PIPE
        done = subprocess.run([sys.executable, "command.py"], cwd=tmp_path, stdout=out, stderr=err)
    assert done.returncode == 3
    assert (tmp_path / "result").read_text() == "result\n"
    if not error_too:
        assert done.stderr.decode() == f"standard output: {what}; the command goes on without it.\n"


def test_output_that_is_the_result_and_cannot_be_written_is_an_error(tmp_path):
    code, _, err = run(tmp_path, SEARCHING, "> /dev/full")
    assert code == 2
    assert err.startswith(b"error: [Errno 28] No space left on device")
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("flag", ["workdir", "data_dir", "checkpoint", "output"])
@pytest.mark.parametrize(
    ("path", "shown", "encoding"),
    [(b"caf\xe9", "caf\\udce9", "utf-8"), ("café".encode(), "caf\\udcc3\\udca9", "ascii")],
)
def test_a_path_that_is_not_utf8_is_refused_by_name(tmp_path, flag, path, shown, encoding):
    code = (
        "from absl import flags\nfrom bert_jax import command\n"
        f"flags.DEFINE_string({flag!r}, None, '')\ncommand.run(lambda: print('went on'))\n"
    )
    (tmp_path / "command.py").write_text(code)
    words = [sys.executable.encode(), b"command.py", f"--{flag}=".encode() + path]
    locale = {"PYTHONUTF8": "0", "LC_ALL": "C"} if encoding == "ascii" else {}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, env=os.environ | locale)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"error: --{flag}={shown}: the path '{tmp_path}/{shown}' is not".encode())
    assert f"or this system's locale is not ({encoding}); use a folder".encode() in done.stderr
