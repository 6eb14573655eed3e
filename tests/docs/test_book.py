"""The book of operations: complete, checked, whole as a site, and right in every formula that it typesets."""

import html
import html.parser
import http.server
import inspect
import json
import re
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import book as book_module
from minigrad import functional as F
from minigrad import nn
from minigrad.book import docstrings, formulas, listing, survey
from minigrad.book.__main__ import main
from minigrad.gradcheck.cases import Case, cases, operations
from tests.checks import operations_of

OPERATIONS = {operation.__name__: operation for operation in operations()}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of a whole book, made once."""
    folder = tmp_path_factory.mktemp("library") / "book"
    assert book_module.write(folder) == []
    return folder


@pytest.fixture(scope="module")
def pages(book):
    """Every page as a tree. Parsing as XML fails if a tag is not closed or an attribute not quoted."""
    return {path.name: ElementTree.fromstring(path.read_text(encoding="utf-8")) for path in book.glob("*.html")}


@pytest.fixture(scope="module")
def sections(pages):
    return {s.get("id"): (name, s) for name, page in pages.items() for s in page.iter("section")}


def text_of(element):
    return "".join(element.itertext())


def with_class(element, kind):
    return [each for each in element.iter() if kind in (each.get("class") or "").split()]


# What is in it


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_its_docstring_its_code_its_check_and_its_function(name, sections):
    page, section = sections[name]
    assert page == OPERATIONS[name].__module__.rpartition(".")[2] + ".html"
    assert text_of(with_class(section, "code")[0]) == listing.source_without_docstring(OPERATIONS[name]).rstrip()
    (verdict,) = with_class(section, "right")
    assert 0 <= float(text_of(verdict)) < 1e-7
    count = sum(case.operation == name for case in cases())
    assert f"in {count} case" in text_of(section)
    atol, rtol = survey.tolerance()
    assert f"{atol:g} + {rtol:g}" in text_of(section)
    assert re.search(r"F\.\w+\(", text_of(with_class(section, "call")[0]))
    first_words = " ".join(OPERATIONS[name].__doc__.split()[:3])
    assert source_of(text_of(section)).find(first_words.rstrip(".,:")) > 0


def test_the_index_names_every_operation_and_every_layer_and_links_them(pages):
    links = {a.get("href") for a in pages["index.html"].iter("a")}
    wanted = {f"{operation.__module__.rpartition('.')[2]}.html#{name}" for name, operation in OPERATIONS.items()}
    layers = {f"layers.html#gpt.model.{name}" for name in ("GPT", "Block", "CausalSelfAttention", "MLP")}
    assert wanted | layers <= links


def test_operations_and_layers_lead_to_each_other(sections):
    _, attention = sections["Attention"]
    assert "layers.html#gpt.model.CausalSelfAttention" in {a.get("href") for a in attention.iter("a")}
    _, layer = sections["gpt.model.CausalSelfAttention"]
    assert {"attention.html#Attention", "rotary.html#Rotary"} <= {a.get("href") for a in layer.iter("a")}
    assert "in nh heads side by side" in text_of(layer)


def test_an_operation_shows_its_kernel(sections):
    _, layer_norm = sections["LayerNorm"]
    assert "kernels.html#cpu.LayerNorm" in {a.get("href") for a in layer_norm.iter("a")}
    assert "four times as fast as NumPy's" in text_of(layer_norm)
    without = next(name for name, operation in OPERATIONS.items() if "kernels" not in vars(operation))
    assert "the code above is what runs" in text_of(sections[without][1])


def test_every_root_in_a_sentence_is_typeset(pages):
    def words(element):  # the text outside of formulas and code
        if element.tag == "code" or "math" in (element.get("class") or "").split():
            return ""
        return (element.text or "") + "".join(words(each) + (each.tail or "") for each in element)

    plain_text = [words(p) for page in pages.values() for p in page.iter("p")]
    assert any("as in PyTorch" in text for text in plain_text)
    assert [text for text in plain_text if "sqrt(" in text] == []


def test_code_leads_to_the_helpers_that_it_calls_and_to_the_functions(sections):
    assert "shape.html#sum_to" in {a.get("href") for a in with_class(sections["MatMul"][1], "code")[0].iter("a")}
    model = with_class(sections["gpt.model.CausalSelfAttention"][1], "code")[0]
    assert "attention.html#F.scaled_dot_product_attention" in {a.get("href") for a in model.iter("a")}


def test_a_name_that_the_code_assigns_leads_nowhere():
    source = "def f(x):\n    softmax = x\n    return softmax, F.softmax(x)  # ∂ é\n"
    tree = ElementTree.fromstring(listing.to_html(source, {"softmax": 1, "F": F}, {1: "#one", F.softmax: "#two"}))
    assert [(a.get("href"), a.text) for a in tree.iter("a")] == [("#two", "softmax")]
    assert text_of(tree) == source.rstrip()


def test_the_walk_of_the_tape_is_a_real_one(sections):
    rows = [[text_of(cell) for cell in row.iter("td")] for row in sections["walk"][1].iter("tr")]
    assert rows[1:] == [
        ["1", "Sum", "1", "[1, 1] to Add"],
        ["2", "Add", "[1, 1]", "[1, 1] to Multiply[1, 1] to x.grad"],
        ["3", "Multiply", "[1, 1]", "[3, 4] to x.grad[1, 2] to w.grad"],
    ]
    assert "x.grad is [4, 5] and w.grad is [1, 2]" in text_of(sections["walk"][1])


def test_the_chapter_on_your_own_operation_runs_the_docstring(sections):
    said = " ".join(source_of(text_of(sections["Function"][1])).split())
    assert "y = Scale.apply(x, 3.0)" in said
    assert "Where x is [1, -2], y is [3, -6] and, for dL/dy = 1, dL/dx is [3, 3]" in said
    assert float(re.search(r"largest error is (\S+)\.", said)[1]) < 1e-7


def test_every_derivative_in_the_text_is_typeset(pages):
    """Code shows dL/dx as it is written, and so does a formula that could mean two things, which stays whole."""
    for name, page in pages.items():
        left = "".join(text_outside(page, {"math", "code", "plain", "diagram"}))
        assert "dL/d" not in left, f"{name}: {left[left.index('dL/d') - 40 :][:80]}"


def text_outside(element, kinds):
    """The pieces of text that are in no element of these classes."""
    if not kinds & set((element.get("class") or "").split()):
        yield element.text or ""
        for child in element:
            yield from text_outside(child, kinds)
            yield child.tail or ""


# What it finds


@pytest.fixture
def small(monkeypatch):
    """Make `write` check these cases only."""
    return lambda *some: monkeypatch.setattr(survey, "cases", lambda: iter(some))


def wrong_exp():
    class Wrong(mg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save(x)
            return np.exp(x)

        @staticmethod
        def backward(ctx, g):
            return -g * np.exp(*ctx.saved)

    return Wrong.apply


def test_a_wrong_backward_is_shown_and_makes_the_program_fail(small, tmp_path, capsys):
    small(Case("Exp", "right", F.exp, [np.ones(2)]), Case("Exp", "sign", wrong_exp(), [np.ones(2)]))
    assert main(["--out", str(tmp_path / "book"), "--examples", ""]) == 1
    out, err = capsys.readouterr()
    assert "Exp sign: the gradient of input 0, of shape (2,), is wrong" in err
    assert "Sqrt: has no case" in err
    page = ElementTree.parse(tmp_path / "book" / "elementwise.html").getroot()
    sections = {section.get("id"): text_of(section) for section in page.iter("section")}
    assert "The backward is wrong." in sections["Exp"]
    assert "finite differences give" in sections["Exp"]
    assert "has no check" in sections["Sqrt"]
    assert "Gradient checks failed" in (tmp_path / "book" / "index.html").read_text(encoding="utf-8")


def test_the_code_on_the_page_is_what_is_checked(small):
    """Kernels are left out: the Linear below has one that fits."""
    ran = []

    def linear(x, w):
        y = F.linear(x, w)
        ran.append(y.origin[0].implementation.__module__ if y.origin else None)
        return y

    small(Case("Linear", "", linear, [np.ones((64, 64)), np.ones((64, 64))[:1]]))
    assert survey.measure()["Linear"][0].problem == ""
    assert set(ran) <= {"minigrad.ops.matmul", None}
    assert "minigrad.ops.matmul" in ran


def test_layers_and_operations_are_those_of_the_tape():
    class Inner(nn.Module):
        def forward(self, x):
            return F.tanh(x) * 2

    class Outer(nn.Module):
        def __init__(self):
            self.inner, self.other = Inner(), nn.GELU()

        def forward(self, x):
            return self.other(self.inner(x)) + self.inner(x)

    model, x = Outer(), mg.Tensor([1.0], requires_grad=True)
    found = book_module.layers_and_operations(F.exp(model(x)).sum())
    names = {
        layer.__name__: ({op.__name__ for op in what.operations}, {inner.__name__ for inner in what.layers})
        for layer, what in found.items()
    }
    assert names == {
        "Inner": ({"Tanh", "Multiply"}, set()),
        "Outer": ({"Add"}, {"Inner", "GELU"}),
        "GELU": ({"GELUTanh"}, set()),
    }


def test_the_examples_use_what_gpt_can_use():
    from gpt.book_example import examples

    for _, model, loss in examples():
        found = book_module.layers_and_operations(loss)
        assert type(model) in found
        assert {op.__name__ for what in found.values() for op in what.operations} == set(operations_of(loss))


def test_the_tape_of_a_model_that_is_gone_is_refused():
    loss = nn.Linear(2, 2)(mg.Tensor([1.0, 2.0])).sum()
    with pytest.raises(ValueError, match="the Linear that made this tensor is gone"):
        book_module.layers_and_operations(loss)


# Whole as a site


class Links(html.parser.HTMLParser):
    """The links, anchors and resources of a page, as a lenient browser reads it."""

    def __init__(self, source):
        super().__init__()
        self.links, self.anchors, self.resources, self.tags = [], [], [], set()
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.anchors += [values["id"]] if "id" in values else []
        (self.links if tag == "a" else self.resources).extend(v for k, v in attributes if k in ("href", "src"))


def read_links(folder):
    return {path.name: Links(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


def assert_all_links_resolve(read):
    for name, page in read.items():
        assert len(page.anchors) == len(set(page.anchors)), name
        for target in page.links:
            file, _, anchor = target.partition("#")
            assert (file or name) in read, f"{name}: {target}"
            assert not anchor or anchor in read[file or name].anchors, f"{name}: {target}"


def test_all_links_lead_somewhere(book):
    read = read_links(book)
    assert_all_links_resolve(read)
    assert sum(len(page.links) for page in read.values()) > 1000


def test_nothing_comes_from_elsewhere(book):
    for page in read_links(book).values():
        assert all(resource == "book.css" or resource.startswith("data:") for resource in page.resources)
        assert not page.tags & {"script", "iframe", "img", "video"}
    style = (book / "book.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert style.count("{") == style.count("}")


def test_next_leads_through_the_whole_book_and_previous_back(pages):
    def follow(start, relation):
        names = [start]
        while to := [a.get("href") for a in pages[names[-1]].iter("a") if a.get("rel") == relation]:
            names.append(to[0])
        return names

    forward = follow("index.html", "next")
    assert set(forward) == set(pages)
    assert follow(forward[-1], "prev") == forward[::-1]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: chromium, chromium-browser or google-chrome")

PROBE = """<!doctype html><html><head><link rel="icon" href="data:," /></head><body><pre id="found"></pre><script>
async function probe() {
  const found = {};
  for (const name of %s) {
    const frame = document.createElement("iframe");
    frame.style.cssText = "width: 360px; height: 640px; border: 0";
    const loaded = new Promise(resolve => frame.onload = resolve);
    frame.src = name;
    document.body.append(frame);
    await loaded;
    const page = frame.contentDocument, view = frame.contentWindow;
    const wide = [...page.querySelectorAll("body, main, p, li, dd, td, th, h1, h2, nav, table, section")].filter(
      e => e.scrollWidth > e.clientWidth + 1);
    found[name] = {
      title: page.title,
      width: page.documentElement.scrollWidth,
      wide: wide.map(e => e.tagName + ": " + e.textContent.slice(0, 60)),
      sections: [...page.querySelectorAll("section")].map(e => e.id),
      styled: view.getComputedStyle(page.querySelector(".contents")).listStyleType !== "" &&
        view.getComputedStyle(page.querySelector("main")).paddingLeft === "16px",
      resources: view.performance.getEntriesByType("resource").map(e => new URL(e.name).pathname),
      hidden: [...page.querySelectorAll(".src")].filter(e => {
        const place = e.getBoundingClientRect();
        return place.width * place.height > 0;
      }).map(e => e.parentElement.outerHTML),
    };
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify(found);
}
probe();
</script></body></html>"""


def browse(address, profile):
    """The page as the browser leaves it after running its scripts. Fails on any message in the console."""
    flags = (
        "headless hide-scrollbars no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr virtual-time-budget=60000 dump-dom"
    )
    command = [BROWSER, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={profile}", address]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@needs_browser
def test_in_a_browser_every_page_fits_a_phone(book, tmp_path):
    """Every page, served from this machine, in a frame as wide as a small phone."""
    names = sorted(path.name for path in book.glob("*.html"))
    site = tmp_path / "site"
    shutil.copytree(book, site)
    (site / "probe.html").write_text(PROBE % json.dumps(names), encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            dom = browse(f"http://127.0.0.1:{server.server_port}/probe.html", tmp_path / "profile")
        finally:
            server.shutdown()
            thread.join()
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    assert sorted(found) == names
    for name, page in found.items():
        assert page["title"].endswith("· minigrad")
        assert (page["width"], page["wide"]) == (360, []), name
        assert page["styled"], name
        assert page["hidden"] == [], name
        assert set(page["resources"]) <= {"/book.css"}, name
    assert set(OPERATIONS) <= {section for page in found.values() for section in page["sections"]}


@needs_browser
def test_a_browser_opens_the_file_itself(book, tmp_path):
    dom = browse((book / "index.html").as_uri(), tmp_path / "profile")
    assert all(f'#{name}">' in dom for name in OPERATIONS)


# Where it is written


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_copy_is_the_same_and_replaces_the_first(tmp_path):
    book_module.write(tmp_path / "book", check=False)
    first = snapshot(tmp_path / "book")
    (tmp_path / "book" / "index.html").write_bytes(first["index.html"] + b"<!-- older -->")
    book_module.write(tmp_path / "book", check=False)
    assert snapshot(tmp_path / "book") == first
    assert [path.name for path in tmp_path.iterdir()] == ["book"]
    assert b"not checked" in first["index.html"]
    assert b"--no-check" in first["softmax.html"]


def test_another_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.html").write_text("<p>years of work</p>")
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "holds 'thesis.html', which is not of a book" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"]
    with pytest.raises(book_module.BookError, match="is not a folder"):
        book_module.write(tmp_path / "thesis.html")


def test_a_book_that_fails_midway_leaves_the_old_one(book, tmp_path, monkeypatch):
    shutil.copytree(book, tmp_path / "book")
    before = snapshot(tmp_path / "book")
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        book_module.write(tmp_path / "book", check=False, examples="")
    assert snapshot(tmp_path / "book") == before
    assert [path.name for path in tmp_path.iterdir()] == ["book"]


def test_without_models_there_is_no_chapter_on_layers(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "book"), "--no-check", "--examples", ""]) == 0
    assert f"open {(tmp_path / 'book' / 'index.html').as_uri()}" in capsys.readouterr().out
    read = read_links(tmp_path / "book")
    assert "layers.html" not in read
    assert_all_links_resolve(read)


def test_where_minigrad_is_installed_without_gpt_there_are_no_examples(monkeypatch):
    monkeypatch.delitem(sys.modules, "gpt.book_example", raising=False)
    monkeypatch.setitem(sys.modules, "gpt", None)  # as if it were not there
    assert book_module.read_examples(book_module.EXAMPLES) == []


@pytest.mark.parametrize("examples", ["gpt.model:nothing", "no_such_module:f", "json"])
def test_examples_that_are_not_there_are_refused(examples, tmp_path):
    with pytest.raises(book_module.BookError, match="wanted module:function"):
        book_module.write(tmp_path / "book", check=False, examples=examples)


def test_importing_the_book_imports_no_gpt():
    code = "import sys, minigrad.book; sys.exit('gpt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Formulas

LETTERS = {letter: name for name, letter in formulas.GREEK.items()}
GLYPHS = {"−": "-", "∑": "sum", "∞": "inf", "≤": "<=", "≥": ">=", "→": "->", "′": "'", "\u202f": " ", "\u00a0": " "}


def source_of(shown):
    """The docstring's text, from the text of the page: what is typeset hides nothing and adds nothing."""
    shown = re.sub("(.)\u0302", r"\1_hat", shown)
    return "".join(LETTERS.get(c, GLYPHS.get(c, c)) for c in shown)


def plain(typeset):
    return source_of(html.unescape(re.sub("<[^>]*>", "", typeset)))


def documented():
    modules = {sys.modules[operation.__module__] for operation in OPERATIONS.values()}
    functions = filter(inspect.isfunction, vars(F).values())
    things = [*modules, *OPERATIONS.values(), *functions, mg.Function, sys.modules["minigrad.gradcheck"]]
    return [thing.__doc__ for thing in things if thing.__doc__]


def test_every_typeset_docstring_still_says_what_is_written():
    cells = 0
    for docstring in documented():
        for block in docstrings.blocks(docstring):
            if block.kind == "formulas":
                for cell in (cell for line in block.lines for cell in docstrings.cells(line)):
                    kind, typeset = docstrings.cell_html(cell)
                    assert plain(typeset) == re.sub(r"\s+", " ", cell).replace("`", "").removesuffix(
                        "." if kind == "formula" else ""
                    )
                    cells += kind == "formula"
            elif block.kind in ("text", "item"):
                assert plain(formulas.sentence(block.text)) == block.text.replace("`", "")
    assert cells > 30


TOKENS = "a x i L mu gamma x_hat dL dx y_i W_oi e 1 2 0.5 sqrt mean tanh sum sum_j of over rows inf var".split()
TOKENS += ["+", "-", "=", "/", "^", "_", "(", ")", "[", "]", "|", ",", "'", "@", "<=", "…", " ", " ", " ", " "]


@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=12).map("".join))
def test_whatever_is_typeset_keeps_every_character(source):
    """Any string: what is no formula is refused, and what is one loses and gains nothing but spaces."""
    for stacked in (True, False):
        try:
            typeset = formulas.formula(source, stacked)
        except formulas.NotAFormula:
            continue
        ElementTree.fromstring(typeset)
        assert plain(typeset).replace(" ", "") == source.replace(" ", "")
    assert plain(formulas.sentence(source)).replace(" ", "") == source.replace(" ", "")


