"""Fuzzing: mutated files for everything that reads a file.

    python -m tests.reliability.fuzz                                # 20 inputs for each reader
    python -m tests.reliability.fuzz --inputs 10000 --seed 1        # more, and others
    python -m tests.reliability.fuzz --reader resume --only 4711    # one input, with its traceback

Each reader has valid files. An input is these files with one of them mutated: bytes, or parts of its JSON, at any
depth. Reader, seed and number decide an input. Each reader is checked with files whose digests were taken out, as
nothing would come past them; where files have digests, also ("sealed") with these, and with mutated bytes alone.

A reader may accept an input, or refuse it with an error of its own that names the file. A sealed one must be refused. A
reader fails by any other
exception or warning, by taking more than 4 s, or by allocating more than 4 times the files' size and 8 MB, which is for
tables that do not depend on the size, such as that of code points.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPT, CharTokenizer, GPTConfig, checkpoint, lora, metrics
from gpt.config import TrainConfig
from gpt.errors import GPTError, TokenError
from gpt.options import restore
from gpt.text import prepare, tokenizer
from gpt.text.data import Dataset, load_tokens
from gpt.trainer import Trainer
from gpt.translation.pairs import load_pairs, number_pairs
from gpt.translation.seq2seq import Seq2SeqConfig
from gpt.translation.translator import Translator
from tests.programs import load_program

SEALED = ("pretrained", "token files")  # some of their files have their digest in another one
SECONDS, WAIT = 4, 30  # of computation; of a reader that waits for something
TIMES, FLOOR = 4, 8 << 20  # the files' size; bytes
TEXT = "the cat sat on the mat and the dog sat on the cat\n" * 8
KEY = "minigrad.sha256"


@dataclasses.dataclass
class Reader:
    """What reads a folder of files.

    own: the errors that it may raise. names_file: whether they name the file. sealed: no mutated file may be accepted.
    """

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], Any]
    own: tuple[type[Exception], ...] = (GPTError, OSError)
    names_file: bool = True
    sealed: bool = False


# The readers


def readers() -> list[Reader]:
    """All readers, with valid files."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        found = [*_plain_readers(Path(name)), *_run_readers(Path(name)), *_model_readers(Path(name))]
    for reader in list(found):
        files = {name: without_digest(name, content) for name, content in reader.files.items()}
        if all(files[name] != content for name, content in reader.files.items()) or reader.name in SEALED:
            found.append(dataclasses.replace(reader, name=f"{reader.name}, sealed", sealed=True))
        reader.files = files
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def without_digest(name: str, content: bytes) -> bytes:
    if name.endswith(".safetensors"):
        header, data = split(content)
        for key in (KEY, "config.json"):
            header.get("__metadata__", {}).pop(key, None)
        return join(json.dumps(header).encode(), data)
    if name.endswith(".json"):
        tree = json.loads(content)
        tree.pop(KEY, None)
        for about in tree.get("files", {}).values():
            about.pop("sha256", None)
        return json.dumps(tree).encode()
    return content


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _plain_readers(folder: Path) -> Iterator[Reader]:
    x = {
        "x": np.arange(12.0).reshape(3, 4),
        "n": np.arange(3),
        "half": np.ones(5, np.float16),
        "none": np.zeros((0, 2)),
    }
    mg.save(x, folder / "plain" / "x.safetensors", {"step": "7", "about": json.dumps({"a": [1, 2.5, None]})})
    yield Reader(
        "mg.load",
        _contents(folder / "plain"),
        lambda folder: mg.load(folder / "x.safetensors"),
        (ValueError, OSError),
    )

    configs = {"gpt": GPTConfig(), "train": TrainConfig(), "seq2seq": Seq2SeqConfig()}

    def read_configs(folder: Path) -> None:
        try:
            saved = json.loads((folder / "config.json").read_bytes())
        except (ValueError, RecursionError):
            return
        for name, config in configs.items():
            restore(type(config), saved.get(name, {}) if isinstance(saved, dict) else saved)

    content = json.dumps({name: dataclasses.asdict(config) for name, config in configs.items()}).encode()
    yield Reader("config", {"config.json": content}, read_configs, names_file=False)

    def read_tokenizer(folder: Path) -> None:
        found = tokenizer.load(folder / "tokenizer.json")
        if not isinstance(found, tokenizer.GPT2Tokenizer):  # which has its tokens in files of its own
            with contextlib.suppress(TokenError):  # a character that it does not know
                found.decode(found.encode("the cat", allowed_special="all"))

    for kind, made in (
        ("characters", CharTokenizer.from_text(TEXT)),
        ("byte pairs", tokenizer.BPETokenizer.train(TEXT, 290)),
    ):
        made.save(folder / kind / "tokenizer.json")
        yield Reader(
            f"tokenizer, {kind}",
            _contents(folder / kind),
            read_tokenizer,
        )

    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare.prepare([folder / "text.txt"], CharTokenizer.from_text(TEXT), folder / "tokens")

    def read_tokens(folder: Path) -> None:
        tokens = load_tokens(folder)
        data = Dataset.of_parts(tokens.train, tokens.val, 8, tokens.tokenizer.vocab_size)
        data.batch("train", 4, np.random.default_rng(0))

    yield Reader("token files", _contents(folder / "tokens"), read_tokens, names_file=False)

    lines = "".join(f"{source}\t{target}\n" for source, target in number_pairs(20, 0)).encode()
    yield Reader("pairs", {"pairs.txt": lines}, lambda folder: load_pairs(folder / "pairs.txt"))


