"""bert_jax: pretrain BERT-like encoders in JAX, from raw text to a fine-tuned model."""

__version__ = "0.1.0"
