"""What is read and how it becomes batches: the `data` section of a config."""

import dataclasses

from bert_jax.errors import UserError

RUN_TIME = {"run_time": True}  # may change when a run resumes: it does not change what is learned


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From text to batches. The first group decides the prepared dataset, the second the batches.

    Raises:
        UserError: if a value is out of range, naming it and the remedy.
    """

    # What `prepare` builds.
    # SPEC,SPEC,… with SPEC corpus: | text:GLOB | jsonl:GLOB | tfds:NAME[:SPLIT[:FEATURE]]
    source: str = "corpus:"
    text_field: str = "text"  # of JSONL records
    invalid_utf8: str = "error"  # error | skip: leave out the broken line or record, and count it in the log
    language: str = "en"  # of the sentence splitter
    # unigram | bpe (trained here) | wordpiece:VOCAB.txt | wordpiece:bert_uncased | sentencepiece:FILE.model
    tokenizer: str = "unigram"
    lowercase: bool = True
    tokenizer_sample_mb: int = 32  # megabytes of text that a SentencePiece tokenizer is trained on
    held_out_fraction: float = 0.01  # of documents, by a hash of their content

    # What a batch is.
    max_seq_length: int = 128  # T, tokens per row
    global_batch_size: int = 256  # B, rows per step over all devices
    max_sequences_per_row: int = 1  # S; more than one packs several sequences into a row
    short_sequence_rate: float = 0.1  # chunks that are cut once more, as in BERT
    second_objective: str = "next_sentence"  # next_sentence | none
    masking: str = "token"  # token | whole_word
    mask_rate: float = 0.15
    mask_token_rate: float = 0.8  # of the chosen: become [MASK]
    random_token_rate: float = 0.1  # of the chosen: become a random token; the rest stay

    # How fast it is read.
    input_workers: int = dataclasses.field(default=1, metadata=RUN_TIME)  # threads that build batches ahead
    prefetch_batches: int = dataclasses.field(default=4, metadata=RUN_TIME)

    def __post_init__(self):
        kind = self.tokenizer.split(":", 1)[0]
        _require(kind in ("unigram", "bpe", "wordpiece", "sentencepiece"), self, "tokenizer",
                 "use unigram, bpe, wordpiece:VOCAB.txt or sentencepiece:FILE.model")  # fmt: skip
        _require(self.invalid_utf8 in ("error", "skip"), self, "invalid_utf8", "use error or skip")
        _require(self.max_seq_length >= 8, self, "max_seq_length", "use at least 8")
        _require(self.global_batch_size >= 1, self, "global_batch_size", "use at least 1")
        _require(self.max_sequences_per_row >= 1, self, "max_sequences_per_row", "1 means one sequence a row")
        _require(self.second_objective in ("next_sentence", "none"), self, "second_objective",
                 "use next_sentence or none")  # fmt: skip
        _require(self.masking in ("token", "whole_word"), self, "masking", "use token or whole_word")
        _require(0.0 < self.mask_rate < 1.0, self, "mask_rate", "use a share between 0 and 1")
        _require(0.0 <= self.held_out_fraction < 1.0, self, "held_out_fraction", "use a share below 1")
        _require(0.0 <= self.short_sequence_rate <= 1.0, self, "short_sequence_rate", "use a share")
        _require(min(self.mask_token_rate, self.random_token_rate) >= 0.0
                 and self.mask_token_rate + self.random_token_rate <= 1.0,
                 self, "random_token_rate", "with mask_token_rate it must not exceed 1")  # fmt: skip
        _require(self.tokenizer_sample_mb >= 1, self, "tokenizer_sample_mb", "use at least 1")
        _require(self.input_workers >= 1, self, "input_workers", "use at least 1")
        _require(self.prefetch_batches >= 1, self, "prefetch_batches", "use at least 1")


def _require(condition: bool, config: DataConfig, field: str, remedy: str):
    if not condition:
        raise UserError(f"data.{field}={getattr(config, field)!r} is not valid: {remedy}.")
