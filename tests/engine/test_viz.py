"""Seeing the graph: what `viz.draw` draws, what `viz.trace` measures, and that neither changes a gradient."""

import gc
import html
import io
import re
import shutil
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, viz
from tests.engine.modules import Tied

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program dot is not on the PATH")


def leaf(value, dtype=np.float64):
    return mg.Tensor(np.array(value, dtype), requires_grad=True)


def small_loss():
    """The README's example: four operations, two leaves."""
    x, w = leaf([[1.0, -2.0], [3.0, 0.5]], np.float32), leaf([2.0, -1.0], np.float32)
    return x, w, (x @ w * x.mean()).sum()


class Block(nn.Module):
    def __init__(self, features=4):
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, features)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Model(nn.Module):
    def __init__(self, n_layer=2):
        self.embed = nn.Linear(3, 4)
        self.h = nn.ModuleList(Block() for _ in range(n_layer))
        self.scale = nn.Parameter(np.ones(4, np.float32))

    def forward(self, x):
        x = self.embed(x)
        for block in self.h:
            x = block(x)
        return x * self.scale


def model_loss(model):
    return (model(np.ones((2, 3), np.float32)) ** 2).sum()


def boxes(drawing):
    """The text in each box by the box's name: a title, then its small print."""
    labels = re.findall(r"^ *(\w+) \[label=<<table[^>]*>(.*)</table>>", drawing.dot, re.M)
    return {name: re.sub(r"<[^>]*>", "", label.replace("</tr>", "\n")).splitlines() for name, label in labels}


def box(drawing, title):
    """The small print of the only box with this title."""
    (lines,) = [lines[1:] for lines in boxes(drawing).values() if lines[0] == title]
    return lines


def edges(drawing):
    """Pairs of titles, from where to where."""
    title = {name: lines[0] for name, lines in boxes(drawing).items()}
    return [(title[a], title[b]) for a, b in re.findall(r"^  (\w+) -> (\w+)", drawing.dot, re.M)]


def clusters(drawing):
    """For each box the titles of the modules around it, the outermost first."""
    around, found = [], {}
    for line in drawing.dot.splitlines():
        line = line.strip()
        if line.startswith("subgraph"):
            around.append(None)
        elif line.startswith("label=<") and around:
            around[-1] = re.match(r"label=<(.*)>; labeljust", line)[1]
        elif line == "}" and around:
            around.pop()
        elif match := re.match(r"(\w+) \[label=<<table[^>]*><tr><td><b>(.*?)</b>", line):
            found.setdefault(match[2], []).append(tuple(around))
    return found


def assert_graphviz_accepts(drawing):
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tcanon"], input=drawing.dot.encode(), capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


# Drawing every operation


def test_operations_leaves_and_the_loss_with_shapes_and_dtypes():
    _, _, loss = small_loss()
    drawing = viz.draw(loss)
    assert_graphviz_accepts(drawing)
    assert box(drawing, "MatMul") == ["(2,) float32", "saves 2 arrays"]  # both are leaves: no memory of their own
    assert box(drawing, "Mean") == ["scalar float32"]
    assert box(drawing, "Multiply") == ["(2,) float32", "saves 2 arrays, 12 B"]  # 2 and 1 float32
    assert box(drawing, "loss = 5.94") == ["scalar float32"]
    assert boxes(drawing)["leaf0"] == ["leaf", "(2, 2) float32"]
    assert boxes(drawing)["leaf1"] == ["leaf", "(2,) float32"]


def test_edges_run_the_way_of_the_forward():
    _, _, loss = small_loss()
    assert sorted(edges(viz.draw(loss))) == [
        ("MatMul", "Multiply"),
        ("Mean", "Multiply"),
        ("Multiply", "Sum"),
        ("Sum", "loss = 5.94"),
        ("leaf", "MatMul"),
        ("leaf", "MatMul"),
        ("leaf", "Mean"),
    ]


def test_after_backward_leaves_show_the_norms_of_their_gradients():
    x, w, loss = small_loss()
    loss.backward()
    norms = {f"grad norm {np.linalg.norm(tensor.grad):.3g}" for tensor in (x, w)}
    drawing = viz.draw(loss)
    assert {lines[-1] for lines in boxes(drawing).values() if lines[0] == "leaf"} == norms
    assert drawing.dot.count("grad norm") == 2
    assert "saves" not in drawing.dot  # nothing any more


