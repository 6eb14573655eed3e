"""What the tests of the site share: reading pages back as text and as links."""

import html.parser
import re

from docs import formulas

LETTERS = {letter: name for name, letter in formulas.GREEK.items()}
GLYPHS = {"−": "-", "∑": "sum", "∞": "inf", "≤": "<=", "≥": ">=", "→": "->", "′": "'", "\u202f": " ", "\u00a0": " "}


def source_of(shown):
    """The docstring's text, from the text of the page: what is typeset hides nothing and adds nothing."""
    shown = re.sub("(.)\u0302", r"\1_hat", shown)
    return "".join(LETTERS.get(c, GLYPHS.get(c, c)) for c in shown)


class Links(html.parser.HTMLParser):
    """The links, anchors and resources of a page, as a lenient browser reads it."""

    def __init__(self, source):
        super().__init__()
        self.links, self.anchors, self.resources, self.tags = [], [], [], set()
        self.turns = {}  # "next" and "prev"
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.anchors += [values["id"]] if "id" in values else []
        (self.links if tag == "a" else self.resources).extend(v for k, v in attributes if k in ("href", "src"))
        if "rel" in values and tag == "a":
            self.turns[values["rel"]] = values["href"]


def read_links(folder):
    return {path.name: Links(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


def assert_everything_is_there(folder):
    """All links lead to pages and anchors of the site, and all images and styles are files of it."""
    read = read_links(folder)
    for name, page in read.items():
        assert len(page.anchors) == len(set(page.anchors)), name
        for target in page.links:
            if re.match("https?://", target):
                continue
            file, _, anchor = target.partition("#")
            assert (file or name) in read, f"{name}: {target}"
            assert not anchor or anchor in read[file or name].anchors, f"{name}: {target}"
        for resource in page.resources:
            assert resource.startswith("data:") or (folder / resource).is_file(), f"{name}: {resource}"
