"""Options: dataclass fields that are also command-line options, the options that programs share, and their checks."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import minigrad as mg
from minigrad.distributed import launcher

from .errors import ConfigError

TYPES = {"int": int, "float": float, "str": str, "int | None": int, "float | None": float}
MODEL_SOURCES = 'a run\'s folder, a checkpoint, a folder with GPT-2\'s files, or "gpt2", "gpt2-medium" …'


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that also understands options with underscores: --max_iters is --max-iters."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)  # what follows are not options
        return super().parse_known_args([*map(with_hyphens, words[:end]), *words[end:]], namespace)

    def error(self, message: str) -> NoReturn:
        if launcher()[1] > 1:  # all ranks have the same command line: `run_program` prints the message once
            raise ConfigError(message)
        super().error(message)


def with_hyphens(word: str) -> str:
    """A word of the command line, with hyphens in the name if it is a long option."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with the help text, and the choices if any, of its command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def fields_of(config: type, *, without: tuple[str, ...] = ()) -> list[dataclasses.Field]:
    """The fields of a dataclass, except those named."""
    return [field for field in dataclasses.fields(config) if field.name not in without]


def add_options(
    parser: Any,
    fields: Iterable[dataclasses.Field],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Add an option to the parser for each field: n_layer becomes --n-layer.

    presets: the fields' values in each preset, by name. The help text lists them, and also the field's default unless
        every preset has a value. A preset named "default" replaces the fields' defaults in the help text.
    aliases: a second name of an option, such as "--max-iters", by field name.

    An option that is not given is None, so that a program can tell which were given; see `given`.
    """
    presets, aliases = presets or {}, aliases or {}
    for field in fields:
        values = {preset: chosen[field.name] for preset, chosen in presets.items() if field.name in chosen}
        if "default" not in values and (not presets or len(values) < len(presets)):
            place = {"default": field.default}  # first if there is a preset "default", otherwise after the presets
            values = place | values if "default" in presets else values | place
        shown = ", ".join(f"{preset}: {value}" for preset, value in values.items() if value not in ("", None))
        about = field.metadata["help"] + (f" ({shown})" if shown else "")
        flags = ["--" + field.name.replace("_", "-"), *filter(None, [aliases.get(field.name)])]
        if field.type == "bool":
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            kind, choices = TYPES[str(field.type)], field.metadata["choices"]
            parser.add_argument(*flags, type=kind, choices=choices, help=about)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that are not None: those given on the command line, and those with a default in the parser."""
    return {name: value for name, value in vars(args).items() if value is not None}


def pick(options: Mapping[str, Any], fields: Iterable[dataclasses.Field]) -> dict[str, Any]:
    """The options that are among the fields."""
    return {field.name: options[field.name] for field in fields if field.name in options}


def describe(config: Any, fields: Iterable[dataclasses.Field]) -> str:
    """The fields of a config with their values, in one line."""
    return ", ".join(f"{field.name} {getattr(config, field.name)}" for field in fields)


Config = TypeVar("Config")


def restore(config: type[Config], saved: Any) -> Config:
    """The options of this class that a file holds. Raises `ConfigError` for bad values and for unknown options."""
    if not isinstance(saved, Mapping):
        raise ConfigError(f"{config.__name__} is {saved!r:.100}; expected options by name")
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    unknown = [f"{name:.50}" for name in saved if name not in known]
    if unknown:
        raise ConfigError(
            f"{config.__name__} has options that this version does not know: {', '.join(map(repr, unknown[:5]))}; it "
            "was saved by a newer version, or is damaged"
        )
    return config(**saved)


# Options shared by several programs


def add_device_option(parser: argparse.ArgumentParser, default: str | None = "cpu", about: str = "cpu") -> None:
    """Add --device."""
    parser.add_argument("--device", default=default, help=f'"cpu", "cuda" or "cuda:N" (default: {about})')


def check_device(device: str) -> None:
    """Raise `DeviceError`, which names what is missing, before a program does any work for the device."""
    mg.Tensor(0.0, device=device)


def add_model_options(parser: argparse.ArgumentParser, default: str | None = "out") -> None:
    """Add --model, also called --checkpoint, and --adapters, for `gpt.loading.load_model`."""
    parser.add_argument(
        "--checkpoint",
        "--model",
        metavar="MODEL",
        default=default,
        required=default is None,
        help=MODEL_SOURCES + (f" (default: {default})" if default else ""),
    )
    parser.add_argument("--adapters", metavar="FILE", help="LoRA adapters to put on the model")


def folder(name: str) -> Path:
    """The type of an option that names a folder. An empty name, as of an unset variable, is not this folder."""
    if not name:
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty one")
    return Path(name)


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Add --out and --resume."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=out,
        type=folder,
        help=f"the run's folder (default: {out}); the files of an earlier run in it are moved to previous-1/ …",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")


def add_graph_option(parser: argparse.ArgumentParser) -> None:
    """Add --graph and --no-graph, for the argument `graph` of `Trainer`, which is not saved with a run."""
    parser.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a GPU: capture a training step as a CUDA graph and replay it, with bit-identical results; not "
        "with float16, and only with the CUDA kernels (default: yes)",
    )


# Checks


def check_choices(options: Any) -> None:
    """Raise `ConfigError` if a field is not one of its choices, or if a boolean or text is something else."""
    for field in dataclasses.fields(options):
        value, choices = getattr(options, field.name), field.metadata["choices"]
        if field.type == "bool" and type(value) is not bool:  # for example "no", which would count as true
            raise ConfigError(f"{field.name} is {value!r}; expected True or False")
        if choices and value not in choices:
            raise ConfigError(f"{field.name} is {value!r}; expected {' or '.join(map(repr, choices))}")
        if field.type == "str" and not isinstance(value, str):
            raise ConfigError(f"{field.name} is {value!r:.100}; expected text")


def check_whole(options: Any, least: Mapping[str, int], bits: int = 63) -> None:
    """Raise `ConfigError` if a field is not a whole number of at least the given minimum, and below 2^bits."""
    for name, minimum in least.items():
        value = getattr(options, name)
        if type(value) is not int or value < minimum:
            raise ConfigError(f"{name} is {value!r:.100}; expected a whole number of at least {minimum}")
        if value >= 2**bits:
            raise ConfigError(f"{name} is a number of {value.bit_length()} bits; expected less than 2^{bits}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise `ConfigError` unless a function's argument is a whole number, Python's or NumPy's, of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def number_or_nan(value: Any) -> Any:
    """Return a number unchanged and anything else as NaN, which every range check rejects.

    True and False are no numbers, and an integer beyond the range of floats is none either.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return value if not isinstance(value, int) or abs(value) < 2**1023 else math.nan
