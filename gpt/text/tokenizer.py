"""Tokenizers, from text to token ids and back: characters, GPT-2's byte pairs, or byte pairs learned from a text."""

from __future__ import annotations

import codecs
import functools
import hashlib
import itertools
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
import tiktoken

import minigrad as mg
from minigrad.serialization import sealed, unsealed, write_atomically

from ..download import download
from ..errors import ConfigError, DataError, TokenError, reason
from .bpe import MAX_TOKEN_BYTES, learn_merges

END_OF_TEXT = "<|endoftext|>"
Allowed = Literal["all"] | Collection[str]


class Tokenizer(ABC):
    """The interface of all tokenizers.

    vocab_size: ids are 0 to vocab_size - 1.
    special_tokens: the ids of tokens that are not text, by name; may be empty.
    """

    special_tokens: dict[str, int]

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def encode(self, text: str, allowed_special: Allowed = ()) -> np.ndarray:
        """The ids of a text (T,), in the smallest unsigned dtype that holds the vocabulary.

        allowed_special: names of special tokens to recognize in the text, or "all". Any other name of a special token
        is encoded as ordinary text, so that a text cannot inject special tokens.

        Raises `TokenError` for lone surrogates (halves of characters), and for a name that is not a special token.
        """

    @abstractmethod
    def decode_bytes(self, ids: Any) -> bytes:
        """The UTF-8 bytes of a row of ids: a list, an array or a tensor of integers (T,).

        Raises `TokenError` for an id outside the vocabulary, and for anything but a row of integers.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The tokenizer as plain numbers, strings, lists and dicts, ready for JSON. `from_state` restores it."""

    def decode(self, ids: Any) -> str:
        """The text of a row of ids. Incomplete characters become U+FFFD; see also `StreamDecoder`."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer to a JSON file, which contains its SHA-256; `load` reads it."""
        write_atomically(path, sealed(self.state()))

    def _checked(self, ids: Any) -> np.ndarray:
        """A row of ids as an integer array (T,), checked to be within the vocabulary."""
        try:
            row = mg.Tensor(ids).numpy()
        except (TypeError, ValueError) as error:
            raise TokenError(f"decode: expected a row of integers ({error})") from error
        if row.ndim == 1 and row.size == 0:
            return row.astype(np.int64)
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise TokenError(f"decode: expected a row of integers (T,), got {row.shape} {row.dtype}")
        outside = (row < 0) | (row >= self.vocab_size)
        if outside.any():
            position = int(outside.argmax())
            raise TokenError(
                f"the id {row[position]} at position {position} is not in the vocabulary, "
                f"which has {self.vocab_size} tokens: ids 0 to {self.vocab_size - 1}"
            )
        return row

    def _allowed(self, names: Allowed) -> set[str]:
        """The names of the special tokens to recognize in a text."""
        allowed = set(self.special_tokens if names == "all" else [names] if isinstance(names, str) else names)
        for name in sorted(allowed - set(self.special_tokens)):
            known = " ".join(map(repr, self.special_tokens)) or "none"
            raise TokenError(f"allowed_special: {name!r} is not a special token of this tokenizer; it has {known}")
        return allowed


