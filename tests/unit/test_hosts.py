import json

import pytest

from bert_jax.errors import UserError
from bert_jax.training import hosts


def everyone_says(monkeypatch, *others):
    """Stands in for the other processes: what each of them has to say."""
    monkeypatch.setattr(hosts, "gather", lambda text: [json.loads(text), *others])


def test_alone_there_is_nobody_to_disagree_with():
    hosts.require_same({"dataset_sha256": "ab"})
    with pytest.raises(UserError, match=r"^no such file$"):
        hosts.require_same({}, "no such file")


def test_the_same_everywhere(monkeypatch):
    everyone_says(monkeypatch, [None, {"jax": "1"}], [None, {"jax": "1"}])
    hosts.require_same({"jax": "1"})


def test_what_differs_is_told_everywhere_with_both_values(monkeypatch):
    theirs = {"jax": "1", "config.train.seed": "7", "dataset_sha256": "cd"}
    everyone_says(monkeypatch, [None, {"jax": "1", "dataset_sha256": "ab"}], [None, theirs])
    with pytest.raises(UserError) as raised:
        hosts.require_same({"jax": "1", "dataset_sha256": "ab"})
    assert str(raised.value) == (
        "process 2 differs from process 0: config.train.seed is '7' there and None on process 0; "
        "dataset_sha256 is 'cd' there and 'ab' on process 0."
    )


def test_a_problem_of_one_is_told_by_all(monkeypatch):
    everyone_says(monkeypatch, ["--data_dir=x holds no dataset", {}])
    with pytest.raises(UserError, match="process 1: --data_dir=x holds no dataset"):
        hosts.require_same({"jax": "1"})


def test_the_digest_of_the_code_is_the_same_twice():
    assert hosts.code_digest() == hosts.code_digest()
    assert len(hosts.code_digest()) == 16


@pytest.mark.parametrize(
    ("address", "process", "problem"),
    [
        ("here", 0, "--coordinator_address=here is not HOST:PORT; give it like 10.0.0.1:8476."),
        ("localhost:", 1, "--coordinator_address=localhost: is not HOST:PORT; give it like 10.0.0.1:8476."),
        ("localhost:1", 2, "--process_id=2 is not below --num_processes=2; they count from 0."),
    ],
)
def test_mistakes_in_the_numbering_of_processes(address, process, problem):
    with pytest.raises(UserError) as error:
        hosts._check_flags(address, 2, process)
    assert str(error.value) == problem
    hosts._check_flags("[::1]:8476", 2, 1)
