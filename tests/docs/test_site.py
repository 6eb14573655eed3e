"""The site: complete, checked, whole, offline, and right on a phone."""

import html
import http.server
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

import minigrad as mg
from docs import build, examples, layout, listing, survey
from minigrad import functional as F
from minigrad import nn
from minigrad.gradcheck.cases import Case, cases, operations
from tests.checks import operations_of
from tests.docs.pages import assert_everything_is_there, read_links, source_of

OPERATIONS = {operation.__name__: operation for operation in operations()}
ENGINE_PAGES = {f"{operation.__module__.rpartition('.')[2]}.html" for operation in operations()}
ENGINE_PAGES |= {f"{name}.html" for name in ("operations", "tape", "layers", "kernels", "own")}


@pytest.fixture(scope="module")
def pages(site):
    """The pages about the engine as trees. Parsing as XML fails if a tag is not closed or an attribute not quoted."""
    return {name: ElementTree.fromstring((site / name).read_text(encoding="utf-8")) for name in ENGINE_PAGES}


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


def test_the_overview_names_every_operation_and_the_layers_page_every_layer(pages):
    links = {a.get("href") for name in ("operations.html", "layers.html") for a in pages[name].iter("a")}
    expected = {f"{operation.__module__.rpartition('.')[2]}.html#{name}" for name, operation in OPERATIONS.items()}
    layers = {f"layers.html#gpt.model.{name}" for name in ("GPT", "Block", "CausalSelfAttention", "MLP")}
    assert expected | layers <= links


def test_operations_and_layers_lead_to_each_other(pages, sections):
    _, attention = sections["Attention"]
    assert "layers.html#gpt.model.CausalSelfAttention" in {a.get("href") for a in attention.iter("a")}
    _, layer = sections["gpt.model.CausalSelfAttention"]
    table = [row for row in pages["layers.html"].iter("tr") if "CausalSelfAttention" in text_of(row)]
    uses = {a.get("href") for row in table for a in row.iter("a")}
    assert {"attention.html#Attention", "rotary.html#Rotary"} <= uses
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


def test_the_walk_of_the_tape_is_a_real_one(sections, site):
    """The steps that the page plays, and the gradients that they end in."""
    text = (site / "steps.html").read_text(encoding="utf-8")
    played = json.loads(re.search(r'<script id="data" type="application/json">(.*)</script>', text)[1])
    boxes = [box["name"] for box in played["boxes"]]
    walk = [
        [played["boxes"][step["box"]]["operation"]]
        + [[boxes[sent["to"]], *played["arrays"][sent["array"]]["values"]] for sent in step["sent"]]
        for step in played["steps"][1:-1]
    ]
    assert walk == [
        ["Sum", ["Add", 1, 1]],
        ["Add", ["Multiply", 1, 1], ["x", 1, 1]],
        ["Multiply", ["x", 3, 4], ["w", 1, 2]],
    ]
    ends = [[boxes[leaf], *played["arrays"][grad]["values"]] for leaf, grad in played["steps"][-1]["grads"]]
    assert ends == [["x", 4, 5], ["w", 1, 2]]
    assert played["boxes"][2]["text"] == "loss = (x * w + x).sum()"
    assert [frame.get("src") for frame in sections["walk"][1].iter("iframe")] == ["steps.html"]
    assert "x.grad is [4, 5] and w.grad is [1, 2]" in text_of(sections["walk"][1])


def test_the_chapter_on_your_own_operation_runs_the_docstring(sections):
    said = " ".join(source_of(text_of(sections["Function"][1])).split())
    assert "y = Scale.apply(x, 3.0)" in said
    assert "Where x is [1, -2], y is [3, -6] and, for dL/dy = 1, dL/dx is [3, 3]" in said
    assert float(re.search(r"gradcheck finds is (\S+)\.", said)[1]) < 1e-7


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


