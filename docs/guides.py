"""The guides as pages: Markdown files, the notebook with its outputs, and the source files that guides link to."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbclient import NotebookClient
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from docs import listing
from docs.layout import Page, text

IMAGES = (".png", ".svg", ".jpg")
ADDRESS = re.compile(r"[a-z]+:")
HTML_LINK = re.compile(r'\b((?:href|src)=")([^"]*)')


class Guides:
    """Turns files of the repository into pages.

    root: the folder of the repository
    pages: the page of every Markdown file, notebook and source file that has one, by its path in the repository
    names, links: what names stand for in the guides' Python code, and where these things are explained
    """

    def __init__(self, root: Path, pages: Mapping[str, str], names: Mapping[str, Any], links: Mapping[Any, str]):
        self.root, self.pages, self.names, self.links = root, pages, names, links
        self.sources: dict[str, str] = {}  # source files that guides link to: the page of each path
        self.images: dict[str, bytes] = {}
        self.problems: list[str] = []
        self.markdown = MarkdownIt("commonmark", {"highlight": self.code}).enable("table")
        self.markdown.use(anchors_plugin, max_level=3).use(dollarmath_plugin, renderer=mathml, allow_digits=False)

    def code(self, source: str, language: str, _: Any = None) -> str:
        return listing.to_html(source, self.names if language == "python" else {}, self.links, language)

    def page(self, path: str) -> Page:
        """The page of a Markdown file or a notebook."""
        if path.endswith(".md"):
            return self.to_page(path, [(self.root / path).read_text(encoding="utf-8")], [""])
        cells = executed(self.root / path).cells
        texts = [cell.source if cell.cell_type == "markdown" else "" for cell in cells]
        codes = [self.cell(cell) if cell.cell_type == "code" else "" for cell in cells]
        return self.to_page(path, texts, codes)

    def cell(self, cell: Any) -> str:
        """A code cell of a notebook with its outputs."""
        html = self.code(cell.source, "python")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                html += f'<p><img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}" /></p>'
            elif said := output.get("text", data.get("text/plain", "")):
                html += f'<pre class="output">{text(said)}</pre>'
        return html

    def to_page(self, path: str, texts: list[str], codes: list[str]) -> Page:
        html, headings = "", []
        for source, code in zip(texts, codes, strict=True):
            tokens = self.markdown.parse(source)
            for token in tokens:
                for part in [token, *(token.children or [])]:
                    self.resolve_in(part, path)
            starts = [i for i, token in enumerate(tokens) if token.type == "heading_open"]
            headings += [(tokens[i].tag, str(tokens[i].attrs.get("id", "")), said_in(tokens[i + 1])) for i in starts]
            html += self.markdown.renderer.render(tokens, self.markdown.options, {}) + code
        title = "Overview" if path == "README.md" else next((said for tag, _, said in headings if tag == "h1"), path)
        return Page(self.pages[path], title, html, [(anchor, said) for tag, anchor, said in headings if tag == "h2"])

    def resolve_in(self, token: Token, path: str) -> None:
        """Let the links and images of a token lead to files of the site."""
        for attribute in {"href", "src"} & set(token.attrs):
            token.attrs[attribute] = self.resolve(str(token.attrs[attribute]), path)
        if token.type in ("html_block", "html_inline"):
            token.content = HTML_LINK.sub(lambda match: match[1] + self.resolve(match[2], path), token.content)

    def resolve(self, target: str, path: str) -> str:
        """What a link or image of the file `path` leads to on the site."""
        file, _, anchor = target.partition("#")
        if not file or ADDRESS.match(target):
            return target
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        flat = file.replace("/", "-")
        if file in self.pages:
            return self.pages[file] + (f"#{anchor}" if anchor and file.endswith(".md") else "")
        if file.endswith(IMAGES) and (self.root / file).is_file():
            self.images[flat] = (self.root / file).read_bytes()
            return flat
        if (self.root / file).exists():
            return self.sources.setdefault(file, f"{flat}.html")
        self.problems.append(f"{path}: {target} does not exist")
        return target

    def source(self, path: str) -> Page:
        """The page of a source file, or of a folder: the names in it."""
        file = self.root / path
        if file.is_dir():
            names = sorted(each.name + "/" * each.is_dir() for each in file.iterdir() if each.name[0] not in "._")
            code = self.code("\n".join(names), "")
        else:
            try:
                language = get_lexer_for_filename(path).aliases[0]
            except ClassNotFound:
                language = ""
            code = self.code(file.read_text(encoding="utf-8"), language)
        return Page(self.sources[path], path, f"<h1>{text(path)}</h1>{code}", [])


def said_in(heading: Token) -> str:
    return "".join(child.content for child in heading.children or [])


def mathml(source: str, options: Mapping[str, Any]) -> str:
    return convert(source, display="block" if options["display_mode"] else "inline")


@functools.cache
def executed(path: Path) -> Any:
    """The notebook, run from top to bottom by this interpreter. Raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))  # none but ipykernel's own
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(notebook, km=kernel, timeout=600, extra_arguments=quiet)
    client.execute(cleanup_kc=True, env=os.environ | {"PYTHONPATH": paths})
    return notebook
