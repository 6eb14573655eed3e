"""GPT-2's weights in Hugging Face's layout: read without PyTorch, and written so that other tools can open them.

    config, tensors = read(folder)                  # checked; `copy_to` later reads the values from the files
    write(folder, config, parameters)

A folder has config.json and model.safetensors. In place of the latter it may have several files of tensors (shards) and
model.safetensors.index.json, which maps tensors to files. The tensors have the names of GPT's parameters, with or
without the prefix "transformer.". Linear weights are stored as (in, out), as in GPT-2's own code; ours are (out, in).
Users call `GPT.from_pretrained` and `GPT.save_pretrained`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import safetensors

import minigrad as mg
from minigrad.serialization import check_digest, replace

from .config import GPTConfig
from .download import NotFoundError, cache_directory, download
from .errors import ConfigError, DataError, PretrainedError, reason

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HUB = "https://huggingface.co"
PREFIX = "transformer."
SHORT_NAMES = re.compile("gpt2(-medium|-large|-xl)?")  # short for openai-community/… on the hub
MASKS = re.compile(r"h\.[0-9]+\.attn\.(bias|masked_bias)")  # constants that old files store with the weights

# config.json: its names for our options, its three dropout options, and the values that GPT's computation requires.
SIZES = {"vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer", "n_embd": "n_embd"}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names for the same formula
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "bias": (True, False),  # ours, not Hugging Face's: `write` sets it to False if the stored biases are only zeros
}

READ_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}  # safetensors' dtypes; NumPy has no bfloat16
STORED_AS = ("float32", "float16", "float64")
PIECE = 2**20  # how many numbers are copied at a time


def layout(vocab_size: int, n_positions: int, n_layer: int, n_embd: int) -> dict[str, tuple[int, ...]]:
    """The names and stored shapes of the tensors of a GPT-2 of this size."""
    C = n_embd
    block = {
        **{"ln_1.weight": (C,), "ln_1.bias": (C,)},
        **{"attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,)},
        **{"attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,)},
        **{"ln_2.weight": (C,), "ln_2.bias": (C,)},
        **{"mlp.c_fc.weight": (C, 4 * C), "mlp.c_fc.bias": (4 * C,)},
        **{"mlp.c_proj.weight": (4 * C, C), "mlp.c_proj.bias": (C,)},
    }
    return {
        **{"wte.weight": (vocab_size, C), "wpe.weight": (n_positions, C)},
        **{f"h.{i}.{name}": shape for i in range(n_layer) for name, shape in block.items()},
        **{"ln_f.weight": (C,), "ln_f.bias": (C,)},
    }


def as_stored(name: str, array: Any) -> Any:
    """A view that converts between a parameter's array and the stored array, in both directions (transposes)."""
    return array.T if name.startswith("h.") and array.ndim == 2 else array


# Reading


def read(source: str | os.PathLike[str], dropout: float | None = None) -> tuple[GPTConfig, dict[str, StoredTensor]]:
    """The config of a GPT in a folder or on the Hugging Face hub, and its stored tensors by parameter name.

    source: a folder; or "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" or "owner/name", see `fetch`.
    dropout: replaces the three probabilities in config.json, which must otherwise be equal.

    The configuration and the name, shape and dtype of every tensor are checked. Only the header of each file is read;
    `StoredTensor.copy_to` reads the values. Raises `PretrainedError`, which lists all problems.
    """
    folder = _folder(source)
    config = _read_config(folder / CONFIG, dropout)
    tensors = _find_tensors(folder)
    _check_tensors(folder, config, tensors)
    _check_values(folder, config, tensors)
    tensors.pop("lm_head.weight", None)  # checked to equal wte.weight
    return config, tensors


def floating(dtype: Any) -> np.dtype:
    """`dtype` as a NumPy dtype. Raises `ConfigError` unless files can store it."""
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"dtype is {dtype!r}; expected a floating dtype, such as float32") from error
    if found.name not in STORED_AS:
        raise ConfigError(f"dtype is {found}; expected {' or '.join(STORED_AS)}")
    return found


