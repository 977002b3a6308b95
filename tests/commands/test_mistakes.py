"""Every mistake ends at once, in one line that names what is wrong, and spoils nothing that was there."""

import errno
import os
import pathlib
import re
import runpy
import shutil
import sys

import grain  # noqa: F401  its flags are defined when it is imported, and must stay
import numpy as np
import pytest
import tokenizers
from absl import flags

from bert_jax import command
from bert_jax.corpus.shards import ShardWriter
from bert_jax.corpus.tokenizer import SPECIAL_PIECES

WORDS = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi"]
GET_CONFIG = """
from bert_jax.config import default_config

def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=14,
        max_position_embeddings=16,
    )
    config.data.update(
        source="text:text", tokenizer="wordpiece:vocab", held_out_fraction=0.1, global_batch_size=8,
        max_seq_length=16,
    )
    config.optimizer.update(warmup_steps=1)
    config.train.update(num_steps=2, log_every=1, eval_every=2, eval_batches=1, checkpoint_every=1)
    CHANGE
    return config
"""


def library_file(pieces):
    """A tokenizer.json."""
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    return tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary)).to_str()


FILES = {
    "vocab": "\n".join([*SPECIAL_PIECES, *WORDS, "."]),
    "without_specials": "\n".join(WORDS),
    "vocab_twice": "\n".join([*SPECIAL_PIECES, "ba", "ba"]),
    "no.model": b"\x00\x01 no model",
    "bare": f'#!/bin/sh\nexec {sys.executable} -S "$@"\n',  # a Python without packages
    "words.json": library_file([*SPECIAL_PIECES, *WORDS, ".", "!"]),
    "no_mask.json": library_file([*SPECIAL_PIECES[:4], *WORDS]),
    "blank": "\n\n \n",
    "latin1": "Ba dé.\n\nBa d".encode() + b"\xe9 ba.\n",
    "body.jsonl": '{"text": "ba de."}\n{"body": "ba de."}\n',
    "no.jsonl": '{"text": "ba de."}\nba de.\n',
    "one_document": "\n".join(f"{a} {b} {c}." for a in WORDS for b in WORDS for c in WORDS),
    "titles": "\n\n".join(f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS),
    "mine.py": GET_CONFIG.replace("CHANGE", ""),
    "syntax.py": "def get_config(:\n",
    "nothing.py": "config = 1\n",
    "none.py": GET_CONFIG.replace("CHANGE", "").replace("return config", ""),
    "fails.py": GET_CONFIG.replace("CHANGE", "config.train.steps.num = 1"),
    "imports.py": "import no_such_module\n",
    "typo.py": GET_CONFIG.replace("CHANGE", "config.train.num_step = 5"),
    "part.py": "import ml_collections as m\ndef get_config(): return m.ConfigDict({'train': {'seed': 2}})",
    "type.py": GET_CONFIG.replace("CHANGE", "config.train.num_steps = 'five'"),
}
MINE = "--config=mine.py --data_dir=data --workdir=run"
PRETRAIN, PREPARE, INSPECT = (
    f"pretrain {MINE}",
    "prepare --config=mine.py --data_dir=new",
    "inspect --config=mine.py",
)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def replace_by_heldout(path):
    shutil.copy(path.parents[1] / "heldout" / path.name, path)


# name of a damaged copy -> what is copied, the file in it, what happens to it
DAMAGES = {
    "data_cut": ("data", "*/documents-train*", cut),
    "data_flip": ("data", "*/documents-train*", flip),
    "data_gone": ("data", "*/documents-train*", pathlib.Path.unlink),
    "data_manifest": ("data", "*/manifest.json", cut),
    "data_other": ("data", "*/manifest.json", lambda path: path.write_text('{"format": 1}')),
    "data_lengths": ("data", "*/train/sentence_lengths.bin", flip),
    "data_index": ("data", "*/train/*.bin", replace_by_heldout),
    "data_counts": ("data", "*/train/unigram_counts.npy", cut),
    "data_vocab": ("data", "*/tokenizer/vocab.txt", cut),
    "run_newest": ("run", "checkpoints/2/meta/metadata", flip),
    "run_all": ("run", "checkpoints/*/checksums.json", cut),
    "run_foreign": ("run", "config.json", lambda path: path.write_text('{"model_type": "bert"}')),
}