def test_a_wrong_backward_is_shown_and_makes_the_program_fail(small, repository, tmp_path, monkeypatch, capsys):
    small(Case("Exp", "right", F.exp, [np.ones(2)]), Case("Exp", "sign", wrong_exp(), [np.ones(2)]))
    monkeypatch.setattr(build, "ROOT", repository)
    assert build.main(["--out", str(tmp_path / "site")]) == 1
    out, err = capsys.readouterr()
    assert f"open {(tmp_path / 'site' / 'index.html').as_uri()}" in out
    assert "Exp sign: the gradient of input 0, of shape (2,), is wrong" in err
    assert "Sqrt: has no case" in err
    page = ElementTree.parse(tmp_path / "site" / "elementwise.html").getroot()
    sections = {section.get("id"): text_of(section) for section in page.iter("section")}
    assert "The backward is wrong." in sections["Exp"]
    assert "finite differences give" in sections["Exp"]
    assert "has no check" in sections["Sqrt"]
    assert "Gradient checks failed" in (tmp_path / "site" / "operations.html").read_text(encoding="utf-8")


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
    found = survey.layers_and_operations(F.exp(model(x)).sum())
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
    for _, model, loss in examples.models():
        found = survey.layers_and_operations(loss)
        assert type(model) in found
        assert {op.__name__ for what in found.values() for op in what.operations} == set(operations_of(loss))


def test_the_tape_of_a_model_that_is_gone_is_refused():
    loss = nn.Linear(2, 2)(mg.Tensor([1.0, 2.0])).sum()
    with pytest.raises(ValueError, match="the Linear that made this tensor is gone"):
        survey.layers_and_operations(loss)


# Guides

README = """\
# Small `title`

A [guide](docs/use.md#two-words), [code](docs/model.py), [an operation's code](minigrad/ops/softmax.py),
![a picture](docs/loss.png), [a folder](docs), [elsewhere](https://example.org) and [below](#two-words).

<img src="docs/loss.png" alt="the same">

## Two words

| a | b |
|---|---|
| 1 | 2 |

```python
y = F.softmax(x)  # <b>
```

```console
$ ls & x < y
```
"""


