"""`viz.animate`: what is in its page is what the backward computed, nothing more runs, and errors change nothing.

The page itself is tested in a browser, in tests/browser.
"""

import base64
import html.parser
import inspect
import itertools
import json
import re

import numpy as np
import pytest

import minigrad as mg
from minigrad import autograd, nn, viz
from minigrad import functional as F
from minigrad.gradcheck.cases import cases, operations
from minigrad.viz.layers import GAP, arrange
from minigrad.viz.tape import nodes_of
from tests.engine.modules import Tied
from tests.fakes import cupy as fake_cupy


def leaf(value, dtype=np.float64):
    return mg.Tensor(np.array(value, dtype), requires_grad=True)


class Page(html.parser.HTMLParser):
    """A page as a browser parses it: its title, how many scripts it has, and the data."""

    def __init__(self, path):
        super().__init__()
        self.scripts, self.inside, self.title = [], "", ""
        self.feed(path.read_text(encoding="utf-8"))
        (self.data,) = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        for name in ("boxes", "edges", "steps", "arrays", "rules"):
            setattr(self, name, self.data[name])

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag == "script":
            self.scripts.append([dict(attributes).get("type"), ""])

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1][1] += data
        elif self.inside == "title":
            self.title += data

    def array(self, number):
        """An array of the page as NumPy's."""
        found = self.arrays[number]
        return np.array([float(value) for value in found["values"]], found["dtype"]).reshape(found["shape"])

    def box(self, step):
        return self.boxes[step["box"]]

    def walk(self):
        return self.steps[1:-1]

    def names(self):
        return [self.box(step)["name"] for step in self.walk()]


@pytest.fixture
def animated(tmp_path):
    """Animates a loss and returns the page."""

    def animate(loss, **options):
        viz.animate(loss, tmp_path / "steps.html", **options)
        assert [path.name for path in tmp_path.iterdir()] == ["steps.html"]
        return Page(tmp_path / "steps.html")

    return animate


def diamond():
    a, b = leaf(2.0), leaf(-0.5)
    c = a * b
    return a, b, F.tanh(c) + c + c * a


def small_model():
    mg.manual_seed(3)
    model = Tied()
    return model, model(np.array([[0, 1, 2]])).sum()


# The walk


def spied(loss):
    """Run the backward with nothing but a list of what every node received and returned."""
    seen = []

    def run(node, grads):
        results = autograd.input_gradients(node, grads)
        copies = [[None if array is None else array.copy() for array in arrays] for arrays in (grads, results)]
        seen.append((node.function.__name__, *copies))
        return results

    autograd.backward(loss, run=run)
    return seen


@pytest.mark.parametrize("program", [lambda: diamond()[-1], lambda: small_model()[1]])
def test_the_steps_and_every_number_are_those_of_the_backward(program, animated):
    seen, page = spied(program()), animated(program())
    assert [page.box(step)["operation"].split(" #")[0] for step in page.walk()] == [name for name, _, _ in seen]
    for step, (_, grads, results) in zip(page.walk(), seen, strict=True):
        sent = {message["argument"]: message["array"] for message in step["sent"] if "array" in message}
        for shown, computed in zip(step["arrived"], grads, strict=True):
            np.testing.assert_array_equal(page.array(shown[0]), computed)
        for i, number in sent.items():
            np.testing.assert_array_equal(page.array(number), results[i])
            assert page.arrays[number]["dtype"] == str(results[i].dtype)