def run(*words):
    """Runs a command in this process, as it is: returns its exit code."""
    verb, *arguments = words
    known = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [verb, *arguments])
        # They are of a whole process, and this one runs many commands.
        patch.setattr("bert_jax.training.hosts.connect", lambda: None)
        patch.setattr("bert_jax.pretrain.lock", lambda _: None)
        patch.setattr("bert_jax.finetune.lock", lambda _: None)
        try:
            runpy.run_module(f"bert_jax.{verb}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code
        finally:
            flags.FLAGS.remove_flag_values(dict.fromkeys(set(flags.FLAGS) - known))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files, a run of two steps with its dataset, which shows that they are good, and damaged copies."""
    folder = tmp_path_factory.mktemp("mistakes")
    rng = np.random.default_rng(0)
    texts = [". ".join(" ".join(rng.choice(WORDS, 6)) for _ in range(4)) + "." for _ in range(60)]
    for name, content in {**FILES, "text": "\n\n".join(texts)}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "bare").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*PRETRAIN.split()) == 0
    for name, (original, pattern, damage) in DAMAGES.items():
        shutil.copytree(folder / original, folder / name)
        paths = list((folder / name).glob(pattern))
        assert paths, pattern
        for path in paths:
            damage(path)
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def contents(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "digests.json"  # a cache
    }


ONE_DOCUMENT = "data.source=text:one_document data.held_out_fraction=0"
BENCHMARK = "--config=mine.py --data_dir=data --peer=transformers"
MISTAKES = [
    # the command line
    ("pretrain", "--config is missing; shipped configs: bert_base"),
    ("pretrain --config=bert_tinny", "--config=bert_tinny: ", "did you mean bert_tiny"),
    ("pretrain --config=mine", "--config=mine: ", "A path to a .py file works too"),
    ("pretrain --config=yours.py", "--config=yours.py: there is no such file"),
    (f"{PRETRAIN} bert_base", "'bert_base' is not a flag"),
    (f"{PRETRAIN} --wordkir=x", "'wordkir'", "Did you mean: workdir"),
    (f"{PRETRAIN} train.num_step=5", "config.train.num_step does not exist", "train.num_steps"),
    (f"{PRETRAIN} train.num_steps=five", "--config.train.num_steps=five ", "of type int"),
    (f"{INSPECT} --step=-1", "--step=-1 ", "is not a non-negative integer"),
    (f"{INSPECT} --data_dir=data --step=2", "--step=2 is not a step of the run, which ends at 2"),
    # the config file
    ("pretrain --config=syntax.py", "--config=syntax.py: SyntaxError", "line 1"),
    ("pretrain --config=nothing.py", "--config=nothing.py must define get_config()"),
    ("pretrain --config=none.py", "--config=none.py must define get_config() that returns a ConfigDict"),
    ("pretrain --config=fails.py", "--config=fails.py, line 16: AttributeError", "steps"),
    ("pretrain --config=imports.py", "--config=imports.py, line 1: ModuleNotFoundError", "no_such_module"),
    ("pretrain --config=typo.py", "config.train.num_step does not exist; did you mean train.num_steps"),
    ("pretrain --config=type.py", "--config=type.py, line 16: TypeError", "num_steps", "five"),
    *(
        (f"pretrain --config=part.py --config.{key}=2", f"config.{key} cannot be set: --config=part.py ")
        for key in ("mesh.fsdp", "train.eval_every", "phases[0].data.mask_rate", "train.probes[0].layer")
    ),
    # sizes that do not fit together, or the devices
    (f"{PRETRAIN} model.num_attention_heads=3", "model.hidden_size=8", "model.num_attention_heads=3"),
    (f"{PRETRAIN} data.max_seq_length=32", "data.max_seq_length=32", "max_position_embeddings=16"),
    (f"{PRETRAIN} data.global_batch_size=12", "data.global_batch_size=12 ", "a multiple of 8"),
    (f"{PRETRAIN} train.gradient_accumulation_steps=3", "data.global_batch_size=8 ", "steps=3"),
    (f"{PRETRAIN} train.gradient_accumulation_steps=2", "data.global_batch_size=8 ", "multiple of 16"),
    (f"{PRETRAIN} mesh.data=3", "mesh.data=3", "do not fit 8 devices"),
    (f"{PRETRAIN} data.mask_rate=15", "data.mask_rate=15.0 must be above 0 and below 1"),
    (f"{PRETRAIN} optimizer.name=adam", "optimizer.name='adam' is unknown", "adamw"),
    (f"{PRETRAIN}2 optimizer.schedule=trapezoid optimizer.decay_steps=2", "decay_steps=2 is more than the 1"),
    # text
    (f"{PREPARE} data.source=text:blank", "data.source='text:blank' has no text"),
    (f"{PREPARE} data.source=text:no/*.txt", "data.source='text:no/*.txt' matches no file"),
    (f"{PREPARE} data.source=text:run", "it is a directory, use text:run/*"),
    (f"{PREPARE} data.source=csv:text", "data.source='csv:text' is not a source: use corpus:"),
    (f"{PREPARE} data.source=text:latin1", "latin1: byte 13 is not", "data.invalid_utf8=skip"),
    (f"{PREPARE} data.invalid_utf8=drop", "data.invalid_utf8='drop' is unknown; use one of error, skip"),
    (f"{PREPARE} data.source=jsonl:body.jsonl", "body.jsonl, line 2", "(found: body)", "data.text_field"),
    (f"{PREPARE} data.source=jsonl:no.jsonl", "no.jsonl, line 2: not valid JSON", "text:GLOB"),
    (f"{PREPARE} data.source=tfds:imdb_review", "tfds:imdb_review", "did you mean imdb_reviews"),
    (f"{PREPARE} data.source=tfds:imdb_reviews", "tfds:imdb_reviews'", "not prepared on this machine"),
    (f"{PRETRAIN}2 data.source=text:titles", "data.second_objective='next_sentence'", "=none"),
    (f"{PRETRAIN}2 {ONE_DOCUMENT}", "is 1 document: 0.0% of its sentence pairs", "nothing to learn", "=none"),
    (f"{PREPARE} model.vocab_size=1", "model.vocab_size=1 must be at least 2"),
    (f"{PREPARE} --beam_options='-x", "--beam_options='-x is no list of options (No closing quotation)"),
    # weights of sources
    (f"{PREPARE} data.source=text:text@-1,corpus:@2", "'text:text@-1': the weight -1 is no decimal"),
    (f"{PREPARE} data.source=text:text@nan,corpus:@2", "'text:text@nan': the weight nan is no decimal"),
    (f"{PREPARE} data.source=text:text@0,corpus:@0", "all weights are 0; make at least one of them positive"),
    (f"{PREPARE} data.source=text:text@1,corpus:", "data.source: 'corpus:' has no weight, but another"),
    (f"{PREPARE} data.source=text:text@1,text:text@2", "data.source names 'text:text' twice"),
    (f"{PREPARE} data.source=text:text@1,text:no@2", "data.source='text:no' matches no file"),
    (f"{PREPARE} data.source=text:text@ten", "data.source='text:text@ten' matches no file"),
    (
        f"{PRETRAIN} --config.phases[0].num_steps=2 --config.phases[0].data.source=text:other",
        "phases[0]: data.source='text:other' names other sources than the run", "the weights only",
    ),
    # tokenizers
    (f"{PREPARE} data.tokenizer=wordpiece:none", "data.tokenizer='wordpiece:none'", "no such file"),
    (f"{PREPARE} data.tokenizer=wordpiece:without_specials", "specials' has no piece [PAD], [UNK]"),
    (f"{PREPARE} data.tokenizer=wordpiece:vocab_twice", "vocab_twice': line 7 ('ba')", "repeated"),
    (f"{PREPARE} data.tokenizer=sentencepiece:no.model", "sentencepiece:no.model' is not a Sentence"),
    (f"{PREPARE} data.tokenizer=tokenizer_json:none", "'tokenizer_json:none'", "no such file"),
    (f"{PREPARE} data.tokenizer=tokenizer_json:vocab", "vocab' is not a file of the tokenizers library"),
    (f"{PREPARE} data.tokenizer=tokenizer_json:no_mask.json", "no_mask.json' has no mask_token ([MASK] or"),
    (f"{PREPARE} data.tokenizer=tokenizer_json:words.json", "has 15 pieces, but model.vocab_size=14"),
    (f"{PREPARE} data.tokenizer=byte_bpe", "model.vocab_size=14 is too small", "use at least 261"),
    (f"{PREPARE} data.tokenizer=words", "data.tokenizer='words' is unknown; use unigram, bpe"),
    (f"{PREPARE} model.vocab_size=13", "has 14 pieces, but model.vocab_size=13: set it to 14"),
    (f"{PREPARE} model.vocab_size=9999", "14 pieces, but model.vocab_size=9999: set it to 14"),
    (
        f"{PREPARE} data.tokenizer=bpe model.vocab_size=9999",
        "model.vocab_size=9999 is more than this text can fill: use at most ",
    ),
    # datasets
    ("prepare --config=mine.py --data_dir=vocab", "--data_dir=vocab cannot be written", "give another"),
    ("prepare --config=mine.py --data_dir=/proc/new", "--data_dir=/proc/new cannot be written"),
    *(
        (f"{INSPECT} --data_dir={name}", f"dataset {name}/text-wordpiece-", *fragments, "delete that folder")
        for name, *fragments in (
            ("data_cut", "documents-train", "cannot be read"),
            ("data_flip", "documents-train", "Corrupted"),
            ("data_gone", "documents-train", "No such file"),
            ("data_manifest", "manifest.json is not"),
            ("data_other", "manifest.json is not"),
            ("data_index", "train does not fit manifest.json"),
            ("data_counts", "train/unigram_counts.npy cannot be read"),
            ("data_vocab", "tokenizer/vocab.txt has no piece"),
        )
    ),
    (f"{INSPECT} --data_dir=data_lengths", "the index in data_lengths/", "is damaged; delete its dataset"),
    (f"{PRETRAIN}3 --data_dir=data_flip", "dataset data_flip/", "Corrupted", "run prepare again"),
    # workdirs and checkpoints
    (f"{PRETRAIN} train.seed=5", "run holds another run: train.seed is 0 there and 5 here"),
    (f"{PRETRAIN} --workdir=vocab", "vocab cannot be written: File exists; give another"),
    (f"{PRETRAIN} --workdir=/proc/run", "--workdir=/proc/run cannot be written"),
    (f"{PRETRAIN} --workdir=run_foreign", "run_foreign/config.json is not a run's config.json"),
    (f"{PRETRAIN} --workdir=run_all", "every checkpoint in ", "run_all/checkpoints is damaged"),
    (f"{PRETRAIN}4 init_from=nowhere", "init_from: there is no checkpoint in ", "nowhere"),
    (f"{PRETRAIN}4 init_from=run_newest", "run_newest/checkpoints/2 is damaged", "also ", "/checkpoints/1"),
    (
        f"{PRETRAIN}4 init_from=run model.intermediate_size=16",
        "holds another network: model.intermediate_size is 8 there and 16 here",
    ),
    # predict (its own flags are tested beside it)
    ("predict fill-mask --text=[MASK] --checkpoint=nowhere", "no checkpoint in ", "nowhere"),
    ("predict fill-mask --text=[MASK] --checkpoint=vocab", "no checkpoint in ", "vocab"),
    ("predict fill-mask --text=[MASK] --checkpoint=run_newest", "metadata has changed", "/checkpoints/1"),
    ("predict fill-mask --text=ba --checkpoint=run", "'ba' has no [MASK]"),
    ("predict next-sentence --input=vocab --next=ba --checkpoint=run", "--next goes with --text"),
    (f"predict fill-mask --checkpoint=run --text=[MASK]{'.' * 20}", "23 tokens", "data.max_seq_length=16"),
    ("predict fill-mask --text=[MASK] --layer=1", "--layer=1 has no effect on fill-mask; it is for feat"),
    ("predict next-sentence --text=ba --next=ba --output=x", "--output=x has no effect", "for features and"),
    ("predict features --text=ba --next=ba --output=x", "--next=ba has no effect on features; it is for nex"),
    ("finetune --config=finetune/trec --config.model.hidden_size=8", "the network is that of init_from"),
    # benchmark
    (f"benchmark {BENCHMARK} --peer_python=no/such", "--peer_python=no/such cannot be run", "give a Python"),
    *(
        (f"benchmark {flag} --what={what}", f"{flag} has no effect on --what={what}; it is for {takers}.")
        for flag, what, takers in (
            ("--peer=transformers", "index", "--what=step --peer=transformers and --what=gpu"),
            ("--rows=base", "step", "--what=prepare and --what=step --peer=transformers and --what=gpu"),
            ("--copies=3", "gpu", "--what=prepare"),
        )
    ),
    (f"benchmark {BENCHMARK} --peer_python=./bare", "has no torch and no transformers", "bert_jax[peer]"),
    ("finetune --config=bert_tiny", "bert_tiny is a config of pretraining, and this command takes one of"),
    ("pretrain --config=finetune/trec", "is a config of fine-tuning", "takes one of pretraining: bert_base"),
    ("finetune --config=finetune/glue:mrcp", "there is no such task; use one of cola, sst2, mrpc"),
    ("finetune --config=finetune/trec", "init_from: there is no checkpoint in"),
    ("finetune --config=finetune/trec --config.task.name=trek", "task.name='trek' is unknown; use one of"),
    ("finetune --config=finetune/trec --config.train.num_steps=5", "num_steps=5 has no effect in fine-"),
    ("finetune --config=finetune/trec --config.train.hidden_dropout=0", "did you mean task.hidden_dropout"),
    ("finetune --config=finetune/trec --data_dir=x", "flag 'data_dir'; --help lists the flags"),
    ("predict clasify --text=ba --checkpoint=run", "features, classify, answer, tag, not 'clasify'"),
    ("predict classify --text=ba --checkpoint=run", "is a pretraining checkpoint; fine-tune it first"),
    ("predict features --text=ba --checkpoint=run --output=x --pooling=max", "--pooling=max ", "mean|cls"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "fragments"), [(line, rest) for line, *rest in MISTAKES], ids=[line for line, *_ in MISTAKES]
)
def test_a_mistake_is_one_line_and_spoils_nothing(folder, capfd, line, fragments):
    before = contents(folder)
    code = run(*(f"--config.{word}" if re.match(r"[a-z0-9_.]+=", word) else word for word in line.split()))
    err = capfd.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before
    assert not list(folder.rglob(".*building*"))


def test_a_workdir_is_not_claimed_by_a_run_that_could_not_start(folder):
    assert run(*f"{PRETRAIN}5 --config.init_from=nowhere".split()) == 2
    assert not (folder / "run5" / "config.json").exists()


def test_the_newest_good_checkpoint_is_used(tmp_path, capfd):
    workdir = shutil.copytree("run_newest", tmp_path / "run")
    assert run(*f"{PRETRAIN} --workdir={workdir}".split()) == 0
    log = capfd.readouterr().out
    assert f"checkpoint 2 is damaged and not used: {workdir}/checkpoints/2/meta/metadata has changed" in log
    assert "resumed at step 1 of 2" in log


def test_broken_text_is_skipped_and_counted(capfd):
    source = "--config.data.source=text:text,text:latin1 --config.data.invalid_utf8=skip"
    assert run(*f"{PREPARE} {source}".split()) == 0
    out, err = capfd.readouterr()
    assert "left out 1 lines or records that are not UTF-8 (data.invalid_utf8=skip)" in out
    assert "dataset_sha256: " in out
    assert err == ""


def test_text_that_cannot_teach_is_told_by_prepare_and_where_a_run_resumes(capfd, monkeypatch):
    """As for a run of a version that did not look."""
    words = [f"--config.{word}" for word in ONE_DOCUMENT.split()]
    warning = (
        "the text to train on is 1 document: 0.0% of its sentence pairs are NotNext (usually half), so next "
    )
    assert run(*PREPARE.split(), *words) == 0
    assert warning in capfd.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("bert_jax.pretrain.obstacles", lambda *_: ())
        assert run(*f"{PRETRAIN}6".split(), *words) == 0
    assert warning not in capfd.readouterr().out
    assert run(*f"{PRETRAIN}6".split(), *words) == 0
    out, err = capfd.readouterr()
    assert out.index(warning) < out.index("resumed at step 2 of 2")
    assert err == ""


def test_a_corpus_that_must_be_downloaded_where_there_is_no_network(capfd, monkeypatch):
    monkeypatch.setenv("BERT_JAX_WIKIPEDIA_MIRROR", "http://127.0.0.1:9")
    assert run(*["pretrain", "--config=bert_base", "--data_dir=data", "--workdir=other"]) == 2
    line = (
        r"error: data\.source='wikipedia:en' is not in data/downloads, and http://127\.0\.0\.1:9/enwiki/ "
        r"cannot be downloaded \(Connection refused\); check the network .* it goes on where it was\.\n"
    )
    assert re.fullmatch(line, capfd.readouterr().err)


def test_no_space_for_a_dataset(folder, capfd, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "add", full)
    assert run(*f"prepare --config=mine.py --data_dir={folder}/full".split()) == 2
    err = capfd.readouterr().err
    assert err.startswith(
        f"error: --data_dir={folder}/full cannot be written ([Errno 28] No space left on device)"
    )
    assert err.count("\n") == 1
    assert {path.name for path in (folder / "full").iterdir()} <= {"digests.json"}


def test_no_space_for_anything_else(capfd, monkeypatch):
    def main():
        with open("/dev/full", "w") as file:
            file.write("a row of metrics")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as exit_:
        command.run(main)
    assert exit_.value.code == 2
    assert capfd.readouterr().err.startswith("error: [Errno 28] No space left on device; correct this")
