"""Characters as tokens: every distinct character of a text has a number."""

from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg

from .errors import TokenError


class CharTokenizer:
    """Turns text into token ids, one a character, and back. The character at place i of `characters` has id i.

        tokenizer = CharTokenizer.from_text("to be or not to be")
        tokenizer.characters                            # ' benort'
        tokenizer.decode(tokenizer.encode("not born"))  # 'not born'

    `characters` is all there is to save; `CharTokenizer(characters)` is the same tokenizer again. Raises `TokenError`
    if there are none, if one is given twice, or if one is a lone surrogate (half of a character, not text).
    """

    def __init__(self, characters: str) -> None:
        if not characters:
            raise TokenError("a vocabulary needs at least one character; got none")
        self.characters = characters
        self._code_points = _code_points(characters)
        for i, character in enumerate(characters):
            if 0xD800 <= ord(character) <= 0xDFFF:
                raise TokenError(f"{character!r} at position {i} is a lone surrogate, not a character of any text")
        if len(set(characters)) < len(characters):
            twice = next(c for i, c in enumerate(characters) if c in characters[:i])
            raise TokenError(f"the character {twice!r} is given twice; CharTokenizer.from_text takes a text as it is")
        # From code point to id. The id vocab_size stands for "unknown"; the last entry is for all code points beyond.
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

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text's characters (T,), in the smallest unsigned dtype that has room for the vocabulary.

        uint8 for most texts: a book takes as many bytes as its letters. Convert with `.astype` before doing sums.
        Raises `TokenError` at the first character that is not in the vocabulary.
        """
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

    def decode(self, ids: Any) -> str:
        """The text of a row of ids: a list, an array or a tensor of integers (T,).

        Raises `TokenError` for an id outside the vocabulary, and for anything that is no row of integers.
        """
        try:
            row = mg.Tensor(ids).numpy()
        except (TypeError, ValueError) as error:
            raise TokenError(f"decode: wanted a row of integers ({error})") from error
        if row.ndim == 1 and row.size == 0:
            return ""
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise TokenError(f"decode: wanted a row of integers (T,); got {row.shape} {row.dtype}")
        outside = (row < 0) | (row >= self.vocab_size)
        if outside.any():
            position = int(outside.argmax())
            raise TokenError(
                f"the id {row[position]} at position {position} is not in the vocabulary, "
                f"which has {self.vocab_size} characters: ids 0 to {self.vocab_size - 1}"
            )
        return self._code_points[row].tobytes().decode("utf-32-le")


def _code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers (T,); a lone surrogate too, so that it can be named where it is found."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
