"""How a page is put together: the head, the contents at its side, the chapters' sections, and tables."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import numpy as np

from .. import __version__

GENERATOR = "minigrad.book"
SHAPE = "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ctext y='13'%3E∂%3C/text%3E%3C/svg%3E"
ICON = f"data:image/svg+xml,{SHAPE}"


class Section(NamedTuple):
    anchor: str
    title: str
    html: str


class Chapter(NamedTuple):
    name: str  # of the file, without .html
    title: str
    introduction: str
    sections: list[Section]


def text(string: str) -> str:
    return escape(string, quote=False)


def link(href: str, html: str) -> str:
    return f'<a href="{escape(href)}">{html}</a>'


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n != 1 else "")


def table(head: list[str], rows: Iterable[Iterable[str]], kind: str) -> str:
    """A table of HTML cells. A column without a heading shares that of the column before it."""
    columns = "".join(f'<col class="column-{i}" />' for i in range(1, len(head) + 1))
    starts = [i for i, cell in enumerate(head) if cell]
    spans = [end - start for start, end in zip(starts, [*starts[1:], len(head)], strict=True)]
    top = "".join(f'<th colspan="{n}">{head[i]}</th>' for i, n in zip(starts, spans, strict=True))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head_html = f"<colgroup>{columns}</colgroup><thead><tr>{top}</tr></thead>"
    return f'<table class="{kind}">{head_html}<tbody>{body}</tbody></table>'


def chapter_html(chapter: Chapter) -> str:
    html = [f"<h1>{text(chapter.title)}</h1>{chapter.introduction}"]
    for anchor, title, body in chapter.sections:
        here = f'<a class="here" href="#{escape(anchor)}" aria-label="link to this section">#</a>'
        html.append(f'<section id="{escape(anchor)}"><h2>{title}{here}</h2>{body}</section>')
    return "\n".join(html)


def turn(before: tuple[str, str] | None, after: tuple[str, str] | None) -> str:
    """Links to the pages before and after."""
    back = f'<a rel="prev" href="{before[0]}.html">← {text(before[1])}</a>' if before else "<span></span>"
    on = f'<a rel="next" href="{after[0]}.html">{text(after[1])} →</a>' if after else "<span></span>"
    return f'<nav class="turn" aria-label="pages">{back}{on}</nav>'


def contents(chapters: list[Chapter], current: str) -> str:
    """The list of chapters, with the sections of the current one."""
    here = ' aria-current="page"'
    items = [f'<li><a href="index.html"{here if current == "index" else ""}>Overview</a></li>']
    for chapter in chapters:
        inside = ""
        if chapter.name == current:
            links = (link(f"#{section.anchor}", name_of(section)) for section in chapter.sections)
            sections = "".join(f"<li>{each}</li>" for each in links)
            inside = f"<ul>{sections}</ul>"
        mark = here if chapter.name == current else ""
        items.append(f'<li><a href="{chapter.name}.html"{mark}>{text(chapter.title)}</a>{inside}</li>')
    return f'<nav class="contents" id="contents" aria-label="contents"><ul>{"".join(items)}</ul></nav>'


def name_of(section: Section) -> str:
    """A section's title without what stands beside it."""
    return re.sub("<[^>]*>", "", re.sub("<span.*?</span>", "", section.title)).strip()


def page(title: str, body: str, turn: str, contents: str) -> str:
    made = f"minigrad {__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="generator" content="{GENERATOR}" />
<meta name="color-scheme" content="light dark" />
<title>{text(title)} · minigrad</title>
<link rel="icon" href="{ICON}" />
<link rel="stylesheet" href="book.css" />
</head>
<body>
<header><a href="index.html">minigrad</a><a class="to-contents" href="#contents">Contents</a></header>
<main>
{turn}
{body}
{turn}
<footer>{made}. Made by <code>python -m minigrad.book</code>.</footer>
</main>
{contents}
</body>
</html>
"""
