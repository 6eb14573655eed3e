"""`python -m minigrad.book`: write the book of operations; exits with 1 if a backward pass is wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import EXAMPLES, BookError, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minigrad.book", description=__doc__)
    parser.add_argument("--out", default="book", metavar="DIR", help="the folder to write (default: %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="leave the gradient checks out")
    parser.add_argument(
        "--examples",
        default=EXAMPLES,
        metavar="MODULE:FUNCTION",
        help="yields (name, model, loss) for each model whose layers to show; empty for none (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        problems = write(options.out, not options.no_check, options.examples)
    except (BookError, OSError) as error:
        parser.exit(2, f"{error}\n")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"open {(Path(options.out).resolve() / 'index.html').as_uri()}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