def shape_of(typeset):
    """HTML in brief: x<sub>i</sub> is x{i}, a power x[2], a fraction (1 over n), hidden characters gone."""
    typeset = re.sub(r'<span class="src">[^<]*</span>', "", typeset)
    typeset = typeset.replace("<sub>", "{").replace("</sub>", "}").replace("<sup>", "[").replace("</sup>", "]")
    typeset = re.sub(r"</?i>", "", typeset)
    for _ in range(4):
        typeset = re.sub(
            r'<span class="fraction"><span class="above">([^<]*)</span><span class="below">([^<]*)</span></span>',
            r"(\1 over \2)",
            typeset,
        )
        typeset = re.sub(r'<span class="root">([^<]*)</span>', r"√(\1)", typeset)
        typeset = re.sub(r'<span class="sum">([^<]*)</span>', r"\1", typeset)
    return html.unescape(re.sub("<[^>]*>", "", typeset)).replace("\u202f", " ").replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("source", "shown"),
    {
        "mu = mean(x)": "μ = mean(x)",
        "x_hat = (x - mu) r": "x\u0302 = (x − μ) r",
        "r = 1/sqrt(var + eps)": "r = (1 over √(var + ε))",
        "dL/dx_hat = g gamma": "(dL over dx\u0302) = g γ",
        "y_i = e^(x_i) / sum_j e^(x_j)": "y{i} = (e[x{i}] over ∑{j} e[x{j}])",
        "x/2 (1 + t)": "(x over 2) (1 + t)",  # half of x times the rest
        "q k^T / sqrt(D)": "(q k[T] over √(D))",  # the whole product is divided
        "-a/b^2": "−(a over b[2])",
        "1/2 x^(-1/2) = 1/(2 y)": "(1 over 2) x[−1/2] = (1 over 2 y)",
        "(sum of x) / n": "(∑ x over n)",
        "dP - sum over keys of dP P": "dP − ∑{keys} dP P",
        "1 / (1 + e^-x)": "(1 over 1 + e[−x])",
        "1[j = target(n)]": "1[j = target(n)]",
        "x_n,target(n)": "x{n,target(n)}",
        "softmax(x)_i sum_j g_j": "softmax(x){i} ∑{j} g{j}",
        "H_(n+1) = -2p H_n": "H{n+1} = −2p H{n}",
        "x Phi(x / sqrt 2)": "x Φ(x / √(2))",
        "p base^(-2i/D)": "p base[−2i/D]",
        "|h| <= 1/32": "|h| ≤ (1 over 32)",
        "dloss_n/dx_nj": "(dloss{n} over dx{nj})",
    }.items(),
)
def test_formulas_mean_what_they_say(source, shown):
    assert shape_of(formulas.formula(source)) == shown