def _run_readers(folder: Path) -> Iterator[Reader]:
    """Checkpoints of runs with AdamW and with Muon: to sample from, and to resume; the metrics; an adapter."""
    ids = CharTokenizer.from_text(TEXT).encode(TEXT)
    modern = {"position": "rotary", "norm": "rms", "tie_weights": False, "bias": False}
    for optimizer, options in (("adamw", {}), ("muon", modern)):
        made = CharTokenizer.from_text(TEXT)
        config = GPTConfig(block_size=8, vocab_size=made.vocab_size, n_layer=1, n_head=2, n_embd=8, **options)
        train = TrainConfig(max_iters=2, batch_size=2, eval_interval=1, eval_iters=1, optimizer=optimizer, processes=1)
        out = folder / optimizer
        trainer = Trainer(GPT(config), Dataset(ids, 8), made, train, out, "text", graph=False)
        trainer.train()
        files = {name: content for name, content in _contents(out).items() if name != "best.safetensors"}

        def resume(folder: Path) -> None:
            saved = checkpoint.load(folder / "last.safetensors")
            saved.check_same_text("text")
            options = restore(TrainConfig, saved.run["train_config"])
            data = Dataset.of_parts(ids, ids, saved.config.block_size, saved.config.vocab_size)
            trainer = Trainer(GPT(saved.config), data, saved.tokenizer, options, folder, "text", graph=False)
            with contextlib.redirect_stdout(None):
                trainer.resume(saved)
            trainer.learning_rate()

        if optimizer == "adamw":
            yield Reader(
                "checkpoint",
                {"last.safetensors": files["last.safetensors"]},
                lambda folder: checkpoint.load(checkpoint.find(folder)).model(),
            )
            mark = {"bytes": len(files["metrics.csv"]), "sha256": None}

            def read_metrics(folder: Path, mark: dict[str, Any] = mark) -> None:
                content = (folder / "metrics.csv").read_bytes()
                given = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                metrics.read(folder / "metrics.csv", given)

            yield Reader("metrics", {"metrics.csv": files["metrics.csv"]}, read_metrics)
        yield Reader(f"resume, {optimizer}", files, resume, names_file=False)

    config = GPTConfig(block_size=8, vocab_size=17, n_layer=2, n_head=2, n_embd=8)
    mg.manual_seed(0)
    base = GPT(config)
    lora.save_adapters(lora.add_adapters(copy.deepcopy(base), 2), folder / "lora" / "adapters.safetensors")
    yield Reader(
        "adapters",
        _contents(folder / "lora"),
        lambda folder: lora.load_adapters(copy.deepcopy(base), folder / "adapters.safetensors"),
    )


