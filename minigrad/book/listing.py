"""Python source as HTML: Python's own tokenizer colours it, and names lead to the sections that explain them."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import io
import keyword
import textwrap
import tokenize
from collections.abc import Mapping
from html import escape
from types import ModuleType
from typing import Any

NOT_SHOWN = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@functools.cache  # to find a class, inspect parses the whole file
def source_without_docstring(thing: Any) -> str:
    """The source of a class or function, unindented, without the docstring, which the book shows as text."""
    source = textwrap.dedent(inspect.getsource(thing))
    definition = ast.parse(source).body[0]
    if ast.get_docstring(definition) is None:  # type: ignore[arg-type]
        return source
    first, *rest = definition.body  # type: ignore[attr-defined]
    lines = source.splitlines(keepends=True)
    end = first.end_lineno
    while rest and not lines[end].strip():
        end += 1
    return "".join(lines[: first.lineno - 1] + lines[end:])


def to_html(source: str, names: Mapping[str, Any], links: Mapping[Any, str]) -> str:
    """Source code as a <pre>. `names` are the globals that it sees; `links` says where things are explained.

    What is no Python, in a docstring for example, stays black; "…" may stand for code that is left out.
    """
    python = source.replace("…", "_")
    try:
        tree, tokens = ast.parse(python), list(tokenize.generate_tokens(io.StringIO(python).readline))
    except (SyntaxError, tokenize.TokenError):
        return f'<pre class="code"><code>{escape(source, quote=False).rstrip()}</code></pre>'
    hrefs = linked_names(tree, python.splitlines(), names, links)
    lines = source.splitlines(keepends=True)
    html, row, column = [], 1, 0

    def plain_up_to(end_row: int, end_column: int) -> str:
        nonlocal row, column
        text = ""
        while row < end_row:
            text += lines[row - 1][column:]
            row, column = row + 1, 0
        if row <= len(lines):
            text += lines[row - 1][column:end_column]
        column = end_column
        return escape(text, quote=False)

    previous = ""
    for token in tokens:
        if token.type in NOT_SHOWN:
            continue
        html.append(plain_up_to(*token.start))
        text = plain_up_to(*token.end)
        kind = kind_of(token, previous)
        if token.start in hrefs:
            text = f'<a href="{escape(hrefs[token.start])}">{text}</a>'
        html.append(f'<span class="{kind}">{text}</span>' if kind else text)
        previous = token.string
    return f'<pre class="code"><code>{"".join(html).rstrip()}</code></pre>'


def kind_of(token: tokenize.TokenInfo, previous: str) -> str:
    if token.type == tokenize.COMMENT:
        return "comment"
    if token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
        return "string"
    if token.type == tokenize.NUMBER:
        return "number"
    if token.type == tokenize.NAME:
        if keyword.iskeyword(token.string):
            return "keyword"
        if previous in ("def", "class"):
            return "defined"
        if token.line.lstrip().startswith("@" + token.string) or (hasattr(builtins, token.string) and previous != "."):
            return "builtin"
    return ""


def linked_names(
    tree: ast.AST, lines: list[str], names: Mapping[str, Any], links: Mapping[Any, str]
) -> dict[tuple[int, int], str]:
    """Where in the source a name stands for something that `links` knows, also behind dots as in F.softmax.

    Names that the code itself assigns, as variables or arguments, stand for something else and lead nowhere.
    """
    found: dict[tuple[int, int], str] = {}
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}

    def value_of(node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return None if node.id in own else names.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = value_of(node.value)
            return vars(holder).get(node.attr) if isinstance(holder, ModuleType) else None
        return None

    for node in ast.walk(tree):
        value = value_of(node)
        if value is None or getattr(value, "__hash__", None) is None or value not in links:
            continue
        assert isinstance(node, (ast.Name, ast.Attribute))
        assert node.end_lineno is not None
        name = node.id if isinstance(node, ast.Name) else node.attr
        # columns of the tree count bytes, those of tokens characters
        end = len(lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode())
        found[(node.end_lineno, end - len(name))] = links[value]
    return found