@pytest.mark.parametrize(
    "source", "a / b c|a/b/c|x -1|x^2^3|e^x_i|n_embd|a cos b|float32|x y, z|(x|x)|every row|".split("|")
)
def test_what_could_mean_two_things_is_no_formula(source):
    with pytest.raises(formulas.NotAFormula):
        formulas.formula(source)


@pytest.mark.parametrize(
    ("source", "found"),
    {
        "Let g = dL/dy and g_hat = g gamma.": ["g = dL/dy", "g_hat = g gamma"],
        "A 1-D `a` is a row, a 1-D `b` a column; y then lacks that axis.": ["y"],
        "The larger of a and b.": ["a", "b"],
        "a row or a column, and what a is": ["a"],
        "where b > 0 (0^b stays 0 as b moves)": ["b > 0", "0^b", "b"],
        "a b, element by element": ["a b"],
        "Do it in a loop: I take a list.": [],
        "GPT-2 has n_embd channels; k = n_embd is code": [],
        "the mean, the sum of dx and the loss": ["dx"],
        "over (…, M, K) @ (…, K, N) -> (…, M, N)": ["(…, M, K) @ (…, K, N) -> (…, M, N)"],
        "hs = C / nh": [],
    }.items(),
)
def test_in_a_sentence_only_plain_formulas_are_typeset(source, found):
    assert [run.source for run in formulas.runs(source) if run.kind == "formula"] == found


def test_a_line_that_does_not_parse_stays_as_it_is_written():
    assert docstrings.cell_html("y = a / b c <unclear>") == ("plain", "<code>y = a / b c &lt;unclear&gt;</code>")


DOCSTRING = """One line.

    y = x^2        a remark

size: how large
    it is, in bytes
  - an item, which
    goes on
  - another

Code:

    with open(x) as file:
        pass

Arrows:

    x ──► y

A sentence that goes on in the line after this, which might
take: an argument has a full stop or the like before it.
p: as here.
"""


def test_blocks_of_a_docstring():
    found = [(block.kind, block.text) for block in docstrings.blocks(DOCSTRING)]
    assert found == [
        ("text", "One line."),
        ("formulas", "y = x^2        a remark"),
        ("text", "size: how large it is, in bytes"),
        ("item", "an item, which goes on"),
        ("item", "another"),
        ("text", "Code:"),
        ("code", "with open(x) as file: pass"),
        ("text", "Arrows:"),
        ("diagram", "x ──► y"),
        (
            "text",
            "A sentence that goes on in the line after this, which might take: an argument has a full stop or the like "
            "before it.",
        ),
        ("text", "p: as here."),
    ]