def _model_readers(folder: Path) -> Iterator[Reader]:
    """GPT-2's layout in one file and in shards; a translator; the run of examples/translate.py."""
    base = GPT(GPTConfig(block_size=8, vocab_size=17, n_layer=2, n_head=2, n_embd=8))
    base.save_pretrained(folder / "gpt2")
    whole = _contents(folder / "gpt2")
    yield Reader("pretrained", whole, lambda folder: GPT.from_pretrained(folder))

    header, data = split(whole["model.safetensors"])
    header.pop("__metadata__")
    shards: dict[str, bytes] = {}
    names = sorted(header)
    for number, part in enumerate((names[::2], names[1::2])):
        shard, content = {}, b""
        for name in part:
            start, end = header[name]["data_offsets"]
            shard[name] = {**header[name], "data_offsets": [len(content), len(content) + end - start]}
            content += data[start:end]
        shards[f"{number}.safetensors"] = join(json.dumps(shard).encode(), content)
    index = {name: f"{number}.safetensors" for number, part in enumerate((names[::2], names[1::2])) for name in part}
    files = {"config.json": whole["config.json"], **shards}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    yield Reader("pretrained, shards", files, lambda folder: GPT.from_pretrained(folder))

    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8}
    Translator.for_pairs(number_pairs(20, 0), **shape).save(folder / "translator" / "model.safetensors")
    yield Reader("translator", _contents(folder / "translator"), lambda folder: Translator.load(folder))

    program = load_program("translate")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**shape, "steps": 1, "pairs": 40}.items()]
    before, sys.argv = sys.argv, ["translate.py", "--out", str(folder / "translate"), "--task", "numbers", *options]
    try:
        program.main()
    finally:
        sys.argv = before
    last = {"last.safetensors": _contents(folder / "translate")["last.safetensors"]}
    yield Reader("resume, translator", last, lambda folder: program.read_run(folder))


# Mutations

NUMBERS = [-5, 0, 3, 768, 10**6, 10**9, 2**31 - 1, 2**40, 2**62, 2**64 - 1, math.inf, math.nan]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        255,
        2**31,
        2**32,
        2**53,
        2**63 - 1,
        2**63,
        2**64 - 1,
        -(2**63),
        10**9,
        10**400,
    ),
    *(
        0.5,
        -0.5,
        1e-300,
        1e300,
        math.inf,
        -math.inf,
        math.nan,
        "",
        "a",
        "0",
        "\x00",
        "\ud800",
        "\n",
        "a" * 5000,
        "\U0010ffff",
    ),
    *([], {}, [0], [[]], [1, 2, 3], [None] * 50, {"a": 1}, {"kind": "gpt2"}, {"kind": "char", "characters": "ab"}),
    *("float16", "muon", "rotary", "rms", "F64", "I64", "BF16", "U8", "F8_E4M3"),
]
TOKENS = [
    b"\0",
    b"\xff" * 8,
    b"[" * 100_000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"-",
    b"1e999",
    b"NaN",
    b'"',
    b"\\u0000",
    b"\t",
    b"\r\n",
]
TOKENS += [b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"null", b"true", b",", b"}", b"]", b"\xed\xa0\x80", b" " * 5000]


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    """The content with one to three mutations."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.7:
            with contextlib.suppress(ValueError, OverflowError, RecursionError):  # no JSON any more, or no such number
                if name.endswith(".safetensors"):
                    header, data = split(content)
                    content = join(json.dumps(mutated_tree(rng, header)).encode(), data)
                    continue
                if name.endswith(".json"):
                    content = json.dumps(mutated_tree(rng, json.loads(content))).encode()
                    continue
        content = mutated_bytes(rng, content)
    return content


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return rng.choice(TOKENS)
    changed, start = bytearray(content), rng.randrange(len(content))
    if rng.random() < 0.5:  # near the beginning, where the headers are
        start = min(start, rng.randrange(64))
    end = min(len(content), start + rng.choice([1, 2, 8, 64, 4096]))
    match rng.randrange(7):
        case 0:
            changed[start] ^= 1 << rng.randrange(8)
        case 1:
            changed[start:end] = rng.randbytes(end - start)
        case 2:
            changed[start:end] = bytes(end - start)
        case 3:
            changed[start:end] = b""
        case 4:
            changed[start:start] = rng.choice(TOKENS)
        case 5:
            changed[start:start] = changed[start:end]
        case _:
            del changed[start:]
    return bytes(changed)


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """JSON with one place changed. Texts that are JSON themselves are gone into."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.01:
        return rng.choice(VALUES)
    if isinstance(tree, dict) and isinstance(tree.get("__metadata__"), dict) and rng.random() < 0.8:
        inner = tree["__metadata__"]
        embedded = [key for key, text in inner.items() if isinstance(text, str) and text.startswith("{")]
        if embedded:
            key = rng.choice(embedded)
            inner[key] = json.dumps(mutated_tree(rng, json.loads(inner[key])))
            return tree
    visit(tree)
    node, key = rng.choice(places)
    if rng.random() < 0.5:  # level by level, so that a long list does not draw all mutations
        node = tree
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.1:
                break
            node = node[key]
    value = node[key]
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(["", "a", "version", str(key) + "x", "\ud800"])] = node.pop(key)
        case 1 | 2 if isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(value))
        case 2:
            node[rng.choice(["", "a", "newer_option", "bias", "dtype"])] = rng.choice(VALUES)
        case 3 | 6 | 7 if isinstance(value, int | float):
            near = [value + 1, value - 1, -value, value * 2, value * 2**40, float(value), str(value), not value]
            node[key] = rng.choice([*near, *NUMBERS])
        case 4 if isinstance(value, str):
            node[key] = rng.choice([value[:-1], value * 2, value + "\ud83d", value.upper(), [value], value[::-1]])
        case 5:
            other, its_key = rng.choice(places)
            node[key] = copy.deepcopy(other.get(its_key) if isinstance(other, dict) else other[its_key])
        case _:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


