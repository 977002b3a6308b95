"""Token classification: a tag for every word, e.g. of named entities (Devlin et al., 2019, section 5.3)."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model import objectives
from bert_jax.tasks.columns import TAG, has_columns, has_words_alone, read_columns
from bert_jax.tasks.downstream import SPECIALS, Downstream, Encoded, HubHead, Outputs, Predictions
from bert_jax.tasks.input import read_lines, suffix_of
from bert_jax.tasks.records import Record, read_records, text_column
from bert_jax.tasks.tables import confusion, scores_by_class

NOT_A_TAG = "is not a tag of IOB or BIOES (O, B-TYPE, I-TYPE, E-TYPE, S-TYPE)"
log = logging.getLogger("bert_jax")
LARGEST_CONFUSION = 24  # entity types; the report has no table of confusion for more


class Sentence(NamedTuple):
    words: list[str]
    tags: list[str] | None  # IOB2, one for each word
    place: str  # of its first line

    @property
    def split_key(self) -> str:
        return " ".join(self.words)

    def display_fields(self) -> dict[str, Any]:
        return {"tokens": self.words} | ({} if self.tags is None else {"tags": self.tags})


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Converts the tags of a sentence to IOB2: B- on an entity's first word, I- on its others, else O.

    Reads IOB1 (where B- only separates an entity from one of the same type before it; Ramshaw and Marcus,
    1995), IOB2, BIOES and BILOU. Entities begin where CoNLL's scorer begins them, also after transitions
    that the scheme forbids.

    Args:
        tags: O, or a letter of B I E S L U, a hyphen, and a type.

    Source: startOfChunk of conlleval (Tjong Kim Sang and De Meulder, 2003).
    """
    result = []
    for before, tag in zip(["O", *tags], tags, strict=False):
        begins = tag[0] in "BSU" or before[0] in "OESLU" or before[2:] != tag[2:]
        result.append(tag if tag == "O" else ("B" if begins else "I") + tag[1:])
    return result