def test_after_trace_operations_show_the_norms_of_theirs():
    _, _, loss = small_loss()
    viz.trace(loss, quiet=True)
    # dL/d(product) = (1, 1); for x @ w that times the mean, 0.625; for the mean the sum of x @ w = (4, 5.5)
    drawing = viz.draw(loss)
    assert box(drawing, "Sum")[-1] == "grad norm 1"
    assert box(drawing, "Multiply") == ["(2,) float32", "saves 2 arrays, 12 B", f"grad norm {2**0.5:.3g}"]
    assert box(drawing, "MatMul")[-1] == f"grad norm {0.625 * 2**0.5:.3g}"
    assert box(drawing, "Mean")[-1] == "grad norm 9.5"


def test_modules_are_nested_clusters_and_hold_their_parameters():
    model = Model()
    drawing = viz.draw(model_loss(model))
    assert_graphviz_accepts(drawing)
    where = clusters(drawing)
    assert where["LayerNorm"] == [
        ("Model", "h.0 (Block)", "h.0.norm (LayerNorm)"),
        ("Model", "h.1 (Block)", "h.1.norm (LayerNorm)"),
    ]
    assert where["h.1.linear.weight"] == [("Model", "h.1 (Block)", "h.1.linear (Linear)")]
    assert where["scale"] == where["Multiply"] == [("Model",)]
    assert where["Power"] == [()]
    assert box(drawing, "embed.weight") == ["(4, 3) float32"]


def test_a_module_called_twice_is_two_clusters_around_which_its_parameters_lie():
    block = Block()
    drawing = viz.draw(block(block(leaf(np.ones((2, 4)), np.float32))).sum())
    where = clusters(drawing)
    assert where["Linear"] == [
        ("Block, call 1", "linear (Linear), call 1"),
        ("Block, call 2", "linear (Linear), call 2"),
    ]
    assert where["linear.weight"] == [()]
    assert edges(drawing).count(("linear.weight", "Linear")) == 2


def test_a_shared_parameter_has_one_box_with_its_first_name():
    model = Tied()
    drawing = viz.draw(model(np.array([1, 2])).sum())
    assert clusters(drawing)["embedding.weight"] == [("Tied",)]
    assert {("embedding.weight", "Embedding"), ("embedding.weight", "Linear")} <= {*edges(drawing)}


def test_modules_without_one_around_them_are_told_apart():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    loss = second(F.relu(first(np.ones((1, 2), np.float32)))).sum()
    assert {"Linear.weight", "Linear_2.weight", "Linear.bias", "Linear_2.bias"} <= clusters(viz.draw(loss)).keys()

    class Both(nn.Module):
        def __init__(self):
            self.a, self.b = first, second

    both = Both()
    assert {"a.weight", "b.weight", "a.bias", "b.bias"} <= clusters(viz.draw(loss, model=both)).keys()
    paths = [row.path for row in viz.trace(loss, quiet=True, model=both).rows]
    assert paths == ["", "b", "", "a"]


def test_tensors_can_be_given_names():
    x = leaf([1.0, 2.0])
    h = x * x
    first, second = F.split(h, 1, axis=0)
    drawing = viz.draw(
        (first + second).sum(), names={"x": x, "h": h, "first": first, "second": second, "other": leaf(1)}
    )
    titles = [lines[0] for lines in boxes(drawing).values()]
    assert titles == ["x", "h = Multiply", "first, second = Split", "Add", "Sum", "loss = 5"]


@pytest.mark.parametrize(
    ("names", "got"), [({"x": 3}, "'x': int"), ({3: mg.Tensor(1.0)}, "3: Tensor")], ids=["no tensor", "no text"]
)
def test_names_that_are_none(names, got):
    y = mg.Tensor(2.0, requires_grad=True) * 3
    with pytest.raises(TypeError, match=re.escape(f"viz.draw: expected names that map str to tensor, got {got}")):
        viz.draw(y, names=names)


@pytest.mark.parametrize("names", [["x"], [], ("x", "y"), "x"], ids=repr)
def test_names_without_tensors(names):
    y = mg.Tensor(2.0, requires_grad=True) * 3
    expected = f'viz.draw: expected names as a mapping such as {{"x": x}}, got {type(names).__name__}'
    with pytest.raises(TypeError, match=re.escape(expected)):
        viz.draw(y, names=names)


