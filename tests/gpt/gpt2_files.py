"""GPT-2's tokenizer for tests, where its files are."""

import functools
import os
from pathlib import Path

import pytest

from gpt.text.tokenizer import GPT2Tokenizer
from tests.needs import data_file

PLACES = ["6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"]


@functools.cache
def gpt2_tokenizer() -> GPT2Tokenizer:
    """GPT-2's tokenizer, ready for use; without its files the test is skipped. No test waits for a download."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or str(data_file("tiktoken_cache"))
    os.environ["TIKTOKEN_CACHE_DIR"] = folder
    if not all((Path(folder) / place).is_file() for place in PLACES):
        pytest.skip("TIKTOKEN_CACHE_DIR has no files of GPT-2's byte-pair encoding")
    tokenizer = GPT2Tokenizer()
    tokenizer.encode("ready")
    return tokenizer