def _folder(source: str | os.PathLike[str]) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise PretrainedError(f"{folder}: is a file; expected its folder")
    repository = f"openai-community/{source}" if SHORT_NAMES.fullmatch(str(source)) else source
    part = "[A-Za-z0-9][A-Za-z0-9_.-]*"
    if isinstance(repository, str) and re.fullmatch(f"{part}/{part}", repository):
        return fetch(repository)
    raise PretrainedError(f"{folder}: there is no such folder")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PretrainedError(f"{path.parent}: there is no {path.name}") from error
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_config(path: Path, dropout: float | None) -> GPTConfig:
    """The GPT that config.json describes. Raises `PretrainedError`, which lists all problems, if it is not a GPT-2."""
    settings = read_json(path)
    counts = {key: settings.get(key) for key in (*SIZES, "n_head")}
    problems = [
        f"{key} is {value!r}; expected a whole number of at least 1"
        for key, value in counts.items()
        if type(value) is not int or value < 1
    ]
    fixed = dict(FIXED)
    if not problems:
        fixed |= {"n_inner": (None, 4 * settings["n_embd"]), "n_ctx": (settings["n_positions"],)}
    problems += [
        f"{key} is {settings[key]!r}; expected {' or '.join(map(repr, values))}"
        for key, values in fixed.items()
        if key in settings and settings[key] not in values
    ]
    if dropout is None:
        probabilities = {key: settings.get(key, 0.1) for key in DROPOUTS}
        dropout = probabilities["resid_pdrop"]
        if not isinstance(dropout, (int, float)) or any(p != dropout for p in probabilities.values()):
            found = ", ".join(f"{key} {value!r}" for key, value in probabilities.items())
            problems.append(f"{found}; expected one probability for all three, or the argument dropout")
    if problems:
        raise PretrainedError(f"{path}: {'; '.join(problems)}")
    sizes = {ours: settings[theirs] for theirs, ours in SIZES.items()}
    try:
        return GPTConfig(**sizes, n_head=settings["n_head"], dropout=dropout, bias=settings.get("bias", True))
    except ConfigError as error:
        raise PretrainedError(f"{path}: {error}") from error


