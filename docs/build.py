"""Build the site: the guides, the notebook with its outputs, and a page for every operation.

    pip install -e ".[docs]"
    python docs/build.py              then open site/index.html; no server and no network are needed

Exits with 1 if a backward pass is wrong or a link of a guide leads nowhere.

    guides.py       Markdown, the notebook and linked source files as pages
    operations.py   the pages about the engine, written from its code
    formulas.py     plain-text formulas to HTML          docstrings.py   docstrings to HTML
    listing.py      source code to HTML                  survey.py       what is measured and what is read off
    examples.py     the models whose layers are shown    layout.py       what all pages share; site.css, their looks

Documentation tools such as Sphinx and pdoc know signatures and docstrings but neither derivations, checks nor tapes,
which are what these pages are about.
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the repository, in place of this file's folder

import minigrad
from docs import examples, layout
from docs.operations import Operations, path_of, short_name
from docs.survey import layers_and_operations, measure
from minigrad import functional, nn, optim

try:
    from docs.guides import Guides
except ModuleNotFoundError as error:
    sys.exit(f'{error}. The site needs the extra "docs": pip install -e ".[docs]"')

ROOT = Path(__file__).parents[1]
NOTEBOOK = "examples/self_attention.ipynb"
# The guides in the order of reading. Guides in docs/ that are not named here come last.
GUIDES = [
    "README.md",
    "docs/students.md",
    "docs/micro.md",
    "examples/exercises/README.md",
    NOTEBOOK,
    "docs/playground.md",
    "docs/convnet.md",
    "docs/vae.md",
    "docs/gan.md",
    "docs/diffusion.md",
    "docs/alignment.md",
    "docs/training.md",
    "docs/gpt2.md",
    "docs/gpu.md",
    "docs/distributed.md",
    "docs/speed.md",
    "benchmarks/README.md",
    "docs/pytorch.md",
    "docs/architecture.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]


NAMES = {"mg": minigrad, "F": functional, "nn": nn, "optim": optim}  # what the guides' code imports


def guides_of(root: Path) -> dict[str, str]:
    """The page of every guide by its path in the repository, in the order of reading."""
    others = sorted(f"docs/{path.name}" for path in root.glob("docs/*.md"))
    paths = [path for path in GUIDES if (root / path).exists()] + [path for path in others if path not in GUIDES]
    names = {path: posixpath.splitext(path)[0].removesuffix("/README") for path in paths}
    return {path: f"{name.rpartition('/')[2].lower()}.html" for path, name in names.items()} | {
        "README.md": "index.html"
    }


def build(out: Path, models: Callable[[], Iterable[tuple[str, Any, Any]]], root: Path = ROOT) -> list[str]:
    """Write the site to the folder `out`, whole or not at all. Returns what is wrong, in a line each.

    models: yields for each model whose layers to show its name, the model, and a loss that it computed
    root: the folder with the guides

    A site that is in `out` is replaced. SiteError if something else is there.
    """
    layout.refuse_other_content(out)
    operations = Operations(measure(), {name: layers_and_operations(loss) for name, model, loss in models()})
    pages = guides_of(root)
    modules = {path_of(module): f"{short_name(module)}.html" for module, _ in operations.modules}
    guides = Guides(root, pages | modules, NAMES, operations.links)
    groups = {"Guides": [guides.page(path) for path in pages], "Operations": operations.pages()}
    sources = [guides.source(path) for path in sorted(guides.sources)]
    layout.write(layout.files_of(groups, sources) | guides.images | operations.files, out)
    return operations.problems() + guides.problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the site: guides and operations.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="DIR", help="the folder to write (site)")
    out = parser.parse_args(arguments).out.resolve()
    try:
        problems = build(out, examples.models)
    except (layout.SiteError, OSError) as error:
        parser.exit(2, f"{error}\n")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"open {(out / 'index.html').as_uri()}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
