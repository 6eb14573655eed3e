"""Source code as HTML: Pygments colors it, and names in Python lead to the sections that explain them."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from html import escape
from types import ModuleType
from typing import Any

from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String
from pygments.util import ClassNotFound

KINDS = {
    Comment: "comment", String: "string", Number: "number", Keyword: "keyword", Operator.Word: "keyword",
    Name.Function: "defined", Name.Class: "defined", Name.Builtin: "builtin", Name.Decorator: "builtin",
}  # fmt: skip


@functools.cache  # to find a class, inspect parses the whole file
def source_without_docstring(thing: Any) -> str:
    """The source of a class or function, unindented, without the docstring, which the page shows as text."""
    source = textwrap.dedent(inspect.getsource(thing))
    definition = ast.parse(source).body[0]
    if ast.get_docstring(definition) is None:
        return source
    first = definition.body[0]
    lines = source.splitlines(keepends=True)
    end = first.end_lineno
    while end < len(lines) and not lines[end].strip():
        end += 1
    return "".join(lines[: first.lineno - 1] + lines[end:])


def to_html(source: str, names: Mapping[str, Any], links: Mapping[Any, str], language: str = "python") -> str:
    """Source code as a <pre>. `names` are the globals that it sees; `links` says where things are explained.

    A name leads there, also behind dots as in F.softmax. Variables and arguments of the code itself lead nowhere.
    """
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    own = assigned_in(source) if names else set()
    html = []
    value, after_dot = None, False  # what the names before stand for, as F in F.softmax
    for token, text in lexer.get_tokens(source):
        shown = escape(text, quote=False)
        if token is Name or token in Name.Builtin:
            if after_dot:
                value = vars(value).get(text) if isinstance(value, ModuleType) else None
            else:
                value = None if text in own else names.get(text)
            if getattr(value, "__hash__", None) and value in links:
                shown = f'<a href="{escape(links[value])}">{shown}</a>'
        after_dot = text == "."
        kind = next((kind for parent, kind in KINDS.items() if token in parent), "")
        html.append(f'<span class="{kind}">{shown}</span>' if kind and text.strip() else shown)
    return f'<pre class="code"><code>{"".join(html).rstrip()}</code></pre>'


def assigned_in(source: str) -> set[str]:
    """The names of variables and arguments; "…" may stand for code that is left out."""
    try:
        nodes = list(ast.walk(ast.parse(source.replace("…", "_"))))
    except SyntaxError:
        return set()
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}
