"""Translation of texts with an encoder-decoder Transformer: character tokens, batches, and one file for everything."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.serialization import load_with_metadata

from ..config import check_tensors
from ..errors import CheckpointError, ConfigError, DataError
from ..options import check_count, restore
from ..run import TRANSLATOR
from ..text.tokenizer import CharTokenizer
from .pairs import Pair
from .seq2seq import END, PAD, START, Seq2Seq, Seq2SeqConfig

SPECIAL = ("<pad>", "<start>", "<end>")  # PAD, START and END


class Vocabulary:
    """The tokens of the sources or of the targets: three special tokens, then every distinct character."""

    def __init__(self, characters: str) -> None:
        self.tokenizer = CharTokenizer(characters)

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> Vocabulary:
        return cls(CharTokenizer.from_text("".join(texts)).characters)

    @property
    def characters(self) -> str:
        return self.tokenizer.characters

    def __len__(self) -> int:
        return len(SPECIAL) + self.tokenizer.vocab_size

    def encode(self, text: str) -> np.ndarray:
        """The ids (T,) of a text's characters. Raises `TokenError` at one that is not in the vocabulary."""
        return self.tokenizer.encode(text).astype(np.int64) + len(SPECIAL)

    def decode(self, ids: np.ndarray) -> str:
        """The text of the ids; special tokens are skipped."""
        return self.tokenizer.decode(ids[ids >= len(SPECIAL)] - len(SPECIAL))

    def names(self, ids: np.ndarray) -> list[str]:
        """A name for each id, for the axes of a plot."""
        return [SPECIAL[i] if i < len(SPECIAL) else self.decode(np.array([i])) for i in ids]


class Batch(NamedTuple):
    """Sources (B, S), decoder inputs START y (B, T), and decoder targets y END (B, T), all padded."""

    source: np.ndarray
    ids: np.ndarray
    targets: np.ndarray


EncodedPair = tuple[np.ndarray, np.ndarray]