class StreamDecoder:
    """Decodes ids as they arrive, into strings that end at whole characters.

        decoder = StreamDecoder(tokenizer)
        for ids in …:
            print(decoder.feed(ids), end="")
        print(decoder.flush())

    A character takes up to four bytes of UTF-8, and a token may end in the middle of one. Such bytes are held back
    until the rest arrives. The concatenated strings equal `tokenizer.decode` of all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Any) -> str:
        """The text completed by another row of ids; "" while a character is incomplete."""
        return self._decoder.decode(self.tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """Call at the end: returns U+FFFD for an incomplete character, else "". Resets the decoder."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class CharTokenizer(Tokenizer):
    """Every distinct character is a token; `characters[i]` has id i.

        tokenizer = CharTokenizer.from_text("to be or not to be")
        tokenizer.characters                            # ' benort'
        tokenizer.decode(tokenizer.encode("not born"))  # 'not born'

    `characters` is the whole state: `CharTokenizer(characters)` is the same tokenizer again. Raises `TokenError` if
    there are none, if one is repeated, or if one is a lone surrogate (half of a character, not text).
    """

    def __init__(self, characters: str) -> None:
        _check_text("characters", characters)
        if not characters:
            raise TokenError("characters: expected at least one, got none")
        self.characters = characters
        self.special_tokens = {}
        self._code_points = _code_points(characters)
        if len(set(characters)) < len(characters):
            twice = next(c for i, c in enumerate(characters) if c in characters[:i])
            raise TokenError(
                f"characters: expected distinct ones, but {twice!r} is given twice; "
                "CharTokenizer.from_text takes any text"
            )
        # From code point to id. The id vocab_size means "unknown". The last entry is for all larger code points.
        self._ids = np.full(int(self._code_points.max()) + 2, self.vocab_size, np.min_scalar_type(self.vocab_size))
        self._ids[self._code_points] = np.arange(self.vocab_size)

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The tokenizer of the distinct characters of a text, sorted by code point."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def __repr__(self) -> str:
        return f"CharTokenizer({self.characters!r})"

    def encode(self, text: str, allowed_special: Allowed = ()) -> np.ndarray:
        """The ids of a text's characters (T,), in the smallest unsigned dtype that holds the vocabulary.

        That is uint8 for most texts, one byte per character. Convert with `.astype` before doing arithmetic.
        Raises `TokenError` at the first character that is not in the vocabulary.
        """
        self._allowed(allowed_special)
        _check_type("encode", text)
        code_points = _code_points(text)
        ids = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        unknown = ids == self.vocab_size
        if unknown.any():
            position = int(unknown.argmax())
            few = " ".join(map(repr, self.characters[:8])) + (" …" if self.vocab_size > 8 else "")
            raise TokenError(
                f"the character {text[position]!r} at position {position} is not in the vocabulary, "
                f"which has {self.vocab_size} characters: {few}"
            )
        return ids

    def decode_bytes(self, ids: Any) -> bytes:
        return self.decode(ids).encode()

    def decode(self, ids: Any) -> str:
        """The text of a row of ids, one character per id."""
        return self._code_points[self._checked(ids)].tobytes().decode("utf-32-le")

    def state(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


# Byte pairs

# GPT-2 splits a text into pieces with this pattern, then merges bytes within each piece; no token crosses a piece
# boundary. The alternative with $ changes no piece: it avoids backtracking over trailing spaces, which has a limit.
GPT2_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s"
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # the characters that \s matches above
# A very long run of spaces up to its last one, which always begins a piece.
_LONG_RUN = re.compile(rf"(?<![{_SPACE}])[{_SPACE}]{{100000,}}(?=[{_SPACE}][^{_SPACE}])")

GPT2_FILES = {  # with their SHA-256
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe": (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    ),
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json": (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    ),
}


class _BytePairTokenizer(Tokenizer):
    """A tokenizer that wraps a `tiktoken.Encoding`."""

    encoding: Any

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    def encode(self, text: str, allowed_special: Allowed = ()) -> np.ndarray:
        _check_text("encode", text)
        allowed = self._allowed(allowed_special)
        encode = functools.partial(self.encoding.encode_to_numpy, allowed_special=allowed, disallowed_special=())
        try:
            ids = encode(text)
        except ValueError:  # tiktoken's regular expressions fail at about a million spaces in a row
            cuts = [0, *(run.end() for run in _LONG_RUN.finditer(text)), len(text)]
            ids = np.concatenate([encode(text[start:end]) for start, end in itertools.pairwise(cuts)])
        return ids.astype(np.min_scalar_type(self.vocab_size - 1))

    encode.__doc__ = Tokenizer.encode.__doc__

    def decode_bytes(self, ids: Any) -> bytes:
        return self.encoding.decode_bytes(self._checked(ids).tolist())


class GPT2Tokenizer(_BytePairTokenizer):
    """GPT-2's byte-pair encoding (Radford et al., 2019), from tiktoken: 50,257 tokens, the last one <|endoftext|>.

    The first call that encodes or decodes loads its two files from tiktoken's cache, and downloads them into the cache
    if they are missing. If that fails, `DataError` says which files to put where.
    """

    def __init__(self) -> None:
        self.special_tokens = {END_OF_TEXT: 50256}

    @property
    def vocab_size(self) -> int:
        return 50257

    @functools.cached_property
    def encoding(self) -> Any:
        chosen = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))  # as in tiktoken
        folder = Path(tempfile.gettempdir(), "data-gym-cache") if chosen is None else Path(chosen)
        keeps_files = chosen != ""  # tiktoken has no cache if the variable is set but empty
        places = {url: folder / cache_name(url) for url in GPT2_FILES}
        try:
            for url, place in places.items() if keeps_files else ():
                if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != GPT2_FILES[url]:
                    download(url, GPT2_FILES[url], place)
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # DataError is a ValueError
            files = "".join(f"\n  {url}\n  as {place}" for url, place in places.items())
            where = "or, under these names, in another folder" if keeps_files else "in a folder"
            raise DataError(
                f"GPT-2's byte-pair encoding could not be loaded: {error}\nDownload its files and save{files}\n"
                f"{where} that TIKTOKEN_CACHE_DIR is set to"
            ) from error

    def __repr__(self) -> str:
        return "GPT2Tokenizer()"

    def state(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


def cache_name(url: str) -> str:
    """The name of a URL's file in tiktoken's cache."""
    return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()


class BPETokenizer(_BytePairTokenizer):
    """Byte-pair encoding learned from a text. The tokens are the 256 bytes, one per merge, and the special tokens.

        tokenizer = BPETokenizer.train(text, vocab_size=1257)
        tokenizer.save("bpe.json")
        tokenizer = load("bpe.json")

    merges: pairs of tokens; `merges[i]` makes token 256 + i. See `learn_merges`.
    special_tokens: the names of tokens that are not text.

    A text is split into pieces as in GPT-2. A piece that is a token becomes that token. In any other piece, adjacent
    pairs that together are a token are merged, the one that makes the lowest token first, until there are none. Raises
    `TokenError` for merges of tokens that do not exist yet, and for merges that make no new token.
    """

    def __init__(self, merges: Sequence[Sequence[int]], special_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        self.merges = [(left, right) for left, right in merges]
        self.tokens = [bytes([byte]) for byte in range(256)]  # the bytes of each token
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        for i, (left, right) in enumerate(self.merges):
            if not 0 <= min(left, right) <= max(left, right) < len(self.tokens):
                raise TokenError(
                    f"merge {i} joins {left} and {right}; expected tokens from 0 to {len(self.tokens) - 1}"
                )
            token = self.tokens[left] + self.tokens[right]
            if len(token) > MAX_TOKEN_BYTES:
                raise TokenError(f"merge {i} makes a token of {len(token)} bytes; expected at most {MAX_TOKEN_BYTES}")
            if token in ranks:
                raise TokenError(f"merge {i} makes {token!r}, which is token {ranks[token]} already")
            ranks[token] = len(self.tokens)
            self.tokens.append(token)
        for name in special_tokens:
            _check_text("special_tokens", name)
        if "" in special_tokens or len(set(special_tokens)) < len(special_tokens):
            raise TokenError(f"special_tokens: expected distinct names, got {str(special_tokens):.100}")
        self.special_tokens = {name: len(ranks) + i for i, name in enumerate(special_tokens)}
        self.encoding = tiktoken.Encoding(
            "bpe", pat_str=GPT2_PIECES, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def train(
        cls, text: str | Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> BPETokenizer:
        """Learn merges from a text, or from its parts, until there are `vocab_size` tokens, special ones included.

        `data.read_chunks` gives the parts of a file. The same text gives the same tokenizer. It has fewer tokens if
        no remaining pair of tokens occurs twice.
        """
        least = 256 + len(special_tokens)
        if vocab_size < least:
            raise ConfigError(
                f"vocab_size is {vocab_size}; expected at least {least}, for the bytes and the special tokens"
            )
        pieces: Counter[str] = Counter()
        for part in [text] if isinstance(text, str) else text:
            _check_text("train", part)
            pieces.update(piece[0] for piece in regex.finditer(GPT2_PIECES, part))
        return cls(learn_merges(pieces, vocab_size - least), special_tokens)

    def __repr__(self) -> str:
        return f"<BPETokenizer of {self.vocab_size} tokens>"

    def state(self) -> dict[str, Any]:
        return {
            "kind": "bpe",
            "pieces": GPT2_PIECES,
            "merges": [list(merge) for merge in self.merges],
            "special_tokens": list(self.special_tokens),
        }


# Saving and loading


def from_state(state: Any) -> Tokenizer:
    """The tokenizer that `Tokenizer.state` describes. Raises `TokenError` for any other value."""
    match state:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "bpe", "pieces": str(pieces), "merges": list(merges), "special_tokens": list(special_tokens)}:
            if pieces != GPT2_PIECES:
                raise TokenError(f"pieces is {pieces!r:.100}; expected {GPT2_PIECES!r}")
            for i, merge in enumerate(merges):
                if not (isinstance(merge, list | tuple) and [type(token) for token in merge] == [int, int]):
                    raise TokenError(f"merge {i} is {str(merge):.100}; expected two tokens")
            return BPETokenizer(merges, special_tokens)
    raise TokenError(f"not a tokenizer: {str(state):.100}")


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote. Raises `TokenError` if the file is missing, damaged, or something else."""
    try:
        return from_state(unsealed(Path(path).read_bytes()))
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise TokenError(f"{path}: {error}") from error


def first_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The prompt if none is given: a line break, or token 0 if the vocabulary has no line break."""
    try:
        return tokenizer.encode("\n")
    except TokenError:
        return np.array([0])


def _check_type(what: str, text: Any) -> None:
    """Raise `TokenError` unless `text` is a string."""
    if not isinstance(text, str):
        raise TokenError(f"{what}: expected a string, got {type(text).__name__}")


def _check_text(what: str, text: Any) -> None:
    """Raise `TokenError` unless `text` is a string without lone surrogates."""
    _check_type(what, text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenError(
            f"{what}: expected text, got the lone surrogate {text[error.start]!r} at position {error.start}"
        ) from error


def _code_points(text: str) -> np.ndarray:
    """The code points of a text (T,). Lone surrogates are included, so that errors can name them."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