@pytest.fixture
def repository(tmp_path):
    """A small repository with guides, in place of this one."""
    root = tmp_path / "repository"
    for name, content in {
        "README.md": README,
        "docs/use.md": "# Use\n\n[back](../README.md) to $x^2$\n\n## Two words\n",
        "docs/model.py": "x = 1\n",
        "docs/loss.png": "a picture",
        "minigrad/ops/softmax.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def test_guides_become_pages_whose_links_lead_to_pages(repository, tmp_path):
    assert build.build(tmp_path / "site", list, repository) == []
    assert_everything_is_there(tmp_path / "site")
    read = read_links(tmp_path / "site")
    assert "layers.html" not in read  # without models
    found = set(read["index.html"].links)
    assert {"use.html#two-words", "docs-model.py.html", "softmax.html", "docs.html", "#two-words"} <= found
    assert {"https://example.org", "softmax.html#F.softmax"} <= found
    assert read["index.html"].resources.count("docs-loss.png") == 2
    assert (tmp_path / "site" / "docs-loss.png").read_bytes() == b"a picture"
    assert "index.html" in read["use.html"].links
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "<h1" in front
    assert "<td>1</td>" in front
    assert "$ ls &amp; x &lt; y" in re.sub("<[^>]*>", "", front)
    assert "<msup>" in (tmp_path / "site" / "use.html").read_text(encoding="utf-8")
    folder = (tmp_path / "site" / "docs.html").read_text(encoding="utf-8")
    assert "loss.png\nmodel.py\nuse.md" in folder


def test_a_link_that_leads_nowhere_is_reported(repository, tmp_path):
    (repository / "docs/use.md").write_text("# Use\n\n[gone](gone.md), ![no picture](../no.png)\n", encoding="utf-8")
    problems = build.build(tmp_path / "site", list, repository)
    assert problems == ["docs/use.md: gone.md does not exist", "docs/use.md: ../no.png does not exist"]


def test_the_notebook_is_a_page_with_its_outputs(site):
    page = (site / "self_attention.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "softmax of masked zeros and W: largest difference 0.000000000000" in page
    assert "<mfrac>" in page
    assert "$$" not in page
    assert '<span class="keyword">def</span>' in page


def test_every_guide_is_in_the_navigation(site):
    pages = build.guides_of(build.ROOT)
    assert list(pages.values())[0] == "index.html"
    assert set(pages.values()) <= set(read_links(site)["softmax.html"].links)


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    code = "import sys; sys.modules['markdown_it'] = None; import docs.build"
    done = subprocess.run([sys.executable, "-c", code], cwd=build.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install -e ".[docs]"' in done.stderr


# Whole as a site


def test_all_links_and_images_lead_somewhere(site):
    assert_everything_is_there(site)
    assert sum(len(page.links) for page in read_links(site).values()) > 1000


def test_nothing_comes_from_elsewhere(site):
    for name, page in read_links(site).items():
        assert not page.tags & {"iframe", "video"} - ({"iframe"} if name == "tape.html" else set())
        assert "script" not in page.tags or name == "steps.html"  # which tests/engine and tests/browser test
    style = (site / "site.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert style.count("{") == style.count("}")


def test_next_leads_through_the_whole_site_and_previous_back(site):
    read = read_links(site)

    def follow(start, relation):
        names = [start]
        while relation in read[names[-1]].turns:
            names.append(read[names[-1]].turns[relation])
        return names

    forward = follow("index.html", "next")
    assert {*build.guides_of(build.ROOT).values(), *ENGINE_PAGES} == set(forward)
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
      e => e.scrollWidth > e.clientWidth + 1 && view.getComputedStyle(e).overflowX === "visible");
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
def test_in_a_browser_every_page_fits_a_phone(site, tmp_path):
    """Every page, served from this machine, in a frame as wide as a small phone."""
    names = sorted(path.name for path in site.glob("*.html") if path.name != "steps.html")
    served = tmp_path / "site"
    shutil.copytree(site, served)
    (served / "probe.html").write_text(PROBE % json.dumps(names), encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
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
        assert {Path(resource).name for resource in page["resources"]} <= {path.name for path in site.iterdir()}, name
    assert set(OPERATIONS) <= {section for page in found.values() for section in page["sections"]}


@needs_browser
def test_a_browser_opens_the_file_itself(site, tmp_path):
    dom = browse((site / "operations.html").as_uri(), tmp_path / "profile")
    assert all(f'#{name}">' in dom for name in OPERATIONS)


@needs_browser
def test_in_a_browser_the_steps_of_the_tape_can_be_played(site, tmp_path):
    dom = browse((site / "steps.html").as_uri(), tmp_path / "profile")
    assert "The backward pass starts at the end" in dom
    assert ">0 of 4</output>" in dom
    assert dom.count('class="box ') == 6


# Where it is written


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_build_is_the_same_and_replaces_the_first(repository, tmp_path):
    out = tmp_path / "library" / "site"
    build.build(out, list, repository)
    first = snapshot(out)
    (out / "index.html").write_bytes(b"older")
    (repository / "docs/use.md").rename(repository / "docs/other.md")
    build.build(out, list, repository)
    assert (out / "other.html").exists()
    assert not (out / "use.html").exists()
    (repository / "docs/other.md").rename(repository / "docs/use.md")
    build.build(out, list, repository)
    assert snapshot(out) == first
    assert [path.name for path in out.parent.iterdir()] == ["site"]


def test_another_folder_is_left_alone(tmp_path):
    """By the program as it is run: it finds the packages of this repository and exits with 2."""
    (tmp_path / "thesis.html").write_text("<p>years of work</p>")
    command = [sys.executable, "docs/build.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds 'thesis.html', which no build wrote" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"]
    with pytest.raises(layout.SiteError, match="is not a folder"):
        build.build(tmp_path / "thesis.html", list)


def test_a_file_added_to_a_site_is_not_deleted(repository, tmp_path):
    build.build(tmp_path / "site", list, repository)
    (tmp_path / "site" / "notes.html").write_text("mine")
    with pytest.raises(layout.SiteError, match="holds 'notes.html'"):
        build.build(tmp_path / "site", list, repository)


def test_a_build_that_fails_midway_leaves_the_old_site(tmp_path, monkeypatch):
    layout.write({"index.html": b"old"}, tmp_path / "site")
    before = snapshot(tmp_path / "site")
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        layout.write({"index.html": b"new"}, tmp_path / "site")
    assert snapshot(tmp_path / "site") == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_two_pages_of_one_name_are_refused(repository, tmp_path):
    (repository / "docs/tape.md").write_text("# A guide that is called like a chapter\n", encoding="utf-8")
    with pytest.raises(layout.SiteError, match="two pages are called tape.html"):
        build.build(tmp_path / "site", list, repository)
