"""Fakes for tests, here and in other projects: a byte tokenizer and small random models of every family."""

from tunescope.testing.fakes import byte_tokenizer, save_tiny, tiny_model

__all__ = ["byte_tokenizer", "save_tiny", "tiny_model"]