class StoredTensor(NamedTuple):
    """The place and format of a tensor in a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def copy_to(self, array: Any) -> None:
        """Copy the values to a parameter's array, a few rows at a time."""
        target = as_stored(self.name, array)
        for rows, piece in self.pieces():
            target[rows] = piece

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a few rows at a time, as (slice, values). Each piece is memory-mapped only while it is in use."""
        dtype = np.dtype(READ_AS[self.dtype])
        columns = math.prod(self.shape[1:])
        step = max(1, PIECE // columns)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            offset = self.offset + start * columns * dtype.itemsize
            try:
                piece = np.memmap(self.path, dtype, "r", offset, (stop - start, *self.shape[1:]))
            except OSError as error:
                raise PretrainedError(f"{self.path}: the weights cannot be read ({reason(error)})") from error
            if self.dtype == "BF16":  # bfloat16 is the upper half of a float32
                yield slice(start, stop), (piece.astype("<u4") << 16).view("<f4")
            else:
                yield slice(start, stop), piece


def _find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors in a folder's files, by name without the prefix. The constant masks are left out."""
    files, index = [folder / WEIGHTS], None
    if not files[0].is_file():
        if not (folder / INDEX).is_file():
            raise PretrainedError(f"{folder}: {_why_no_weights(folder)}")
        index = _read_index(folder / INDEX)
        files = [folder / name for name in sorted(set(index.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise PretrainedError(f"{folder}: missing {', '.join(missing)}, listed in {INDEX}")
    contents = {file: _read_header(file) for file in files}
    if index is not None:
        found = {(name, file.name) for file, tensors in contents.items() for name in tensors}
        differ = sorted({name for name, _ in found ^ set(index.items())})
        if differ:
            raise PretrainedError(f"{folder / INDEX}: does not match the files in {', '.join(differ)}")
    stored: dict[str, StoredTensor] = {}
    for file, tensors in contents.items():
        for name, tensor in tensors.items():
            short = name.removeprefix(PREFIX)
            if short in stored:
                raise PretrainedError(f"{file}: {name} is stored twice, with and without {PREFIX!r} or in two files")
            if not MASKS.fullmatch(short):
                stored[short] = tensor
    return stored


def _why_no_weights(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin*")):
        return (
            "the only weights are in pytorch_model.bin, a pickle, which could run any code and is not read; if you "
            'trust it, convert it: python -c "from transformers import GPT2LMHeadModel as M; '
            f'M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
        )
    return f"there are no weights ({WEIGHTS} or {INDEX})"


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor. All files must be in the index's own folder."""
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise PretrainedError(f"{path}: expected a weight_map from names of tensors to names of files")
    outside = sorted({f"{name:.100}" for name in files.values() if not _is_plain(name)})
    if outside:
        raise PretrainedError(f"{path}: expected names of safetensors files in its folder, got {', '.join(outside)}")
    return files


def _is_plain(name: str) -> bool:
    length = len(name.encode(errors="surrogatepass"))  # file systems allow up to 255 bytes
    return PureWindowsPath(name).name == name and name.endswith(".safetensors") and "\0" not in name and length <= 255


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    The safetensors package checks that the header is complete, and that the tensors have the lengths of their shapes
    and dtypes and fill the file without gaps. It gives no positions and cannot read bfloat16 into NumPy, so the
    positions are read here.
    """
    try:
        with open(path, "rb") as file, safetensors.safe_open(path, framework="np"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (safetensors.SafetensorError, ValueError) as error:
        raise PretrainedError(f"{path}: not a whole safetensors file ({error})") from error
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be read ({reason(error)})") from error
    try:
        check_digest(path)
    except ValueError as error:
        raise PretrainedError(str(error)) from error
    _check_settings(path.with_name(CONFIG), header.pop("__metadata__", {}).get(CONFIG))
    return {
        name: StoredTensor(path, name.removeprefix(PREFIX), about["dtype"], tuple(about["shape"]), start)
        for name, about in header.items()
        for start in [8 + length + about["data_offsets"][0]]
    }


def _check_settings(path: Path, digest: str | None) -> None:
    """Raise `PretrainedError` if the file of weights contains a digest of config.json and this one has another."""
    if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise PretrainedError(
            f"{path}: its SHA-256 is not the one in the weights: it is damaged, was changed, or belongs to other "
            "weights; restore it, or save the model again"
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} appears twice")
    return content


def _check_tensors(folder: Path, config: GPTConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `PretrainedError` unless the tensors have the names, shapes and dtypes that the configuration requires.

    First the configuration is compared with the sizes of the weights, then each tensor with the sizes of the weights.
    So a wrong size is reported once, and a configuration with a billion layers costs nothing.
    """
    said = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    shown = said | _sizes_of(tensors)
    problems = [
        f"{CONFIG} says {key} {said[key]}, the weights have {shown[key]}" for key in said if said[key] != shown[key]
    ]

    expected = layout(**shown)
    allowed = expected | {"lm_head.weight": expected["wte.weight"]}
    found = [(name, tensor, allowed[name]) for name, tensor in tensors.items() if name in allowed]
    problems += [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in allowed]
    problems += [f"{name} has shape {t.shape}, expected {shape}" for name, t, shape in found if t.shape != shape]
    dtypes = " or ".join(READ_AS)
    problems += [f"{name} is stored as {t.dtype}, expected {dtypes}" for name, t, _ in found if t.dtype not in READ_AS]
    if problems:
        raise PretrainedError(f"{folder}: {'; '.join(problems)}")


def _sizes_of(tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """The sizes in config.json that can be read off the weights."""
    numbers = (int(match[1]) for name in tensors if (match := re.match(r"h\.([0-9]{1,9})\.", name)))
    sizes = {"n_layer": max((number + 1 for number in numbers if number < len(tensors)), default=0)}
    for name, keys in (("wpe.weight", ("n_positions", "n_embd")), ("wte.weight", ("vocab_size", "n_embd"))):
        if name in tensors and len(tensors[name].shape) == 2:
            sizes |= zip(keys, tensors[name].shape, strict=True)
    return sizes


def _check_values(folder: Path, config: GPTConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `PretrainedError` if lm_head and wte differ, or if there are nonzero biases where the config has none."""
    if "lm_head.weight" in tensors:
        pairs = zip(tensors["wte.weight"].pieces(), tensors["lm_head.weight"].pieces(), strict=True)
        if not all(np.array_equal(wte, lm_head, equal_nan=True) for (_, wte), (_, lm_head) in pairs):
            raise PretrainedError(f"{folder}: lm_head.weight differs from wte.weight; expected one matrix for both")
    biases = [] if config.bias else [name for name in tensors if name.endswith(".bias")]
    wrong = [name for name in biases if any(piece.any() for _, piece in tensors[name].pieces())]
    if wrong:
        raise PretrainedError(
            f'{folder}: {CONFIG} says "bias": false, but these biases are not zero: {", ".join(wrong)}; set '
            '"bias": true to use them'
        )


# The hub


def fetch(repository: str) -> Path:
    """The folder in the cache of a model from the Hugging Face hub. Missing files are downloaded.

    repository: "owner/name". Downloads are checked against the hub's checksums. The environment variable HF_ENDPOINT
    can name another hub.
    """
    folder = cache_directory() / "models" / repository
    address = f"{(os.environ.get('HF_ENDPOINT') or HUB).rstrip('/')}/{repository}"

    def get(name: str) -> None:
        if not (folder / name).is_file():
            download(f"{address}/resolve/main/{name}", None, folder / name, progress=True)

    try:
        get(CONFIG)
        if not (folder / INDEX).is_file():
            try:
                get(WEIGHTS)
            except NotFoundError:
                get(INDEX)
        if not (folder / WEIGHTS).is_file():
            for name in sorted(set(_read_index(folder / INDEX).values())):
                get(name)
    except DataError as error:
        raise PretrainedError(
            f"{repository}: there is no such folder, and the download failed ({error}). Put {CONFIG} and {WEIGHTS} "
            f"from {address}/tree/main into {folder}, or name a folder that has them"
        ) from error
    return folder


# Writing


def write(folder: str | os.PathLike[str], config: GPTConfig, parameters: Mapping[str, Any]) -> None:
    """Write a model to a folder that `read` and transformers' `GPT2LMHeadModel.from_pretrained` can open.

    parameters: the arrays of a GPT by name. Each file is written whole or not at all. A model without biases is
    written with zero biases. Raises `PretrainedError` if the model is not a GPT-2; see `check_is_gpt2`.
    """
    folder = Path(folder)
    tensors = check_is_gpt2(config, parameters)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as temporary:
            settings = json.dumps(_settings_of(config, parameters["wte.weight"].dtype), indent=2).encode() + b"\n"
            metadata = {"format": "pt", CONFIG: hashlib.sha256(settings).hexdigest()}
            mg.save(tensors, Path(temporary, WEIGHTS), metadata)
            Path(temporary, CONFIG).write_bytes(settings)
            for name in (WEIGHTS, CONFIG):
                replace(Path(temporary, name), folder / name)
    except OSError as error:
        raise PretrainedError(f"{folder}: cannot be written ({reason(error)})") from error


def check_is_gpt2(config: GPTConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays to store, as views of the parameters, by their names in the file.

    Raises `PretrainedError` if the model does not fit GPT-2's layout because of its options or its parameters.
    """
    training_only = {"zero_init_residual", "checkpoint"}  # do not change what the model computes
    known = {*SIZES.values(), "n_head", "dropout", "bias", *training_only}
    options = [(field, getattr(config, field.name)) for field in dataclasses.fields(config) if field.name not in known]
    problems = [
        f"{field.name} is {value!r}, expected {field.default!r}" for field, value in options if value != field.default
    ]

    stored = {name: as_stored(name, array) for name, array in parameters.items()}
    expected = layout(**{theirs: getattr(config, ours) for theirs, ours in SIZES.items()})
    if not config.bias:
        dtype = parameters["wte.weight"].dtype
        stored |= {name: np.zeros(shape, dtype) for name, shape in expected.items() if name.endswith(".bias")}
    problems += [f"missing {name}" for name in expected if name not in stored]
    problems += [f"unexpected {name}" for name in stored if name not in expected]
    problems += [
        f"{name} is {stored[name].dtype} {stored[name].shape}, expected {' or '.join(STORED_AS)} {shape}"
        for name, shape in expected.items()
        if name in stored and (stored[name].shape != shape or stored[name].dtype.name not in STORED_AS)
    ]
    if problems:
        raise PretrainedError(f"save_pretrained: the model does not fit GPT-2's layout: {'; '.join(problems)}")
    return {f"{PREFIX}{name}": stored[name] for name in expected}


def _settings_of(config: GPTConfig, dtype: np.dtype) -> dict[str, Any]:
    end_of_text = 50256 if config.vocab_size > 50256 else None  # GPT-2's token; other vocabularies are unknown here
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: values[0] for key, values in FIXED.items() if key != "bias"},
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "n_head": config.n_head,
        "n_ctx": config.block_size,
        "n_inner": None,
        **dict.fromkeys(DROPOUTS, config.dropout),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype.name,
        **({} if config.bias else {"bias": False}),
    }
