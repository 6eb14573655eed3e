"""Turn text files, which may be larger than memory, into token files for training.

    python examples/prepare_data.py books/ more.txt --tokenizer gpt2 --out tokens
    python examples/prepare_data.py books/ --tokenizer bpe.json --vocab-size 4096 --out tokens   # learn bpe.json first
    python examples/train_shakespeare.py --data tokens

Files are read in the given order. The files of a folder are read in sorted order, without those that this program wrote
there. <|endoftext|> separates files, unless tokens are characters. The last tokens of all are for validation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from gpt import CharTokenizer, ConfigError
from gpt.errors import run_program
from gpt.options import Parser, folder
from gpt.text.data import META, TRAIN, VAL, read_chunks
from gpt.text.prepare import check_options, prepare, text_files
from gpt.text.tokenizer import BPETokenizer, GPT2Tokenizer, Tokenizer, load


def main() -> None:
    parser = Parser(description="Turn text files into token files for training.")
    parser.add_argument("files", metavar="FILE", nargs="+", help="a UTF-8 text file, or a folder of them")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default="gpt2",
        help='"char", "gpt2", or a JSON file of a learned byte-pair encoding (default: gpt2)',
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="first learn the JSON file from the texts, with N tokens in total"
    )
    parser.add_argument("--out", metavar="DIR", required=True, type=folder, help="folder for the token files")
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help="fraction of the tokens for validation (default: 0.1)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: one per processor)")
    args = parser.parse_args()

    check_options(args.val_fraction, args.workers)
    written = [args.out / name for name in (TRAIN, VAL, META)]
    if args.tokenizer not in ("char", "gpt2"):
        written.append(Path(args.tokenizer))
    files = text_files(args.files, leave_out=written)
    args.out.mkdir(parents=True, exist_ok=True)  # now, so that an error comes before the work
    if args.vocab_size is not None:
        Path(args.tokenizer).parent.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in files)
    print(f"texts       {len(files):,} files, {size:,} bytes")

    def bar(title: str) -> tqdm:
        return tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=sys.stderr is None)

    tokenizer = choose_tokenizer(args.tokenizer, args.vocab_size, files, bar)
    print(f"tokenizer   {args.tokenizer}, {tokenizer.vocab_size:,} tokens", flush=True)
    with bar("encoding") as progress:
        meta = prepare(files, tokenizer, args.out, args.val_fraction, args.workers, progress.update)
    counts = {name: about["tokens"] for name, about in meta["files"].items()}
    print(f"tokens      {counts[TRAIN]:,} for training and {counts[VAL]:,} for validation, {meta['dtype']}")
    print(f"written     {', '.join(str(args.out / name) for name in (TRAIN, VAL, META))}")


def choose_tokenizer(name: str, vocab_size: int | None, files: list[Path], bar: Callable[[str], tqdm]) -> Tokenizer:
    """The tokenizer of this name. With "char" or a vocab_size, it is made from the texts."""

    def chunks(title: str) -> Iterator[str]:
        with bar(title) as progress:
            for file in files:
                yield from read_chunks(file, progress.update)

    if vocab_size is None:
        if name == "char":
            return CharTokenizer("".join(sorted(set().union(*map(set, chunks("characters"))))))
        return GPT2Tokenizer() if name == "gpt2" else load(name)
    if name in ("char", "gpt2"):
        raise ConfigError(f"--vocab-size is for learning byte pairs, but --tokenizer is {name}; leave --vocab-size out")
    if Path(name).exists():
        raise ConfigError(f"--vocab-size: {name} exists already; leave --vocab-size out, or name a new file")
    tokenizer = BPETokenizer.train(chunks("learning"), vocab_size)
    tokenizer.save(name)
    return tokenizer


if __name__ == "__main__":
    run_program(main)
