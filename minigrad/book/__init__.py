"""The book of operations: every operation of minigrad/ops as a page that a student can read, from the code itself.

    python -m minigrad.book --out book          then open book/index.html; no server and no network are needed

The formula and the derivation come from the operation's docstring, the code from its source, the error of its backward
is measured while the book is made, and which layer uses it is read off the tape of a small model. Nothing has to be
written twice, so nothing goes out of date: a new operation is in the next copy.

    formulas.py     plain-text formulas to HTML          docstrings.py   docstrings to HTML
    listing.py      Python source to HTML                survey.py       what is measured and what is read off
    pages.py        the chapters                         layout.py       what all pages share; book.css, their looks

Documentation tools such as pdoc know signatures and docstrings but neither derivations, checks nor tapes, which are
what this book is about; what is left for a library to do, colouring code, Python's own tokenizer does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from .layout import GENERATOR
from .pages import Book
from .survey import layers_and_operations, measure

__all__ = ["EXAMPLES", "BookError", "layers_and_operations", "write"]

EXAMPLES = "gpt.book_example:examples"
STYLE = "book.css"


class BookError(Exception):
    """The book cannot be made or not be put where it was asked for."""


def write(out: str | os.PathLike[str], check: bool = True, examples: str = EXAMPLES) -> list[str]:
    """Write the book into the folder `out`, whole or not at all. What is wrong with the operations, in a line each.

    check: measure the errors of all backward passes
    examples: "module:function", a function without arguments that yields, for each model that the chapter on layers
        shows, its name, the model, and a loss that it made. Empty for no such chapter.

    A book that is in `out` is replaced. BookError if something else is there.
    """
    out = Path(out).resolve()
    refuse_other_content(out)
    book = Book(measure() if check else None, read_examples(examples))
    files = book.pages() | {STYLE: resources.files(__name__).joinpath(STYLE).read_text(encoding="utf-8")}
    put_in_place(files, out)
    return book.problems()


def read_examples(examples: str) -> list[tuple[str, Any]]:
    """The layers and operations of the examples' models."""
    if not examples:
        return []
    module, _, function = examples.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        if examples == EXAMPLES and importlib.util.find_spec(module.partition(".")[0]) is None:
            return []  # minigrad alone is installed
        raise BookError(f"examples {examples!r}: wanted module:function ({error})") from error
    return [(name, layers_and_operations(loss)) for name, model, loss in make()]


def refuse_other_content(out: Path) -> None:
    """Only a folder that a book may replace passes: a new one, an empty one, or one that holds a book and no more."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BookError(f"{out} is not a folder")
    strangers = sorted(path.name for path in out.iterdir() if path.name != STYLE and not is_page(path))
    if strangers:
        raise BookError(
            f"{out} holds {strangers[0]!r}, which is not of a book; wanted a new folder, or a book to replace"
        )


def is_page(path: Path) -> bool:
    if path.suffix != ".html" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return f'name="generator" content="{GENERATOR}"' in file.read(1000)


def put_in_place(files: dict[str, str], out: Path) -> None:
    """All files in a new folder beside `out`, which then takes its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        new = workshop / "new"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_text(content, encoding="utf-8", newline="\n")
        if out.exists():
            out.rename(workshop / "old")
        try:
            new.rename(out)
        except BaseException:
            if (workshop / "old").exists():
                (workshop / "old").rename(out)
            raise
    finally:
        shutil.rmtree(workshop)
