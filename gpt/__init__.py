"""gpt: a GPT built on minigrad alone: the model, its data, training and sampling."""

from .config import GPTConfig
from .errors import CheckpointError, ConfigError, DataError, GPTError, PretrainedError, TokenError
from .model import GPT, KVCache
from .text.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, StreamDecoder, Tokenizer
from .translation.seq2seq import Seq2Seq, Seq2SeqConfig
from .translation.translator import Translator

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
    "Seq2Seq",
    "Seq2SeqConfig",
    "StreamDecoder",
    "TokenError",
    "Tokenizer",
    "Translator",
]
