"""The docstrings' formulas as HTML: nothing is lost, they mean what they say, and only formulas are typeset."""

import html
import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from docs import docstrings, formulas
from minigrad import functional as F
from minigrad.gradcheck.cases import operations
from tests.docs.pages import source_of


def plain(typeset):
    return source_of(html.unescape(re.sub("<[^>]*>", "", typeset)))


def documented():
    modules = {sys.modules[operation.__module__] for operation in operations()}
    functions = filter(inspect.isfunction, vars(F).values())
    things = [*modules, *operations(), *functions, mg.Function, sys.modules["minigrad.gradcheck"]]
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
