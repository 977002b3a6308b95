"""The `data` section of a pretraining config: what is read and how it becomes batches."""

import dataclasses
from typing import Any

from bert_jax.corpus.characters import CHARACTER_COVERAGE
from bert_jax.corpus.specs import languages
from bert_jax.errors import UserError
from bert_jax.settings import check, setting

TRAINED = ("unigram", "bpe", "byte_bpe", "wordpiece")  # tokenizers that `prepare` trains on the text
# Settings that only some of them have.
OPTIONS_OF_TRAINED = {
    "character_coverage": ("unigram", "bpe", "wordpiece"),
    "byte_fallback": ("unigram", "bpe"),
}
READ = ("wordpiece", "sentencepiece", "tokenizer_json")  # what KIND:FILE may name


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings from text to batches.

    Raises:
        UserError: if a value is out of range.
    """

    # What `prepare` builds.
    # SPEC,SPEC,… with SPEC corpus: | text:GLOB | jsonl:GLOB | parquet:GLOB | arrow:GLOB
    # | mediawiki:GLOB | wikipedia:LANG[:DATE] | hf:NAME[:CONFIG[:SPLIT]] | tfds:NAME[:SPLIT[:FEATURE]]
    # SPEC@WEIGHT,… is a mixture: a dataset for each source, and the weights decide its share of the rows.
    source: str = setting("corpus:", prepares=True, by_phase=True)  # a phase may change the weights only
    text_field: str = setting("text", prepares=True)  # of JSONL records, or the column of a table
    # skip: leaves out the broken line or record, and counts it in the log
    invalid_utf8: str = setting("error", known=("error", "skip"), prepares=True)
    # skip: leaves out the rest of a file from where it is truncated or corrupt, and counts it in the log
    broken_files: str = setting("error", known=("error", "skip"), prepares=True)
    # By whose rules sentences end: a code as in Wikipedia's addresses, or one for each source of a mixture in
    # its order: en,de,ja
    language: str = setting("en", prepares=True)
    # unigram | bpe | byte_bpe | wordpiece (trained here) | wordpiece:VOCAB.txt | wordpiece:bert_uncased
    # | sentencepiece:FILE.model | tokenizer_json:FILE.json (the last two have rules instead of `lowercase`)
    tokenizer: str = setting("unigram", prepares=True)
    lowercase: bool = setting(True, prepares=True)
    tokenizer_sample_mb: int = setting(32, least=1, prepares=True)  # MB of text to train it on
    # Share of the characters that a unigram, bpe or wordpiece tokenizer trained here knows. The others become
    # [UNK]; with byte_fallback, which unigram and bpe have, the bytes of their UTF-8.
    character_coverage: float = setting(CHARACTER_COVERAGE, least=0.98, most=1, prepares=True)
    byte_fallback: bool = setting(False, prepares=True)
    # Hygiene, described in bert_jax/corpus/hygiene.py. none | documents (copies) | paragraphs (these, and
    # paragraphs of 100 characters or more that occurred before)
    drop_duplicates: str = setting("none", known=("none", "documents", "paragraphs"), prepares=True)
    min_document_chars: int = setting(0, least=0, prepares=True)  # shorter ones are left out
    boilerplate_documents: int = setting(0, least=0, prepares=True)  # leaves out lines of so many; 0: none
    # Share of the documents, by a hash of their content, without what is left out.
    held_out_fraction: float = setting(0.01, least=0, below=1, prepares=True)

    # What a batch is.
    max_seq_length: int = setting(128, least=8, by_phase=True)  # T, tokens per row
    global_batch_size: int = setting(256, least=1, by_phase=True)  # B, rows per step over all devices
    # S; more than one packs several sequences into a row
    max_sequences_per_row: int = setting(1, least=1, by_phase=True)
    short_sequence_rate: float = setting(0.1, least=0, most=1)  # chunks that are cut once more, as in BERT
    # masked: tokens from both sides; causal: the next token from those before it
    objective: str = setting("masked", known=("masked", "causal"), by_phase=True)
    # On A and B: whether B follows A or is from elsewhere; whether it follows or precedes A; or there is no B
    second_objective: str = setting(
        "next_sentence", known=("next_sentence", "sentence_order", "none"), by_phase=True
    )
    # What is masked at a time: tokens, words, or spans of 3.8 words on average
    masking: str = setting("token", known=("token", "whole_word", "span"), by_phase=True)
    mask_rate: float = setting(0.15, above=0, below=1, by_phase=True)
    # At the end of the run or phase, reached linearly; 0: mask_rate all the time.
    final_mask_rate: float = setting(0.0, least=0, below=1, by_phase=True)
    mask_token_rate: float = setting(0.8, least=0, most=1)  # of the chosen: become [MASK]
    random_token_rate: float = setting(0.1, least=0, most=1)  # of the chosen: a random token; the rest stay

    # Where dumps of Wikipedia come from, and where they are kept.
    wikipedia_mirror: str = setting("", run_time=True)  # "": BERT_JAX_WIKIPEDIA_MIRROR, else Wikimedia's own
    download_dir: str = setting("", run_time=True)  # "": downloads in the data directory

    # How fast it is read.
    input_workers: int = setting(1, least=1, run_time=True)  # threads that build batches ahead
    prefetch_batches: int = setting(4, least=1, run_time=True)

    @property
    def pairs(self) -> bool:
        """Whether a sequence has a B."""
        return self.second_objective != "none"

    def __post_init__(self):
        check("data", self)
        if self.tokenizer not in TRAINED and self.tokenizer.split(":", 1)[0] not in READ:
            raise UserError(
                f"data.tokenizer={self.tokenizer!r} is unknown; use {', '.join(TRAINED)}, "
                "wordpiece:VOCAB.txt, sentencepiece:FILE.model or tokenizer_json:FILE.json."
            )
        if self.boilerplate_documents == 1:
            raise UserError(
                "data.boilerplate_documents=1 would leave out every line; use 0 for none, or the number of "
                "documents that make a line boilerplate, e.g. 20."
            )
        languages(self.source, self.language)
        for name, value in changed_options(self).items():
            if self.tokenizer not in (kinds := OPTIONS_OF_TRAINED[name]):
                raise UserError(
                    f"data.{name}={value} has no effect on data.tokenizer={self.tokenizer!r}; it is for a "
                    f"tokenizer trained here: {', '.join(kinds)}."
                )
        if self.objective == "causal" and self.pairs:
            raise UserError(
                "data.objective=causal has no second objective, and data.second_objective="
                f"{self.second_objective}; set data.second_objective=none."
            )
        if self.mask_token_rate + self.random_token_rate > 1.0:
            raise UserError(
                f"data.mask_token_rate={self.mask_token_rate} and "
                f"data.random_token_rate={self.random_token_rate} must not exceed 1 together."
            )


def changed_options(data: DataConfig) -> dict[str, Any]:
    """Returns the `OPTIONS_OF_TRAINED` that are not at their defaults."""
    values = {field.name: (getattr(data, field.name), field.default) for field in dataclasses.fields(data)}
    return {name: values[name][0] for name in OPTIONS_OF_TRAINED if values[name][0] != values[name][1]}
