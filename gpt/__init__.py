"""gpt: a GPT built on minigrad alone, its data, its training and its sampling."""

from .config import GPTConfig
from .errors import CheckpointError, ConfigError, DataError, GPTError, PretrainedError, TokenError
from .model import GPT, KVCache
from .tokenizer import CharTokenizer

__all__ = [
    "GPT",
    "CharTokenizer",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GPTConfig",
    "GPTError",
    "KVCache",
    "PretrainedError",
    "TokenError",
]