def as_batch(pairs: Sequence[EncodedPair]) -> Batch:
    """Pairs of ids (S_i,) and (T_i,) as padded arrays."""
    start, end = np.array([START]), np.array([END])
    return Batch(
        padded([source for source, _ in pairs]),
        padded([np.concatenate([start, target]) for _, target in pairs]),
        padded([np.concatenate([target, end]) for _, target in pairs]),
    )


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of any lengths as one array (B, T); the shorter ones end with PAD."""
    batch = np.full((len(rows), max(map(len, rows))), PAD)
    for row, ids in zip(batch, rows, strict=True):
        row[: len(ids)] = ids
    return batch


def batches(
    pairs: Sequence[EncodedPair], batch_size: int, rng: np.random.Generator | None = None, pool: int = 20
) -> Iterator[Batch]:
    """Yield all pairs once, in batches of similar length, so that little computation is spent on padding.

    rng: shuffles the pairs, sorts them by length within pools of `pool` batches, and shuffles the batches of each pool.
        Without it, all pairs are sorted by length.
    """
    order = np.arange(len(pairs)) if rng is None else rng.permutation(len(pairs))
    size = len(pairs) if rng is None else pool * batch_size
    for first in range(0, len(pairs), max(size, 1)):
        by_length = sorted(order[first : first + size], key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
        starts = np.arange(0, len(by_length), batch_size)
        for start in starts if rng is None else rng.permutation(starts):
            yield as_batch([pairs[i] for i in by_length[start : start + batch_size]])


@dataclasses.dataclass
class Translator:
    """A model with its source and target vocabularies: texts in, texts out.

    max_new_tokens: the length limit of a translation, END included.
    settings: how the model was trained, as plain numbers and strings; saved with the model.
    """

    model: Seq2Seq
    source: Vocabulary
    target: Vocabulary
    max_new_tokens: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def for_pairs(cls, pairs: Sequence[Pair], **shape: Any) -> Translator:
        """A new model with the vocabularies of the pairs; `shape` has the other options of `Seq2SeqConfig`.

        Translations may be as long as the longest target. With tie_weights "all" both sides share one vocabulary.
        Raises `ConfigError` if `block_size` learned positions are too few for the longest text (a target with its END).
        """
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        if shape.get("tie_weights") == "all":
            source = target = Vocabulary.from_texts(sources + targets)
        else:
            source, target = Vocabulary.from_texts(sources), Vocabulary.from_texts(targets)
        config = Seq2SeqConfig(source_vocab_size=len(source), target_vocab_size=len(target), **shape)
        longest = max(*map(len, sources), max(map(len, targets)) + 1)
        if config.position == "learned" and longest > config.block_size:
            raise ConfigError(f"block_size is {config.block_size}; expected at least {longest} for the longest text")
        return cls(Seq2Seq(config), source, target, max(map(len, targets)) + 1)

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        """The ids of the sources and targets."""
        return [(self.source.encode(source), self.target.encode(target)) for source, target in pairs]

    def translate(
        self, texts: Sequence[str], beam_size: int = 1, length_penalty: float = 0.6, batch_size: int = 100
    ) -> list[str]:
        """The translations of the texts, computed in batches of `batch_size` texts of similar length."""
        check_count("batch_size", batch_size, 1)
        for text in texts:
            if not text:
                raise DataError("a text to translate is empty; expected at least one character")
        sources = [self.source.encode(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(sources[i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids = self.model.translate(
                padded([sources[i] for i in rows]), beam_size, self.max_new_tokens, length_penalty
            )
            found |= zip(rows, map(self.target.decode, ids), strict=True)
        return [found[i] for i in range(len(texts))]

    def loss(self, pairs: Sequence[Pair], batch_size: int = 100) -> float:
        """The mean negative log-likelihood of the targets, in nats per token, without dropout."""
        total, count = 0.0, 0
        with self.model.evaluating(), mg.no_grad():
            for batch in batches(self.encode(pairs), batch_size):
                tokens = int((batch.targets != PAD).sum())
                loss = self.model(*batch)[1]
                total, count = total + loss.item() * tokens, count + tokens
        return total / count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file: the weights as tensors, the rest as JSON in the metadata."""
        about = {
            "config": dataclasses.asdict(self.model.config),
            "characters": [self.source.characters, self.target.characters],
            "max_new_tokens": self.max_new_tokens,
            "settings": self.settings,
        }
        mg.save(self.model.state_dict(), path, metadata={"minigrad.seq2seq": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Translator:
        """Read what `save` wrote, in evaluation mode. `path` is the file, or a folder with a file named `TRANSLATOR`.

        Raises `CheckpointError` if it is missing, damaged, or something else.
        """
        path = Path(path, TRANSLATOR) if Path(path).is_dir() else Path(path)
        try:
            tensors, metadata = load_with_metadata(path)
            if "minigrad.seq2seq" not in metadata:
                raise ValueError(f"{path}: a safetensors file, but not a model of examples/translate.py")
            about = json.loads(metadata["minigrad.seq2seq"])
            source, target = map(Vocabulary, about["characters"])
            config, most, settings = restore(Seq2SeqConfig, about["config"]), about["max_new_tokens"], about["settings"]
            check_count("max_new_tokens", most, 1)
            if not isinstance(settings, dict):
                raise TypeError(f"settings is {settings!r:.100}; expected a dict")
            sizes = config.source_vocab_size, config.target_vocab_size
            if (len(source), len(target)) != sizes:
                raise ValueError(f"the vocabularies have {len(source)} and {len(target)} tokens; expected {sizes}")
            check_tensors(config.parameter_shapes(), tensors)
            with mg.random.blank():
                model = Seq2Seq(config)
            model.load_state_dict(tensors)
            translator = cls(model, source, target, most, settings)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            message = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(message if str(path) in message else f"{path}: {message}") from error
        model.to(device)
        model.eval()
        return translator