def test_gradients_are_exactly_those_of_backward(animated):
    model, loss = small_model()
    loss.backward()
    other, loss = small_model()
    page = animated(loss)
    shown = {page.boxes[box]["name"]: page.array(number) for box, number in page.steps[-1]["grads"]}
    for (name, expected), ours in zip(model.named_parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(ours.grad, expected.grad)
        np.testing.assert_array_equal(shown[name], expected.grad)


def test_where_paths_meet_the_sum_is_what_arrives(animated):
    a, b, loss = diamond()
    page = animated(loss)
    assert page.boxes[2]["operation"] == "Multiply #1"
    reached = {}
    for step in page.walk():
        if page.box(step)["kind"] == "operation":
            for number, times in step["arrived"]:
                assert times == len(reached.get(step["box"], [0]))
                np.testing.assert_array_equal(page.array(number), sum(reached.get(step["box"], [page.array(number)])))
        for message in step["sent"]:
            before = reached.setdefault(message["to"], [])
            assert ("before" in message) == bool(before)
            if before:
                np.testing.assert_array_equal(page.array(message["before"]), sum(before))
            before.append(page.array(message["array"]))
            assert page.array(message.get("after", message["array"])) == sum(before)
    assert [len(reached[i]) for i in range(3)] == [2, 1, 3]
    words = next(step["words"] for step in page.walk() if "third time" in step["words"])
    slope = 1 - np.tanh(-1.0) ** 2
    assert f"`Multiply #1` is reached a third time: ${slope:.4g}$ is added to $3$." in words
    waits = [i for i, step in enumerate(page.walk()) if "`Multiply #1` waits for another gradient." in step["words"]]
    sent = [i for i, step in enumerate(page.walk()) if any(message["to"] == 2 for message in step["sent"])]
    assert waits == sent[:-1]


def test_one_tensor_twice_in_one_operation(animated):
    x = leaf(3.0)
    page = animated(x * x)
    first, second = page.walk()[0]["sent"]
    assert "before" not in first
    assert [page.array(second[key]) for key in ("before", "array", "after")] == [3, 3, 6]
    assert x.grad == 6
    assert [edge["argument"] for edge in page.edges[:2]] == [0, 1]


def test_a_grad_from_before_is_added_to(animated):
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    page = animated((x * 3).sum(), names={"x": x})
    (message,) = page.walk()[-1]["sent"]
    assert [page.array(message[key]).tolist() for key in ("before", "array", "after")] == [[2, 4], [3, 3], [5, 7]]
    assert "`x` had a `grad` before this backward" in page.walk()[-1]["words"]
    np.testing.assert_array_equal(x.grad, [5, 7])


def test_what_is_saved_and_when_it_is_freed(animated):
    x = leaf(np.ones(10))
    loss = (F.exp(x) * F.tanh(x)).sum()
    page = animated(loss)
    saved = {page.box(step)["operation"]: [name for name, _ in step["saved"]] for step in page.walk()}
    assert saved == {"Sum": [], "Multiply": ["a", "b"], "Tanh": ["y"], "Exp": ["y"]}
    assert page.walk()[0]["kept"] == ["shape = (10,)"]
    assert all(step["freed"] for step in page.walk())
    assert page.data["saved"] == 160
    assert [step["held"] for step in page.steps] == [160, 160, 160, 80, 0, 0]
    np.testing.assert_array_equal(page.array(page.walk()[-1]["saved"][0][1]), np.exp(x.data))


def test_retain_graph(animated):
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    page = animated(loss, retain_graph=True)
    assert not any(step["freed"] for step in page.walk())
    assert {step["held"] for step in page.steps} == {page.data["saved"]}
    assert "`retain_graph=True`" in page.steps[-1]["words"]
    loss.backward()
    np.testing.assert_array_equal(x.grad, [4, 8])


def test_operations_that_no_gradient_reaches(animated):
    class Stop(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return (None,)

    x = leaf([1.0, 2.0])
    y = x * 2
    page = animated((Stop.apply(y * 3) + y).sum())
    assert not any("waits" in step["words"] for step in page.walk())  # the other gradient of y never comes
    page = animated((Stop.apply(x * 2) + x).sum())
    assert page.names() == ["loss", "Add", "Stop"]
    assert "sends nothing." in page.walk()[-1]["words"]
    assert "No gradient reached 1 operation." in page.steps[-1]["words"]


def test_several_outputs_and_a_result_that_is_no_scalar(animated):
    x = leaf(np.arange(6.0))
    a, _ = F.split(x, 3)
    page = animated(a * 2, grad=np.array([1.0, 2.0, 3.0]))
    split = page.walk()[-1]
    assert [times for _, times in split["arrived"]] == [1, 0]
    assert page.array(split["arrived"][1][0]).tolist() == [0, 0, 0]
    assert "starts at the end with $dL/dy$" in page.steps[0]["words"]
    np.testing.assert_array_equal(x.grad, [2, 4, 6, 0, 0, 0])


# What is said of an operation


def test_the_rule_is_in_the_letters_of_the_docstring(animated):
    x, weight, bias = leaf(np.ones((2, 3))), leaf(np.ones((4, 3))), leaf(np.zeros(4))
    y = F.layer_norm(F.tanh(F.linear(x, weight, bias)), leaf(np.ones(4)), leaf(np.ones(4)))
    page = animated(y.sum(), names={"x": x, "weight": weight, "bias": bias})
    formulas = {page.box(step)["operation"]: [message["formula"] for message in step["sent"]] for step in page.walk()}
    assert formulas["Linear"] == ["dL/dx = g W", "dL/dW = g^T x", "dL/db_o = sum_n g_no"]
    assert formulas["Tanh"] == ["dL/dx = g (1 - y^2)"]
    assert formulas["LayerNorm"][0] == "dL/dx = r (g_hat - mean(g_hat) - x_hat mean(g_hat x_hat))"
    linear = page.walk()[-1]
    assert page.box(linear)["letters"] == ["x", "W", "b"]
    assert [name for name, _ in linear["saved"]] == ["x", "W"]
    rule = page.rules[page.box(linear)["rule"]]
    assert rule["forward"] == ["y = x W^T + b, applied to the last axis of x"]
    assert rule["backward"][1] == ["dL/dx_ni = sum_o g_no W_oi", "dx = g W"]
    assert "def backward(ctx, g):" in rule["code"]
    sent = "sends $dL/dx = g W$ to `x`, $dL/dW = g^T x$ to `weight` and $dL/db_o = sum_n g_no$ to `bias`."
    assert linear["words"] == f"`Linear` runs: it received $g = dL/dy$ and {sent}"


def test_every_operation_has_a_rule_and_an_animation(tmp_path):
    """Of every operation: a page without an error, a letter for each argument, and a rule in words or formulas."""
    waiting = {operation.__name__ for operation in operations()}
    for case in cases():
        if case.operation not in waiting:
            continue
        inputs = [mg.Tensor(a, requires_grad=True) if np.asarray(a).dtype.kind == "f" else a for a in case.inputs]
        result = case.fn(*inputs)
        y = (result[0] if isinstance(result, tuple) else result).sum()
        names = {node.function.__name__: len(node.parents) for node in nodes_of(y)}
        if case.operation in names:
            waiting.discard(case.operation)
            viz.animate(y, tmp_path / "steps.html")
            page = Page(tmp_path / "steps.html")
            box = next(box for box in page.boxes if box.get("operation", "").split(" #")[0] == case.operation)
            assert len(box["letters"]) == names[case.operation] == len(set(box["letters"])), case
            assert page.rules[box["rule"]]["forward"], case
            assert page.rules[box["rule"]]["backward"], case
    assert waiting == set()


class Documented(mg.Function):
    """y = x^2 s.

    Backward.
        dL/dx = 2 g x s
        dL/ds = sum of g x^2
    """

    @staticmethod
    def forward(ctx, x, s):
        ctx.save(x, s)
        return x * x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved
        return 2 * g * x * s, (g * x * x).sum()


class Bare(mg.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor, ctx.twice = factor, [x, (x * 2)]
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor


def test_operations_of_the_users_own(animated):
    x, s = leaf([1.0, 2.0]), leaf(3.0)
    page = animated(Bare.apply(Documented.apply(x, s), 5.0).sum(), names={"x": x, "s": s})
    _, bare, documented = page.walk()
    rule = page.rules[page.box(documented)["rule"]]
    assert [rule["forward"], rule["backward"]] == [
        ["y = x^2 s"],
        [["dL/dx = 2 g x s"], ["dL/ds = sum of g x^2"]],
    ]
    assert [message["formula"] for message in documented["sent"]] == ["dL/dx = 2 g x s", "dL/ds = sum of g x^2"]
    assert "sends $dL/dx = 2 g x s$ to `x` and $dL/ds = sum of g x^2 = 25$ to `s`." in documented["words"]
    rule = page.rules[page.box(bare)["rule"]]
    assert [rule["forward"], rule["backward"]] == [[], []]
    assert "return x * factor" in rule["code"]
    assert "return grad * ctx.factor" in rule["code"]
    assert bare["kept"] == ["factor = 5.0"]
    assert [name for name, _ in bare["saved"]] == ["twice[0]", "twice[1]"]
    assert bare["sent"][0]["formula"] == ""


def test_code_that_cannot_be_read(animated):
    names = {"mg": mg}
    source = inspect.getsource(Bare).replace(
        "ctx.factor, ctx.twice = factor, [x, (x * 2)]", "ctx.save(x); ctx.factor = factor"
    )
    exec(source, names)
    step = animated(names["Bare"].apply(leaf([1.0, 2.0]), 3.0).sum()).walk()[1]
    assert [name for name, _ in step["saved"]] == ["array 1"]


def test_the_line_of_the_users_program(animated):
    x = leaf([[1.0, 2.0]])
    é = nn.Linear(2, 2)
    with_é = F.tanh(é(x.astype("float32"))) * 2
    page = animated(with_é.sum())
    told = {box["operation"]: box for box in page.boxes if "operation" in box}
    marked = {name: box["text"][slice(*box["span"])] for name, box in told.items()}
    expected = {
        "Astype": 'x.astype("float32")',
        "Linear": 'é(x.astype("float32"))',
        "Tanh": 'F.tanh(é(x.astype("float32")))',
    }
    assert marked == expected | {"Multiply": 'F.tanh(é(x.astype("float32"))) * 2', "Sum": "with_é.sum()"}
    line = inspect.currentframe().f_code.co_firstlineno + 3
    assert told["Tanh"]["file"].endswith(f"test_animate.py:{line}")
    assert told["Linear"]["module"] == "Linear"


def test_an_expression_over_several_lines(animated):
    x = leaf([1.0])
    y = F.tanh(
        x,
    )
    (box,) = [box for box in animated(y, grad=[1.0]).boxes if "operation" in box]
    assert box["text"][slice(*box["span"])] == "F.tanh("


def test_code_without_a_file_has_no_text(animated):
    names = {"x": leaf([1.0])}
    exec("y = (x * 2).sum()", names)
    page = animated(names["y"])
    assert {box["text"] for box in page.boxes if "text" in box} == {""}


def test_tensors_have_the_names_of_the_callers_variables(tmp_path):
    weight = leaf([2.0])
    hidden = weight * 3
    total = hidden.sum()
    viz.animate(total, tmp_path / "steps.html")
    page = Page(tmp_path / "steps.html")
    assert [box["title"] for box in page.boxes] == ["weight = 2", "hidden = Multiply", "total = Sum", "total = 6"]
    assert page.title == "Backward pass of total = 6"
    viz.animate((weight * hidden.detach()).sum(), tmp_path / "steps.html", names={"first": weight})
    assert [box["name"] for box in Page(tmp_path / "steps.html").boxes] == ["first", "Multiply", "Sum", "loss"]


def test_tensors_without_a_name_are_numbered(animated):
    page = animated(((leaf([1.0]) + leaf([2.0])) * 2 + 1).sum())
    assert [box["title"] for box in page.boxes] == [
        *["leaf #1 = 1", "leaf #2 = 2", "Add #1", "Multiply", "Add #2", "loss = Sum", "loss = 7"]
    ]


# Arrays


def cells(found):
    return np.frombuffer(base64.b64decode(found["cells"]), np.int8).reshape(found["grid"])


def test_large_arrays_are_cells_of_the_largest_magnitude(animated, tmp_path):
    x = leaf(np.random.default_rng(0).normal(size=(3, 50, 1000)))
    page = animated((x * x).sum())
    found = page.arrays[page.steps[-1]["grads"][0][1]]
    assert (found["shape"], found["grid"], found["block"]) == ([3, 50, 1000], [19, 40], [8, 25])
    assert found["range"] == [x.grad.min(), x.grad.max()]
    table = x.grad.reshape(150, 1000)
    for i, j in itertools.product(range(19), range(40)):
        block = table[8 * i : 8 * i + 8, 25 * j : 25 * j + 25]
        strongest = block.flat[abs(block).argmax()]
        assert abs(cells(found)[i, j] / 127 - strongest / abs(table).max()) <= 0.5 / 127
    assert (tmp_path / "steps.html").stat().st_size < 60_000


def test_numbers_that_are_not_finite(animated):
    x = leaf([1.0, np.inf, np.nan, -np.inf])
    page = animated((x * x).sum())
    assert page.arrays[page.steps[-1]["grads"][0][1]]["values"] == [2, "inf", "nan", "-inf"]
    big = leaf(np.full((10, 10), np.nan))
    big.data[0, 0], big.data[1, 1] = 3.0, np.inf
    found = animated((big * 1).sum() * 1)
    found = next(found.arrays[box["array"]] for box in found.boxes if box["kind"] == "leaf")
    assert cells(found)[0, 0] == 127
    assert (cells(found) == -128).sum() == 99
    assert found["range"] == [3, 3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_are_the_shortest_that_give_the_same(dtype, animated):
    pytest.importorskip("ml_dtypes")
    x = mg.Tensor(np.array([0.1, -1e-3, 3.0]), requires_grad=True).astype(dtype).detach()
    x.requires_grad = True
    page = animated((x * 0.7).sum())
    (found,) = [page.arrays[box["array"]] for box in page.boxes if box["kind"] == "leaf"]
    assert found["dtype"] == dtype
    np.testing.assert_array_equal(np.array(found["values"]).astype(x.data.dtype), x.data)
    assert len(str(found["values"][0])) < 11


def test_empty_arrays_and_masks(animated):
    x = leaf(np.ones((0, 3)))
    page = animated(F.where(np.ones((0, 3), bool), x, 1.0).sum())
    assert page.arrays[page.steps[-1]["grads"][0][1]] == {"shape": [0, 3], "dtype": "float64", "values": []}
    page = animated(F.where(np.array([True, False]), leaf([1.0, 2.0]), 1.0).sum())
    assert [page.arrays[number]["values"] for _, number in page.walk()[-1]["saved"]] == [[1, 0]]


def test_arrays_on_a_gpu(monkeypatch, animated):
    fake_cupy.install(monkeypatch)
    x = mg.Tensor(np.array([1.0, 2.0]), requires_grad=True, device="cuda")
    page = animated((x * x + x).sum())
    ((_, number),) = page.steps[-1]["grads"]
    assert page.array(number).tolist() == [3, 5]
    assert any("before" in message for step in page.walk() for message in step["sent"])


# The page


def test_text_cannot_leave_its_script(animated):
    name = "</script><script>alert(1)</script><!-- \"é\u2028' \\"
    x = leaf([1.0, 2.0])
    loss = (x * 2).sum()  # </script> <!--
    page = animated(loss, names={name: x, f"<b>{name}": loss})
    assert [kind for kind, _ in page.scripts] == ["application/json", None]
    assert page.boxes[0]["name"] == name
    assert page.title == f"Backward pass of <b>{name} = 6"
    assert any(box.get("text", "").endswith("# </script> <!--") for box in page.boxes)


def test_nothing_is_fetched(animated, tmp_path):
    animated(leaf([1.0]).sum() * 1)
    text = (tmp_path / "steps.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not [word for word in ("src=", "@import", "fetch(", "XMLHttpRequest") if word in text]
    assert set(re.findall(r"url\((.)", text)) == {"#"}  # parts of the picture
    assert "{{" not in text


def test_two_runs_write_the_same(tmp_path):
    for name in ("one.html", "two.html"):
        viz.animate(small_model()[1], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def overlaps(layers, widths):
    return [
        (i, j)
        for layer in layers.values()
        for (x, i), (u, j) in itertools.pairwise(sorted(layer))
        if u - x < (widths[i] + widths[j]) / 2 + GAP - 0.5
    ]


def test_boxes_do_not_overlap_and_edges_lead_down():
    generator = np.random.default_rng(0)
    for n in (2, 5, 30, 120):
        edges = sorted({(int(generator.integers(max(0, i - 8), i)), i) for i in range(1, n) for _ in range(2)})
        edges += [(i, n - 1) for i in range(n - 1) if i not in {start for start, _ in edges}]
        widths = [int(width) for width in generator.integers(60, 200, n)]
        (width, height), places, trunks = arrange(widths, edges)
        layers = {}
        for i, (x, y) in enumerate(places):
            assert widths[i] / 2 <= x <= width - widths[i] / 2
            assert 0 < y < height
            layers.setdefault(y, []).append((x, i))
        assert overlaps(layers, widths) == []
        for start, end in edges:
            points = [(x, y) for x, y in trunks[start] if y < places[end][1]]
            ys = [y for _, y in (places[start], *points, places[end])]
            assert ys == sorted(set(ys))
            for x, y in points:
                assert all(abs(x - u) > widths[i] / 2 for u, i in layers.get(y, []))  # behind no box


def test_a_parameter_that_is_used_hundreds_of_times(animated, tmp_path):
    w, x = leaf(0.9), leaf(1.0)
    y = x
    for _ in range(150):
        y = F.tanh(y * w) + x
    page = animated(y)
    assert page.data["about"].startswith("450 operations, 2 leaves")
    assert sum(len(box["trunk"]) for box in page.boxes) == 896  # of w and of x: all uses share it
    assert (tmp_path / "steps.html").stat().st_size < 1_000_000


def test_what_needs_only_leaves_is_beside_its_use():
    edges = [(0, 3), (3, 4), (1, 5), (4, 6), (5, 6), (6, 7), (2, 8), (8, 9), (7, 9)]
    _, places, _ = arrange([100] * 10, edges)
    height = [y for _, y in places]
    assert height[5] == height[4] < height[6]
    assert height[8] == height[7]
    assert height[2] < height[8] < height[9]


def test_a_chain_of_operations_is_straight():
    edges = [(0, 4), (1, 4), (4, 5), (2, 5), (5, 6), (3, 6)]  # boxes 0 to 3 are leaves
    _, places, _ = arrange([100] * 7, edges)
    assert max(places[i][0] for i in (4, 5, 6)) - min(places[i][0] for i in (4, 5, 6)) < 25


# Errors


def test_errors_are_one_line_and_leave_everything_as_it_was(tmp_path):
    x = leaf([1.0, 2.0])
    freed = (x * x).sum()
    freed.backward()
    before = x.grad.copy()
    for error, message, loss, options in [
        (TypeError, "viz.animate: expected a tensor, got float", 1.0, {}),
        (mg.AutogradError, "viz.animate: this tensor has no tape", mg.Tensor([1.0]), {}),
        (mg.AutogradError, "viz.animate: this tensor is a leaf; expected one that an operation made", x, {}),
        (mg.AutogradError, "grad can be left out only for a scalar; this tensor has shape \\(2,\\)", x * 2, {}),
        (ValueError, "expected a grad of shape \\(2,\\)", x * 2, {"grad": np.ones(3)}),
        (mg.AutogradError, "Sum: backward ran a second time through a graph whose saved arrays are freed", freed, {}),
        (ValueError, "expected a tape of at most 2 operations, got 3; give a higher", (x * 2 + 1).sum(), {"limit": 2}),
        (TypeError, "viz.animate: expected names as a mapping", (x * 2).sum(), {"names": [x]}),
        (
            TypeError,
            "viz.animate: expected names that map str to tensor, got 'x': int",
            (x * 2).sum(),
            {"names": {"x": 1}},
        ),
    ]:
        with pytest.raises(error, match=message) as raised:
            viz.animate(loss, tmp_path / "steps.html", **options)
        assert "\n" not in str(raised.value)
        np.testing.assert_array_equal(x.grad, before)
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "steps.html").write_text("old")

    def full(*_):
        raise OSError(28, "the disk is full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        viz.animate((leaf([1.0]) * 2).sum(), tmp_path / "steps.html")
    assert [path.name for path in tmp_path.iterdir()] == ["steps.html"]
    assert (tmp_path / "steps.html").read_text() == "old"