def test_modules_that_are_gone_leave_their_class():
    loss = nn.Sequential(nn.Linear(2, 2))(np.ones((1, 2), np.float32)).sum()
    assert clusters(viz.draw(loss))["Linear"] == [("Sequential", "Linear")]
    assert viz.trace(loss, quiet=True).rows[-1].path == "Linear"


def test_an_operation_with_several_outputs_says_which_goes_where():
    a, b = F.split(leaf([1.0, 2.0, 3.0, 4.0]), 2, axis=0)
    drawing = viz.draw((a * b).sum())
    assert box(drawing, "Split") == ["2 × (2,) float64"]
    assert re.findall(r"label=< (output \d)>", drawing.dot) == ["output 0", "output 1"]


def test_constants_are_not_on_the_tape():
    constant = mg.Tensor(np.ones(3))
    drawing = viz.draw((leaf([1.0, 2.0, 3.0]) * constant + 2.0).sum())
    assert [lines[0] for lines in boxes(drawing).values()] == ["leaf", "Multiply", "Add", "Sum", "loss = 12"]


def test_checkpointed_blocks_are_one_operation():
    block = Block()
    loss = nn.checkpoint(block, leaf(np.ones((2, 4)), np.float32)).sum()
    drawing = viz.draw(loss)
    assert box(drawing, "Checkpoint") == ["(2, 4) float32", "saves 5 arrays"]  # its input and the block's parameters
    assert viz.trace(loss, quiet=True).by_operation()[0].count == 1
    assert block.linear.weight.grad is not None


def test_a_leaf_alone():
    x = leaf([3.0, 4.0])
    assert [lines[0] for lines in boxes(viz.draw(x)).values()] == ["leaf", "result"]
    steps = viz.trace(x, grad=[3, 4], quiet=True)
    np.testing.assert_array_equal(x.grad, [3, 4])
    assert steps.rows == ()
    assert str(steps).startswith("0 operations")
    assert ["leaf", "(2,) float64", "grad norm 5"] in boxes(viz.draw(x, depth=0)).values()


@pytest.mark.parametrize("show", [viz.draw, viz.trace])
def test_a_tensor_without_a_tape_is_refused(show):
    with mg.no_grad():
        silent = leaf(1.0) * 2
    for tensor in (mg.Tensor(1.0), leaf(1.0).detach(), silent):
        with pytest.raises(mg.AutogradError, match=f"viz.{show.__name__}: this tensor has no tape"):
            show(tensor)
    with pytest.raises(TypeError, match=f"viz.{show.__name__}: expected a tensor, got float"):
        show(1.0)


@pytest.mark.parametrize(
    "name", ['<b>&"quoted"</b>', "back\\slash\\N", "two\nlines", "bell\x07", "", "ö 名 {a|b}", "]>;", "&lt;"]
)
def test_odd_names_are_written_as_they_are(name):
    odd = type(name, (mg.Function,), {"forward": lambda ctx, x: x + 1})
    model = nn.Sequential()
    setattr(model, name, nn.Linear(1, 1))
    drawing = viz.draw(odd.apply(model(leaf([[1.0]], np.float32))).sum())
    assert_graphviz_accepts(drawing)
    if shutil.which("dot") and name.isprintable() and name:
        shown = [html.unescape(text) for text in re.findall(r">([^<]+)</text>", drawing.render().decode())]
        assert {name, f"{name} (Linear)", f"{name}.weight"} <= {*shown}


# Files and Jupyter


def test_what_is_recorded_inside_no_grad_is_shown_in_all_its_modules():
    class Recorded(nn.Module):
        def forward(self, x):
            with mg.enable_grad():
                return (x * 2).sum()

    class Outer(nn.Module):
        def __init__(self):
            self.inner = Recorded()

        def forward(self, x):
            with mg.no_grad():
                return self.inner(x)

    scope = Outer()(mg.Tensor([1.0], requires_grad=True)).origin[0].scope
    assert (scope.kind, scope.outer.kind) == ("Recorded", "Outer")