class TokenClassification(Downstream):
    """Named entities and other tags of words.

    The columns `data.text` and `data.label` of JSONL and TFDS hold lists, of words and of tags.
    """

    name = "token_classification"
    verb = "tag"
    metrics = ("f1", "precision", "recall", "token_accuracy")
    frozen = True
    per_token = True
    hub = HubHead("ForTokenClassification", "token-classification")
    too_long = "words are longer than data.max_seq_length"

    def read(self, source: str, key: str, labelled: bool = True) -> list[Sentence]:
        """Reads sentences of tfds:NAME or FILE.jsonl, or columns (see `read_columns`) of any other file."""
        if source.startswith("tfds:") or suffix_of(source) == ".jsonl":
            sentences = self._sentences(read_records(source, key), labelled)
        else:
            sentences = list(_column_sentences(read_lines(source, key, "examples"), source, labelled))
            if not labelled:
                log.info(
                    "%s=%s: read as columns of words; texts, one a line, have the suffix .txt", key, source
                )
        if not any(sentence.words for sentence in sentences):
            raise UserError(f"{key}={source} has no words.")
        return sentences

    def from_lines(self, lines: list[str], source: str) -> list[Sentence | None]:
        """Makes a sentence of each line, or reads the lines as columns if they have tags in the last.

        Raises:
            UserError: also for a column of words alone, which could be texts of one word.
        """
        if has_columns(lines):
            log.info("%s: read as columns of words and tags", source)
            return [*_column_sentences(lines, source, labelled=False)]
        if has_words_alone(lines):
            raise UserError(
                f"{source} has one word a line and blank lines between; give it the suffix .conll to read it "
                "as a column of words, or write one sentence a line."
            )
        return super().from_lines(lines, source)

    def _sentences(self, records: list[Record], labelled: bool) -> list[Sentence]:
        places = [record.place for record in records]
        all_words = text_column(records, self._data.text, "data.text", lists=True)
        if not labelled:
            return [Sentence(words, None, place) for words, place in zip(all_words, places, strict=True)]
        cells = text_column(records, self._data.label, "data.label", lists=True)
        all_tags = [[tag.strip() for tag in tags] for tags in cells]
        for place, words, tags in zip(places, all_words, all_tags, strict=True):
            if len(words) != len(tags):
                raise UserError(f"{place} has {len(words)} words and {len(tags)} tags.")
            if wrong := [tag for tag in tags if not TAG.fullmatch(tag)]:
                raise UserError(f"{place}: {wrong[0]!r} in data.label={self._data.label!r} {NOT_A_TAG}.")
        return [Sentence(*values) for values in zip(all_words, map(to_iob2, all_tags), places, strict=True)]

    def example(self, text: str, second: str | None = None) -> Sentence:
        """Splits a text into words at white space; separate punctuation as in the training data."""
        if second is not None:
            raise UserError("this checkpoint was fine-tuned on single sentences, not pairs.")
        if not (words := text.split()):
            raise UserError(f"the text {text!r} has no words.")
        return Sentence(words, None, "")

    def _infer_label_info(self, train: Sequence[Sentence]) -> dict[str, Any]:
        """Returns O, and B- and I- of every type in the training examples, or what data.labels names."""
        found = sorted({tag for sentence in train for tag in sentence.tags or []})
        if len(found) < 2:
            raise UserError(
                f"every word has the tag {', '.join(found)!r}; nothing can be learned from one tag. Is it "
                "the right column?"
            )
        named = self._data.class_names
        if wrong := [label for label in named if not re.fullmatch("O|[BI]-.+", label)]:
            raise UserError(f"data.labels: {wrong[0]!r} is not a tag of IOB2; use e.g. O,B-PER,I-PER.")
        types = sorted({tag[2:] for tag in found} - {""})
        return {"labels": named or ["O", *(f"{letter}-{kind}" for kind in types for letter in "BI")]}

    def _check(self, example: Sentence) -> None:
        for word, tag in zip(example.words, example.tags or [], strict=False):
            if tag not in self.labels:
                raise UserError(
                    f"{example.place}: the tag {tag!r} of {word!r} is unknown; the tags are "
                    f"{', '.join(self.labels[:20])}. Correct the file, or name all tags in data.labels."
                )

    def encode(self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_seq_length: int) -> Encoded:
        """Tokenises words one by one; the first token of each has its label, the others have -1.

        A word without tokens, e.g. a zero-width space, becomes [UNK]. A sentence that is longer than a row
        continues in another sequence, and a word that is longer than a row is truncated, so that every word
        has a first token. Words without a tag have label 0, so that `decode` finds them.
        """
        room = max_seq_length - (SPECIALS - 1)
        words = [
            tokenizer.gap * (number > 0) + word
            for sentence in examples
            for number, word in enumerate(sentence.words)
        ]
        tokens, lengths = tokenizer.encode_flat(words)
        nothing = lengths == 0
        tokens = np.insert(tokens, (np.cumsum(lengths) - lengths)[nothing], tokenizer.unk_id)
        lengths = np.maximum(lengths, 1)
        in_word = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept, num_cut = in_word < room, np.count_nonzero(lengths > room)
        lengths = np.minimum(lengths, room)

        sentence = np.repeat(np.arange(len(examples)), [len(example.words) for example in examples])
        begins = _sequence_starts(sentence, lengths, room)
        targets = np.full(len(tokens), -1, np.int32)
        targets[in_word == 0] = self._targets(examples)
        return Encoded(
            tokens=tokens[kept].astype(np.int32),
            length_a=np.add.reduceat(lengths, begins),
            length_b=np.zeros(len(begins), np.int64),
            example=sentence[begins],
            token_targets={"labels": targets[kept]},
            num_cut=int(num_cut),
        )

    def _targets(self, examples: Sequence[Sentence]) -> list[int]:
        number = self.label_numbers
        return [
            number.get(tag, 0) for sentence in examples for tag in sentence.tags or [""] * len(sentence.words)
        ]

    def objective(self) -> objectives.TokenClassification:
        return objectives.TokenClassification(len(self.labels))

    def decode(self, outputs: Outputs, encoded: Encoded, examples: Sequence[Sentence]) -> Predictions:
        """Returns {"prediction": a tag for each word, "probabilities": theirs, "entities": …}.

        An entity is {"type", "start", "end", "text"}: words start … end - 1. Entities are those of
        conlleval, where an I- after an O begins one. There are none where the labels are no tags of entities,
        but e.g. parts of speech.
        """
        from seqeval.metrics.sequence_labeling import get_entities  # here, as it takes a second

        has_entities = all(TAG.fullmatch(label) for label in self.labels)
        first = encoded.token_targets["labels"] >= 0
        ends = np.cumsum([len(example.words) for example in examples])
        # Without [CLS] and [SEP] the outputs of all sequences are in the order of the tokens.
        label, probability = (
            np.split(np.concatenate([values[1:-1] for values in outputs[name]])[first], ends[:-1])
            for name in ("label", "probability")
        )
        predictions = []
        for (words, *_), numbers, values in zip(examples, label, probability, strict=True):
            tags, shares = [self.labels[n] for n in numbers], [round(float(value), 6) for value in values]
            entities = [
                {"type": kind, "start": start, "end": last + 1, "text": " ".join(words[start : last + 1])}
                for kind, start, last in (get_entities(to_iob2(tags)) if has_entities else ())
            ]
            predictions.append({"prediction": tags, "probabilities": shares, "entities": entities})
        return predictions

    def score(self, predictions: Sequence[Any], examples: Sequence[Sentence]) -> dict[str, float]:
        """Computes precision, recall and F1 of whole entities as conlleval does, and the accuracy of tags."""
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        truth, guess = _tags(predictions, examples)
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, guess, average="micro", zero_division=0
        )
        right = [a == b for pair in zip(truth, guess, strict=True) for a, b in zip(*pair, strict=True)]
        return dict(zip(self.metrics, map(float, (f1, precision, recall, np.mean(right))), strict=True))

    def tables(self, predictions: Sequence[Any], examples: Sequence[Sentence]) -> list[dict[str, Any]]:
        from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

        truth, guess = _tags(predictions, examples)
        types = sorted({kind for kind, _, _ in [*get_entities(truth), *get_entities(guess)]})
        scores = precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
        columns = ["type", "precision", "recall", "F1", "entities"]
        tables = [scores_by_class("By type", columns, types, scores)]
        if 0 < len(types) <= LARGEST_CONFUSION:
            flat = ([tag[2:] or "O" for tags in sentences for tag in tags] for sentences in (truth, guess))
            title = "Confusion of words: truth by row, prediction by column"
            tables.append(confusion(title, ["O", *types], *flat))
        return tables


def _column_sentences(lines: list[str], source: str, labelled: bool) -> Iterator[Sentence]:
    for words, tags, numbers in read_columns(lines, source, labelled):
        for tag, number in zip(tags, numbers, strict=True):
            if labelled and not TAG.fullmatch(tag):
                raise UserError(f"{source}, line {number}: {tag!r} in the last column {NOT_A_TAG}.")
        yield Sentence(words, to_iob2(tags) if labelled else None, f"{source}, line {numbers[0]}")


def _sequence_starts(sentence: np.ndarray, lengths: np.ndarray, room: int) -> np.ndarray:
    """Returns the words that begin a sequence, int64 [N]: the first of a sentence, and each without room."""
    starts, last, used = [], -1, 0
    for word, (number, length) in enumerate(zip(sentence.tolist(), lengths.tolist(), strict=True)):
        if number != last or used + length > room:
            starts.append(word)
            used = 0
        last, used = number, used + length
    return np.array(starts, np.int64)


def _tags(predictions: Sequence[Any], examples: Sequence[Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the true and the predicted tags of every sentence."""
    return [example.tags for example in examples], [prediction["prediction"] for prediction in predictions]
