"""Docstrings as HTML: paragraphs, formulas in indented lines, diagrams, code, lists and descriptions of arguments."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from html import escape
from typing import NamedTuple

from docs.formulas import NotAFormula, formula, runs, sentence

INDENT = 4
ARGUMENT = re.compile(r'[A-Za-z_]+(?:, [A-Za-z_]+)*(?: "\w+")?: \S')  # "causal: query i sees …"
ENDS = re.compile(r"[.:;)]$")  # an argument may be described after such a line; other lines continue in the next one
RUN_IN = re.compile(r"^(Backward|Shapes|Letters)([.,:])")
CODE = re.compile(r"^(?:class |def |from |import |@|with |for )", re.M)
SENTENCE = re.compile(r"(?:et al\. |\([^)]*\)|[^.:]|[.:](?! |$))+")  # up to a full stop or colon outside of brackets
RESULT = re.compile(r"(?:y|loss)(?:_\w+)? = ")
DIAGRAM = re.compile("[─│►◄┌└]")
LOOKS_LIKE_MATH = re.compile(r"\w[_^]\w|[=/^]")


class Block(NamedTuple):
    kind: str  # "text", "formulas", "code", "diagram" or "item" of a list
    lines: list[str]

    @property
    def text(self) -> str:
        return " ".join(line.strip() for line in self.lines)


def blocks(docstring: str | None) -> list[Block]:
    """A docstring cut into its blocks."""
    found: list[Block] = []
    interrupted = True  # does the next line start a new block?
    for line in inspect.cleandoc(docstring or "").splitlines():
        if not line.strip():
            if found and found[-1].kind == "indented":
                found[-1].lines.append("")
            interrupted = True
            continue
        indent = len(line) - len(line.lstrip())
        last = found[-1] if found else Block("", [])
        if line.lstrip().startswith("- ") and 0 < indent < INDENT:
            found.append(Block("item", [line.strip()[2:]]))
        elif indent and not interrupted and continues(last, line, indent):
            last.lines.append(line)
        elif indent >= INDENT:
            if last.kind != "indented":
                found.append(Block("indented", []))
            found[-1].lines.append(line)
        elif interrupted or last.kind != "text" or (ARGUMENT.match(line) and ENDS.search(last.lines[-1])):
            found.append(Block("text", [line]))
        else:
            last.lines.append(line)
        interrupted = False
    return [classified(block) if block.kind == "indented" else block for block in found]


def continues(block: Block, line: str, indent: int) -> bool:
    """Does the indented line continue an item of a list, or `name: what it is`? Formulas under them do not."""
    if block.kind == "item":
        return indent < 2 * INDENT
    return block.kind == "text" and bool(ARGUMENT.match(block.lines[0])) and not is_formula(cells(line)[0])


def classified(block: Block) -> Block:
    lines = inspect.cleandoc("\n" + "\n".join(block.lines)).splitlines()
    text = "\n".join(lines)
    return Block("diagram" if DIAGRAM.search(text) else "code" if CODE.search(text) else "formulas", lines)


def cells(line: str) -> list[str]:
    """The formulas and remarks of a line, which are two or more spaces apart."""
    return re.split(r"\s{2,}", re.sub(r"\s+= ", " = ", line.strip()))


def is_formula(text: str) -> bool:
    try:
        return bool(formula(text))
    except NotAFormula:
        return False


def cell_html(text: str, may_list: bool = False) -> tuple[str, str]:
    """What a cell is, and its HTML: a formula, a remark, or, if it does not parse, the text as it is written.

    may_list: several formulas with commas between them count as one
    """
    body = text.rstrip(".")
    parts = body.split(", ")
    if not (may_list and all(" = " in part for part in parts)):
        parts = [body]
    with contextlib.suppress(NotAFormula):
        return "formula", ", ".join(map(formula, parts))
    words = "".join(run.source for run in runs(text) if run.kind == "words")
    if LOOKS_LIKE_MATH.search(words):
        return "plain", f"<code>{escape(text, quote=False)}</code>"
    return "remark", sentence(text)


def formula_lines(lines: list[list[str]]) -> str:
    """Lines of cells: a single line flows, several lines are a table with aligned columns."""
    width = max(map(len, lines))
    rows = []
    for line in lines:
        columns = [cell_html(cell, may_list=len(lines) == 1) for cell in line]
        wide = ' class="wide"' if len(line) == 1 and width > 1 else ""
        spans = "".join(f'<span class="{kind}">{html}</span>' for kind, html in columns)
        rows.append(f"<div{wide}>{spans}</div>")
    shape = "one-line" if len(lines) == 1 else f"columns-{width}"
    return f'<div class="formulas {shape}">{"".join(rows)}</div>'


def paragraph(text: str) -> str:
    """A paragraph. One of the form `formula.    derivation.` becomes a line of formulas."""
    parts = re.split(r"\s{3,}", text)
    if len(parts) > 1 or is_formula(text.rstrip(".")):
        return formula_lines([parts])
    if head := RUN_IN.match(text):
        return f'<p><strong class="run-in">{head[1]}{head[2]}</strong>{sentence(text[head.end() :])}</p>'
    if ARGUMENT.match(text):
        name, rest = text.split(":", 1)
        return f'<p class="argument"><code>{escape(name, quote=False)}</code>:{sentence(rest)}</p>'
    return f"<p>{sentence(text)}</p>"


def to_html(docstring: str | None, code: Callable[[str], str]) -> str:
    """A docstring as HTML; `code` typesets a block of Python."""

    def parts() -> Iterator[str]:
        for kind, group in itertools.groupby(blocks(docstring), lambda block: block.kind):
            if kind == "item":
                yield f"<ul>{''.join(f'<li>{sentence(item.text)}</li>' for item in group)}</ul>"
                continue
            for block in group:
                if kind == "text":
                    yield paragraph(block.text)
                elif kind == "formulas":
                    yield formula_lines([cells(line) for line in block.lines if line])
                elif kind == "diagram":
                    yield f'<pre class="diagram">{escape(chr(10).join(block.lines), quote=False)}</pre>'
                else:
                    yield code("\n".join(block.lines).rstrip() + "\n")

    return "\n".join(parts())


def first_line(docstring: str | None) -> tuple[str, str]:
    """An operation in one line, as HTML: its first sentence and, unless it is a formula, the formula of the result."""
    text, *rest = blocks(docstring)
    start = SENTENCE.match(re.split(r"\s{3,}", text.text)[0])
    summary = sentence(start[0] if start else text.text)
    if re.match(r"\S+ = ", text.text):
        return summary, ""
    before = itertools.takewhile(lambda block: not block.text.startswith("Backward"), rest)
    lines = [cells(line) for block in before if block.kind == "formulas" for line in block.lines]
    results = [cell for line in lines for cell in line if RESULT.match(cell) and is_formula(cell)]
    return summary, formula(results[-1], stacked=False) if results else ""
