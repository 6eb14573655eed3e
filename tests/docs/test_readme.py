"""The README tells the truth: its tour prints what it says it prints, and its files exist."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tour_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    expected = re.findall(r"^print\(.*\) +# (.*)$", code, re.M)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert len(expected) >= 5
    assert printed.getvalue().splitlines() == expected


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_map_names_every_module():
    (house,) = re.findall(r"## A map of the house\n+```\n(.*?)```", README, re.S)
    modules = [path for folder in ("minigrad", "gpt") for path in (ROOT / folder).iterdir()]
    names = {path.name for path in modules if not path.name.startswith("__") and path.name != "py.typed"}
    missing = {name for name in names if not re.search(rf"\b{re.escape(name)}", house)}
    assert not missing
