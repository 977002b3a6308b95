"""What is read and how it becomes batches: the `data` section of a config."""

import dataclasses

from bert_jax.errors import UserError, check_least

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
        def require(field: str, condition: bool, remedy: str) -> None:
            if not condition:
                raise UserError(f"data.{field}={getattr(self, field)!r} is not valid: {remedy}.")

        kind, pairs = self.tokenizer.split(":", 1)[0], self.second_objective
        rates = self.mask_token_rate, self.random_token_rate
        require("tokenizer", kind in ("unigram", "bpe", "wordpiece", "sentencepiece"),
                "use unigram, bpe, wordpiece:VOCAB.txt or sentencepiece:FILE.model")  # fmt: skip
        require("invalid_utf8", self.invalid_utf8 in ("error", "skip"), "use error or skip")
        require("second_objective", pairs in ("next_sentence", "none"), "use next_sentence or none")
        require("masking", self.masking in ("token", "whole_word"), "use token or whole_word")
        require("mask_rate", 0.0 < self.mask_rate < 1.0, "use a share between 0 and 1")
        require("held_out_fraction", 0.0 <= self.held_out_fraction < 1.0, "use a share below 1")
        require("short_sequence_rate", 0.0 <= self.short_sequence_rate <= 1.0, "use a share")
        require("random_token_rate", min(rates) >= 0.0 and sum(rates) <= 1.0,
                "with mask_token_rate it must not exceed 1")  # fmt: skip
        check_least("data", self, 8, "max_seq_length")
        check_least("data", self, 1, "global_batch_size", "max_sequences_per_row", "tokenizer_sample_mb",
                    "input_workers", "prefetch_batches")  # fmt: skip
