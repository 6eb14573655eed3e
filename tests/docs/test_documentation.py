"""The README and the guides tell the truth: what they print, link to, call, name and measure exists and agrees."""

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import minigrad as mg
from minigrad import functional, nn, optim, viz

ROOT = Path(__file__).parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/exercises/README.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.S | re.M)


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", TEXT[page], flags=re.S | re.M)


def in_backticks(page):
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchor(heading):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# README


def test_readme_is_short():
    assert len(TEXT["README.md"].splitlines()) <= 120


def test_the_tour_prints_what_it_says():
    (code,) = blocks("README.md", "python")
    expected = re.findall(r"^print\(.*\) +# (.*)$", code, re.M)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert len(expected) >= 5
    assert printed.getvalue().splitlines() == expected


def test_the_way_from_one_file_to_the_engine_can_be_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (code,) = blocks("docs/micro.md", "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/micro.md", "exec"), {})
    assert printed.getvalue() == "True\nTrue\n"


def test_the_backward_pass_of_layer_norm_is_one_click_from_the_readme():
    (target,) = re.findall(r"\[LayerNorm\]\(([^)]+)\)", TEXT["README.md"])
    source = (ROOT / target).read_text(encoding="utf-8")
    assert re.search(r"^class LayerNorm\(.*^    def backward\(", source, re.S | re.M)


def test_the_readme_links_to_every_guide():
    assert {page for page in PAGES if page.startswith("docs/")} <= set(re.findall(r"\]\(([^)#]+)", TEXT["README.md"]))


# Links, files and names


@every_page
def test_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'src="([^"]+)"', prose(page))
    for link in links:
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in map(anchor, headings), link


@every_page
def test_paths_that_are_named_exist(page):
    path = re.compile(r"(?:minigrad|gpt|examples|tests|benchmarks|docs)/[\w./*]+")
    named = filter(path.fullmatch, in_backticks(page))
    assert [path for path in named if not list(ROOT.glob(path))] == []


@every_page
def test_modules_and_functions_that_are_named_exist(page):
    """minigrad.x.y, and mg.x, F.x, nn.x, optim.x and viz.x, but in the table's column of what PyTorch has."""
    text = re.sub(r"^\| [^|]+ \|", "|", TEXT[page], flags=re.M) if page == "docs/pytorch.md" else TEXT[page]
    code = " ".join(re.findall(r"`([^`]+)`", re.sub("```", "", text)))
    for name in set(re.findall(r"\bminigrad(?:\.[a-z_]+)+", code)):
        importlib.import_module(name)
    for letters, module in {"mg": mg, "F": functional, "nn": nn, "optim": optim, "viz": viz}.items():
        for name in set(re.findall(rf"(?<![\w.]){letters}((?:\.\w+)+)", code)):
            functools.reduce(getattr, name[1:].split("."), module)


@every_page
def test_environment_variables_that_are_named_are_read(page):
    named = set(re.findall(r"\bMINIGRAD_[A-Z_]+\b", TEXT[page]))
    sources = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "minigrad").rglob("*.py")) if named else ""
    sources += (ROOT / "gpt/download.py").read_text(encoding="utf-8")
    assert {name for name in named if f'"{name}"' not in sources} == set()


@every_page
def test_extras_that_are_named_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for group in re.findall(r'"\.\[([\w,]+)\]"', TEXT[page]) for name in group.split(",")}
    assert named <= set(extras)


# Commands


def commands(page):
    """The calls of programs on a page, in blocks and in backticks, as lists of words from the program on."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()] + in_backticks(page)
    lines = [part.strip() for line in lines for part in line.split("&&")]
    for line in lines:
        if re.match(r"(\$ )?(\.venv/bin/)?python |bash ", line):
            words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
            if words[:2] != ["-m", "venv"]:
                yield words


def program(words):
    return words[1] if words[0] == "-m" else words[0]


@pytest.fixture(scope="module")
def help_of():
    """What each program that is named prints for --help, or None if it fails; for a shell script, its text."""
    calls = {program(words): words for page in PAGES for words in commands(page)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def ask(words):
        if words[0].endswith(".sh"):
            return (ROOT / words[0]).read_text(encoding="utf-8")
        name = words[:2] if words[0] == "-m" else words[:1]
        if words[:2] == ["-m", "pytest"]:
            name = [*name, "tests", "examples/exercises"]  # which add options
        call = [sys.executable, *name, "--help"]
        result = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        return result.stdout if result.returncode == 0 else None

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(calls, pool.map(ask, calls.values()), strict=True))


@every_page
def test_commands_exist_with_their_options_choices_and_files(page, help_of):
    for words in commands(page):
        text, options = help_of[program(words)], words[1:]
        assert text is not None, f"{words}: --help fails"
        for i, word in enumerate(options):
            option = word.partition("=")[0]
            if option.startswith("--"):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), words
                if choices := re.search(rf"{option} \{{([^}}]+)\}}", text):
                    assert options[i + 1] in choices[1].split(","), words
            elif re.fullmatch(r"(tests|examples|benchmarks|docs)/[\w/]+(\.py)?", word):
                assert (ROOT / word).exists(), words


@every_page
def test_options_that_the_text_names_exist(page, help_of):
    code = " ".join(code for code in in_backticks(page) if not code.startswith("git "))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-])", code))
    known = {option for text in filter(None, help_of.values()) for option in re.findall(r"--[a-z][a-z0-9-]*", text)}
    assert named <= known


def test_all_programs_are_named_in_the_guides():
    named = {program(words) for page in PAGES for words in commands(page)}
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} <= named


# The map of the code


def paths_of_the_map():
    (listing,) = re.findall(r"## A map of the code\n+```\n(.*?)```", TEXT["docs/architecture.md"], re.S)
    folders = []
    for line in listing.splitlines():
        indent, name = re.match(r"( *)(\S+)  +\S", line).groups()
        folders = [*folders[: len(indent) // 2], name]
        yield "".join(folders)


def test_the_map_lists_every_module_and_nothing_else():
    listed = {path.rstrip("/") for path in paths_of_the_map()}
    assert {path for path in listed if not (ROOT / path).exists()} == set()
    rooms = ["minigrad", "minigrad/ops", *(str(p.relative_to(ROOT)) for p in [ROOT / "gpt", *(ROOT / "gpt").iterdir()])]
    there = {
        f"{room}/{path.name}"
        for room in rooms
        for path in sorted((ROOT / room).glob("[!_]*"))
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there <= listed


# Figures


def figures(text):
    """Numbers with a point or an exponent, which somebody measured."""
    return set(re.findall(r"\d+\.\d+(?:e-\d+)?|\de-\d+", text))


def test_figures_agree_between_pages():
    (table,) = re.findall(r"## What is measured, and what is not\n+(.*?)\n\n", TEXT["README.md"], re.S)
    assert figures(table) <= figures(TEXT["docs/speed.md"])
    (speed,) = re.findall(r"## Speed\n(.*?)\n## ", TEXT["docs/speed.md"], re.S)
    rows = re.findall(r"^\| (?:preset|the same|GPT-2).*$", speed, re.M)
    assert len(rows) == 6
    ratios = " ".join(row.rsplit("|", 2)[0] for row in rows)  # without the last column, shares of memory
    assert figures(ratios) <= figures(TEXT["benchmarks/README.md"])