def test_text_files_need_no_graphviz(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    _, _, loss = small_loss()
    drawing = viz.draw(loss, tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == drawing.dot == str(drawing)
    assert drawing._repr_svg_() is None  # Jupyter then shows the text
    assert repr(drawing).startswith("<Drawing of 4 operations, 2 leaves of 6 numbers, 12 B saved")
    with pytest.raises(viz.GraphvizError, match='needs Graphviz\'s program "dot".*apt install graphviz'):
        viz.draw(loss, tmp_path / "graph.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.dot"]


@needs_graphviz
def test_pictures(tmp_path):
    _, _, loss = small_loss()
    drawing = viz.draw(loss, tmp_path / "graph.svg")
    viz.draw(loss, tmp_path / "graph.png")
    svg = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert svg.rstrip().endswith("</svg>")
    assert ">MatMul</text>" in svg
    assert drawing._repr_svg_() == svg
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="graph.txt: expected a file name that ends in one of .dot"):
        drawing.save(tmp_path / "graph.txt")
    with pytest.raises(viz.GraphvizError, match="dot -Tnothing"):
        drawing.render("nothing")


def test_importing_minigrad_imports_no_drawing_package():
    code = "import sys, minigrad.viz; sys.exit(any(name in sys.modules for name in ('graphviz', 'matplotlib', 'cupy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Summaries


def test_a_large_model_has_a_box_for_each_block():
    model = Model(n_layer=12)
    loss = model_loss(model)
    loss.backward()
    drawing = viz.draw(loss, limit=80)
    assert_graphviz_accepts(drawing)
    parameters = list(model.h[3].parameters())
    norm = sum((p.grad**2).sum() for p in parameters) ** 0.5
    assert box(drawing, "h.3 (Block)") == ["3 operations", "28 parameters", f"grad norm of parameters {norm:.3g}"]
    assert clusters(drawing)["h.3 (Block)"] == [("Model",)]
    assert ("h.3 (Block)", "h.4 (Block)") in edges(drawing)
    assert "label=< 2 × (2, 4)>" in drawing.dot  # to the norm, and past it
    assert len(boxes(drawing)) == 1 + 12 + 1 + 1 + 1  # embed, the blocks, Multiply; Power and Sum; the loss


def test_the_depth_can_be_chosen():
    model = Model()
    loss = model_loss(model)
    titles = [lines[0] for lines in boxes(viz.draw(loss, depth=0)).values()]
    assert titles[:2] == ["Model", "2 operations"]
    titles = [lines[0] for lines in boxes(viz.draw(loss, depth=1)).values()]
    assert titles[:4] == ["embed (Linear)", "h.0 (Block)", "h.1 (Block)", "Multiply"]
    titles = [lines[0] for lines in boxes(viz.draw(loss, depth=2)).values()]
    assert titles[:4] == ["Linear", "h.0.norm (LayerNorm)", "h.0.linear (Linear)", "Add"]
    for wrong in ({"depth": -1}, {"limit": 3}):
        with pytest.raises(ValueError, match="viz.draw: expected a"):
            viz.draw(loss, **wrong)


def chain(n):
    """n operations without any module."""
    x = leaf([0.5, 1.0])
    y = x
    for _ in range(n // 2):
        y = F.tanh(y) * 0.9
    return x, y.sum()


def recurrent(n):
    """n calls of one module."""
    cell, h = nn.Linear(2, 2), np.ones((1, 2), np.float32)
    for _ in range(n):
        h = cell(h)
    return cell, h.sum()


def deep(n):
    """A model of n blocks, each of three operations."""
    model = Model(n)
    return model, model_loss(model)


@pytest.mark.parametrize(("graph", "n"), [(chain, 10_000), (recurrent, 10_000), (deep, 3_400)])
def test_ten_thousand_operations_give_a_small_picture(graph, n):
    _model, loss = graph(n)
    for limit in (4, 20):
        assert 1 <= len(boxes(viz.draw(loss, limit=limit))) - 1 <= limit // 4  # but for the loss
    drawing = viz.draw(loss)
    assert_graphviz_accepts(drawing)
    assert 20 <= len(boxes(drawing)) - 1 <= 50
    counts = [re.match(r"([\d,]+) operations?", text) for lines in boxes(drawing).values() for text in lines]
    grouped = sum(int(count[1].replace(",", "")) for count in counts if count)
    single = sum(len(lines) > 1 and lines[0] in ("Sum", "Power", "Multiply") for lines in boxes(drawing).values())
    assert grouped + single >= 10_000  # none is lost


def test_a_summary_of_a_summed_up_chain_shows_where_the_gradient_vanishes():
    _, loss = chain(2_000)
    viz.trace(loss, quiet=True)
    norms = [float(n) for n in re.findall(r"grad norm (\S+) at the end", viz.draw(loss).dot)]
    assert len(norms) == 20
    assert norms == sorted(norms)
    assert norms[0] < 1e-10 < norms[-1]


# Tracing


def test_the_steps_come_in_the_order_of_the_backward():
    _, _, loss = small_loss()
    rows = viz.trace(loss, quiet=True).rows
    assert [row.operation for row in rows] == ["Sum", "Multiply", "Mean", "MatMul"]
    assert [row.inputs for row in rows] == [((2,),), ((2,), ()), ((2, 2),), ((2, 2), (2,))]
    assert [row.outputs for row in rows] == [((),), ((2,),), ((),), ((2,),)]
    assert {row.dtype for row in rows} == {"float32"}
    np.testing.assert_allclose([row.grad_norm for row in rows], [1, 2**0.5, 9.5, 0.625 * 2**0.5])
    assert all(row.forward_ms > 0 and row.backward_ms > 0 for row in rows)


def test_gradients_are_exactly_those_of_backward():
    def gradients(run):
        mg.manual_seed(0)
        model = Model()
        run((model(np.ones((2, 3), np.float32)) ** 2).sum())
        return [parameter.grad for parameter in model.parameters()]

    plain, traced = gradients(lambda loss: loss.backward()), gradients(lambda loss: viz.trace(loss, quiet=True))
    for ours, expected in zip(traced, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_memory_counts_once_and_that_of_parameters_not_at_all():
    x, w = leaf(np.ones((10, 10))), leaf(np.ones((10, 10)))
    y = F.exp(x)  # saves y: 800 bytes
    z = y * w  # saves y again, and the leaf w
    part = z[:5]  # a view, saves no array
    loss = (part * part[:, :5].sum()).sum()  # saves part twice over, all of z: 800 bytes; and a number: 8 bytes
    rows = {row.operation: row for row in viz.trace(loss, quiet=True).rows[::-1]}
    steps = viz.trace(F.exp(x).sum(), quiet=True)
    assert rows["Exp"].saved == ((10, 10),)
    assert rows["Exp"].saved_bytes == 800
    assert steps.total.saved_bytes == 800
    rows = [row for row in viz.trace(chain(6)[1], quiet=True).rows if row.operation == "Tanh"]
    assert [row.saved_bytes for row in rows] == [16, 16, 16]


def test_views_count_as_the_array_they_belong_to():
    class Saves(mg.Function):
        @staticmethod
        def forward(ctx, x, kept):
            ctx.save(kept[:2])
            ctx.deep = {"more": [(kept[2:], np.ones(3, bool))]}  # wherever it is kept
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    x, kept = leaf(1.0), np.ones(100)
    (second, first) = viz.trace(Saves.apply(Saves.apply(x, kept), kept), quiet=True).rows
    assert first.saved == ((2,), (98,), (3,))
    assert (first.saved_bytes, second.saved_bytes) == (803, 3)


def test_frozen_parameters_are_parameters():
    layer = nn.Linear(8, 8)
    layer.weight.requires_grad = False
    x = mg.Tensor(np.ones((1, 8), np.float32))
    (row,) = viz.trace(layer(x), grad=np.ones((1, 8)), quiet=True).rows
    assert row.saved == ((1, 8), (8, 8))
    assert row.saved_bytes == 32  # x


def test_summaries_add_up():
    model = Model()
    steps = viz.trace(model_loss(model), quiet=True)
    total = steps.total
    assert total.count == len(steps.rows) == 10
    for summary in (steps.by_operation(), steps.by_module(), steps.by_module(depth=0), steps.by_module(depth=1)):
        assert sum(part.count for part in summary) == total.count
        assert sum(part.ms for part in summary) == pytest.approx(total.ms)
        assert sum(part.saved_bytes for part in summary) == total.saved_bytes
    assert [part.name for part in steps.by_module(depth=0)] == ["Model", "outside of modules"]
    names = ["embed (Linear)", "h.0 (Block)", "h.1 (Block)", "Model itself", "outside of modules"]
    assert [part.name for part in steps.by_module(depth=1)] == names
    assert {part.name: part.count for part in steps.by_operation()}["Linear"] == 3


def test_the_table_is_printed_and_fits():
    file, model = io.StringIO(), Model(n_layer=12)
    steps = viz.trace(model_loss(model), file=file, limit=10)
    text = file.getvalue()
    assert text == str(steps.table(10)) + "\n"
    assert max(map(len, text.splitlines())) <= 120
    assert "… 30 more …" in text
    assert len(re.findall(r"^ *\d+  [A-Z]", text, re.M)) == 10
    assert re.search(r"^ 1  Sum +\(2,4\) +\(\) ", text, re.M)
    assert re.search(r"^39  LayerNorm +h\.0\.norm +\(2,4\) 2×\(4,\)", text, re.M)
    assert "all float32" in text
    assert "40 operations: " in text
    assert "launch times" not in text


def test_mixed_dtypes_have_a_column(capsys):
    viz.trace(leaf([1.0], np.float32).sum().astype("float64"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The backward pass, step by step"
    assert [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert "float64" in lines[3]


def test_retain_graph_and_a_second_backward():
    x, _, loss = small_loss()
    first = viz.trace(loss, retain_graph=True, quiet=True)
    once = x.grad.copy()
    second = viz.trace(loss, quiet=True)
    np.testing.assert_array_equal(x.grad, 2 * once)
    assert [row.saved_bytes for row in first.rows] == [row.saved_bytes for row in second.rows]
    with pytest.raises(mg.AutogradError, match="ran a second time"):
        viz.trace(loss)
    with pytest.raises(mg.AutogradError, match="ran a second time"):
        loss.backward()


def test_what_backward_refuses_trace_refuses():
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(
        mg.AutogradError, match="grad can be left out only for a scalar; this tensor has shape \\(2,\\)"
    ):
        viz.trace(y)
    with pytest.raises(ValueError, match="expected a grad of shape \\(2,\\), the shape of the tensor, got \\(3,\\)"):
        viz.trace(y, grad=np.ones(3))


def test_operations_that_no_gradient_reaches_are_counted():
    class Stop(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return (None,)

    x = leaf([1.0, 2.0])
    steps = viz.trace((Stop.apply(x * 2) + x).sum(), quiet=True)
    assert [row.operation for row in steps.rows] == ["Sum", "Add", "Stop"]
    assert "no gradient reached 1 more" in str(steps)


# The tape stays what it is


def test_drawing_and_tracing_leave_no_reference_cycles():
    F.linear(np.ones((1, 1)), np.ones((1, 1)))  # starts the pool of threads
    model = Model()
    viz.draw(model_loss(model))  # whatever is set up at the first use
    gc.collect()
    gc.disable()
    try:
        loss = model_loss(model)
        drawing, steps = viz.draw(loss), viz.trace(loss, quiet=True)
        refs = [weakref.ref(loss), weakref.ref(loss.data)]
        del loss
        assert [ref() for ref in refs] == [None] * 2
        assert gc.collect() == 0
        assert drawing.dot
        assert steps.rows
    finally:
        gc.enable()


def test_threads_trace_and_draw_graphs_of_their_own():
    expected = [row.operation for row in viz.trace(model_loss(Model()), quiet=True).rows]
    results = [None] * 4

    def work(i):
        model = Model()
        loss = model_loss(model)
        steps = viz.trace(loss, quiet=True)
        results[i] = [row.operation for row in steps.rows], clusters(viz.draw(loss))["h.1.linear.weight"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(expected, [("Model", "h.1 (Block)", "h.1.linear (Linear)")])] * 4


@pytest.mark.cuda
def test_on_a_gpu_the_table_says_what_its_times_are():
    x = mg.Tensor(np.ones((64, 64), np.float32), requires_grad=True, device="cuda")
    steps = viz.trace((x @ x).sum(), quiet=True)
    assert steps.on_gpu
    assert "launch times only" in str(steps)
    assert all(row.backward_ms > 0 for row in steps.rows)
    assert "MatMul" in viz.draw((x @ x).sum()).dot
