import numpy as np
import pytest

from bert_jax.corpus.index import FILES, Index, IndexWriter, storable
from bert_jax.errors import UserError


def write(directory, documents):
    with IndexWriter(directory) as writer:
        for lengths in documents:
            writer.add(np.array(lengths, np.uint16), np.array([len(lengths)]))
    return Index.open(directory)


def test_what_is_written_is_read_back(tmp_path):
    index = write(tmp_path / "train", [[3, 5], [7], [1, 1, 1]])
    np.testing.assert_array_equal(index.sentence_lengths, [3, 5, 7, 1, 1, 1])
    np.testing.assert_array_equal(index.sentence_starts, [0, 2, 3, 6])
    np.testing.assert_array_equal(index.token_starts, [0, 8, 15, 18])
    assert (index.num_documents, index.num_sentences, index.num_tokens) == (3, 6, 18)
    assert isinstance(index.sentence_lengths, np.memmap)
    assert index.sentence_lengths.dtype == np.uint16


def test_in_memory_and_on_disk_are_the_same(tmp_path):
    on_disk = write(tmp_path, [[3, 5], [7], [], [65_535]])
    in_memory = Index.from_lengths(np.array([3, 5, 7, 65_535]), np.array([2, 1, 0, 1]))
    for field in FILES:
        np.testing.assert_array_equal(getattr(on_disk, field), getattr(in_memory, field))
        assert getattr(on_disk, field).dtype == getattr(in_memory, field).dtype


def test_sentences_too_long_for_the_type_are_stored_in_pieces():
    np.testing.assert_array_equal(storable(np.array([4, 0, 65_536, 131_070])), [4, 65_535, 1, 65_535, 65_535])


def test_a_split_without_documents(tmp_path):
    index = write(tmp_path, [])
    assert (index.num_documents, index.num_sentences, index.num_tokens) == (0, 0, 0)


@pytest.mark.parametrize("file", ["sentence_lengths.bin", "sentence_starts.bin", "token_starts.bin"])
def test_a_cut_or_missing_file_is_a_user_error(tmp_path, file):
    write(tmp_path, [[3, 5], [7, 2]])
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="delete its dataset, run prepare again"):
        Index.open(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="delete its dataset, run prepare again"):
        Index.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="delete its dataset, run prepare again"):
        Index.open(tmp_path)


@pytest.mark.parametrize("file", ["sentence_lengths.bin", "sentence_starts.bin", "token_starts.bin"])
def test_a_changed_byte_anywhere_is_found(tmp_path, file):
    write(tmp_path, [[3, 5], [], [7, 2], [1]])
    content = (tmp_path / file).read_bytes()
    for position in range(len(content)):
        (tmp_path / file).write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(UserError, match="is damaged; delete its dataset"):
            Index.open(tmp_path)
