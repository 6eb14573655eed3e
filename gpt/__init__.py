"""gpt: a GPT built on minigrad alone, its data, its training and its sampling."""

from .config import GPTConfig
from .errors import CheckpointError, ConfigError, DataError, GPTError, PretrainedError, TokenError
from .model import GPT, KVCache
from .tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, StreamDecoder, Tokenizer

__all__ = [
    "GPT",
    "BPETokenizer",
    "CharTokenizer",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GPT2Tokenizer",
    "GPTConfig",
    "GPTError",
    "KVCache",
    "PretrainedError",
    "StreamDecoder",
    "TokenError",
    "Tokenizer",
]
