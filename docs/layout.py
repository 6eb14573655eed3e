"""The layout that all pages share, and the folder that they are written to."""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigrad import __version__

STYLE = Path(__file__).with_name("site.css")
MANIFEST = ".files"  # in the site: the names of its files, by which the next build knows what it may replace
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ctext y='13'%3E∂%3C/text%3E%3C/svg%3E"
)


class SiteError(Exception):
    """The site cannot be built, or cannot be written to the folder that was asked for."""


class Page(NamedTuple):
    name: str  # of the file
    title: str
    html: str
    sections: list[tuple[str, str]]  # anchor and title, for the navigation


def text(string: str) -> str:
    return escape(string, quote=False)


def link(href: str, html: str, attributes: str = "") -> str:
    return f'<a href="{escape(href)}"{attributes}>{html}</a>'


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n != 1 else "")


def table(head: list[str], rows: Iterable[Iterable[str]], kind: str) -> str:
    """A table of HTML cells."""
    columns = "".join(f'<col class="column-{i}" />' for i in range(1, len(head) + 1))
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head_html = f"<colgroup>{columns}</colgroup><thead><tr>{top}</tr></thead>"
    return f'<table class="{kind}">{head_html}<tbody>{body}</tbody></table>'


def facts(found: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="facts">{"".join(f"<dt>{what}</dt><dd>{fact}</dd>" for what, fact in found)}</dl>'


def chapter(name: str, title: str, introduction: str, sections: Iterable[tuple[str, str, str]]) -> Page:
    """A page of sections: the anchor, the title and the body of each."""
    html, names = [f"<h1>{text(title)}</h1>{introduction}"], []
    for anchor, heading, body in sections:
        here = link(f"#{anchor}", "#", ' class="here" aria-label="link to this section"')
        html.append(f'<section id="{escape(anchor)}"><h2>{heading}{here}</h2>{body}</section>')
        names.append((anchor, re.sub("<span.*?</span>|<[^>]*>", "", heading).strip()))
    return Page(f"{name}.html", title, "\n".join(html), names)


def navigation(groups: Mapping[str, list[Page]], current: Page) -> str:
    """The list of pages, with the sections of the current one."""
    items = []
    for group, pages in groups.items():
        items.append(f'<li class="group">{text(group)}</li>')
        for page in pages:
            here, inside = "", ""
            if page is current:
                sections = "".join(f"<li>{link(f'#{anchor}', text(title))}</li>" for anchor, title in page.sections)
                here, inside = ' aria-current="page"', f"<ul>{sections}</ul>" if sections else ""
            items.append(f"<li>{link(page.name, text(page.title), here)}{inside}</li>")
    return f'<nav class="contents" id="contents" aria-label="contents"><ul>{"".join(items)}</ul></nav>'


def turn(before: Page | None, after: Page | None) -> str:
    """Links to the pages before and after."""
    back = link(before.name, f"← {text(before.title)}", ' rel="prev"') if before else "<span></span>"
    on = link(after.name, f"{text(after.title)} →", ' rel="next"') if after else "<span></span>"
    return f'<nav class="turn" aria-label="pages">{back}{on}</nav>'


def page_html(page: Page, turn: str, navigation: str) -> str:
    made = f"minigrad {__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="color-scheme" content="light dark" />
<title>{text(page.title)} · minigrad</title>
<link rel="icon" href="{ICON}" />
<link rel="stylesheet" href="{STYLE.name}" />
</head>
<body>
<header><a href="index.html">minigrad</a><a class="to-contents" href="#contents">Contents</a></header>
<main>
{turn}
{page.html}
{turn}
<footer>Built by <code>python docs/build.py</code> with {made}.</footer>
</main>
{navigation}
</body>
</html>
"""


def files_of(groups: Mapping[str, list[Page]], loose: list[Page]) -> dict[str, bytes]:
    """The files of the site: each group's pages in the order of reading, and pages that only links lead to."""
    pages = [page for group in groups.values() for page in group]
    around = zip([None, *pages[:-1]], [*pages[1:], None], strict=True)
    turns = [turn(before, after) for before, after in around] + [""] * len(loose)
    files = {STYLE.name: STYLE.read_bytes()}
    for page, links in zip(pages + loose, turns, strict=True):
        if page.name in files:
            raise SiteError(f"two pages are called {page.name}")
        files[page.name] = page_html(page, links, navigation(groups, page)).encode()
    return files


def refuse_other_content(out: Path) -> None:
    """Only a folder that a site may replace passes: a new one, an empty one, or one that holds a site and no more."""
    if not out.exists():
        return
    if not out.is_dir():
        raise SiteError(f"{out} is not a folder")
    manifest = out / MANIFEST
    own = {MANIFEST, *manifest.read_text(encoding="utf-8").splitlines()} if manifest.is_file() else set()
    others = sorted(path.name for path in out.iterdir() if path.name not in own)
    if others:
        raise SiteError(f"{out} holds {others[0]!r}, which no build wrote; expected a new folder, or a site to replace")


def write(files: dict[str, bytes], out: Path) -> None:
    """Write all files to a new folder beside `out`, which then takes its name: whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as workshop:
        new, old = Path(workshop, "new"), Path(workshop, "old")
        new.mkdir()
        for name, content in (files | {MANIFEST: "\n".join(files).encode()}).items():
            (new / name).write_bytes(content)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