# The check


@dataclasses.dataclass
class Result:
    """What became of the inputs of one reader."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0  # the longest
    allocated: int = 0  # the most bytes beyond TIMES times the files' size
    failures: list[str] = dataclasses.field(default_factory=list)


class _HangError(BaseException):
    pass


def check(reader: Reader, numbers: range, seed: int = 0, raises: bool = False) -> Result:
    """Let a reader read the inputs with these numbers. raises: let a foreign exception through."""
    result = Result()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), _alarm():
        warnings.simplefilter("error")
        folder = Path(name)
        for file, content in reader.files.items():
            (folder / file).write_bytes(content)
        reader.read(folder)  # the valid files; also, what is loaded at the first call is loaded now
        tracemalloc.start()
        for number in numbers:
            rng = random.Random(f"{seed}/{reader.name}/{number}")
            file = rng.choice(list(reader.files))
            mutate = mutated_bytes if reader.sealed else functools.partial(mutated, name=file)
            content = mutate(rng, content=reader.files[file])
            (folder / file).write_bytes(content)
            if why := _failure(reader, folder, content != reader.files[file], result, raises):
                result.failures.append(f"{reader.name} --only {number} --seed {seed}: {file}: {why}")
            (folder / file).write_bytes(reader.files[file])
            for path in folder.iterdir():  # what a reader writes
                if path.name not in reader.files:
                    path.unlink()
        tracemalloc.stop()
    return result


def _failure(reader: Reader, folder: Path, is_changed: bool, result: Result, raises: bool) -> str | None:
    """Read the folder. Why that failed, or None."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    started, why = time.process_time(), None
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        reader.read(folder)
        result.accepted += 1
        if reader.sealed and is_changed:
            why = "accepted, though the digest is wrong"
    except reader.own as error:
        if reader.names_file and str(folder) not in str(error):
            why = f"the error does not name the file: {error!s:.300}"
    except _HangError:
        why = f"took more than {WAIT} s"
    except Exception as error:
        if raises:
            raise
        why = f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, allocated = time.process_time() - started, tracemalloc.get_traced_memory()[1] - TIMES * size
    result.inputs += 1
    result.seconds, result.allocated = max(result.seconds, seconds), max(result.allocated, allocated)
    if why is None and seconds > SECONDS:
        why = f"took {seconds:.1f} s"
    if why is None and allocated > FLOOR:
        why = f"allocated {allocated / 2**20:.1f} MiB more than {TIMES} times the files' size"
    return why


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description="Read mutated files.")
    parser.add_argument("--inputs", type=int, default=20, help="for each reader (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="only readers whose names contain this")
    parser.add_argument("--only", type=int, help="only the input with this number, with its traceback")
    args = parser.parse_args()
    numbers = range(args.inputs) if args.only is None else range(args.only, args.only + 1)
    print(f"{'reader':<32}{'inputs':>8}{'accepted':>10}{'longest':>10}{'most memory':>13}{'failures':>10}")
    total, failures = 0, []
    for reader in readers():
        if args.reader in (None, reader.name) or args.reader in reader.name:
            result = check(reader, numbers, args.seed, args.only is not None)
            print(
                f"{reader.name:<32}{result.inputs:>8}{result.accepted:>10}{result.seconds:>8.2f} s"
                f"{result.allocated / 2**20:>+9.1f} MiB{len(result.failures):>10}",
                flush=True,
            )
            total, failures = total + result.inputs, failures + result.failures
    print(f"{total} inputs, {len(failures)} failures")
    kinds: dict[str, str] = {}
    for failure in failures:
        kinds.setdefault(re.sub(r"--only \d+|[0-9.]+|'.*?'", "", failure), failure)
    print(*list(kinds.values())[:50], sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
