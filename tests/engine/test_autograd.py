"""The tape: what is recorded, how gradients meet, what is freed and when, and what is refused."""

import copy
import gc
import operator
import pickle
import threading
import time
import weakref

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim
from minigrad.node import describe


class Twice(mg.Function):
    """The smallest operation."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def returning(gradient):
    """An operation of one tensor whose backward returns `gradient`."""

    class Returning(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return gradient

    return Returning


def leaf(value, dtype=np.float64):
    return mg.Tensor(np.array(value, dtype), requires_grad=True)


# Gradients that meet


def test_a_diamond_adds_up_both_paths():
    x = leaf(3.0)
    a = x * 2
    (a * a + a).backward()  # 4x^2 + 2x
    assert x.grad == 8 * 3 + 2


def test_a_tower_of_diamonds_runs_every_node_once():
    """2^60 paths, but 60 nodes."""
    runs = []

    class Counted(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            runs.append(1)
            return grad

    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = Counted.apply(y)
        y = y + y
    y.backward()
    assert x.grad == 2.0**60
    assert len(runs) == 60


def test_a_node_waits_for_its_longest_path():
    """x is used at once and at the far end of a chain; its maker must run after both have arrived."""
    x = leaf(2.0)
    early = x * x
    late = early
    for _ in range(10):
        late = late * 1
    (early + late * early).backward()  # x^2 + x^4
    assert x.grad == 2 * 2 + 4 * 8


@pytest.mark.parametrize("times", range(1, 9))
@pytest.mark.parametrize("through", ["leaf", "node"])
def test_a_tensor_used_n_times_gets_n_gradients(times, through):
    x = leaf([1.0, 2.0])
    y = x if through == "leaf" else x * 1
    sum((i + 1) * y for i in range(times)).sum().backward()
    np.testing.assert_array_equal(x.grad, [times * (times + 1) / 2] * 2)


@pytest.mark.parametrize("times", range(1, 9))
def test_one_operation_may_take_the_same_tensor_n_times(times):
    x = leaf([1.0, 2.0])
    (F.stack([x] * times) * np.arange(1.0, times + 1)[:, None]).sum().backward()
    np.testing.assert_array_equal(x.grad, [times * (times + 1) / 2] * 2)


def test_backward_adds_to_the_gradient_that_is_there():
    x = leaf([1.0, 2.0])
    for calls in (1, 2, 3):
        (3 * x).sum().backward()
        np.testing.assert_array_equal(x.grad, [3 * calls] * 2)
    x.zero_grad()
    assert x.grad is None


def test_backward_with_a_gradient():
    x = leaf([1.0, 2.0])
    (x * x).backward([10, 100])
    np.testing.assert_array_equal(x.grad, [20, 400])


def test_backward_on_a_leaf():
    x = leaf(5.0)
    x.backward()
    x.backward(2.0)
    assert x.grad == 3


def test_a_tensor_of_one_element_needs_no_gradient_whatever_its_shape():
    x = leaf([[2.0]])
    (x * x).backward()
    np.testing.assert_array_equal(x.grad, [[4]])


def test_tensors_that_require_nothing_get_nothing():
    x, c = leaf(2.0), mg.Tensor(3.0)
    (x * c).backward()
    assert c.grad is None


def test_detach_cuts_the_graph_and_shares_the_array():
    x = leaf(3.0)
    y = x * 2
    (y.detach() * x).backward()
    assert x.grad == 6
    assert y.detach().data is y.data


# Nobody's array is shared or written to


def test_every_leaf_has_a_gradient_of_its_own():
    """Add hands the same array to both of its inputs."""
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (a + b).sum().backward()
    assert not np.shares_memory(a.grad, b.grad)
    a.grad += 100
    np.testing.assert_array_equal(b.grad, [1, 1])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.reshape(3, 2),
        lambda x: x.T,
        lambda x: x + 0,
        lambda x: F.concatenate([x, x]),
        lambda x: F.broadcast_to(x, (2, 2, 3)),
    ],
    ids=["itself", "reshape", "transpose", "add", "concatenate", "broadcast"],
)
def test_gradients_are_writeable_own_contiguous_memory(view):
    """The gradient of sum() is a read-only view of one number."""
    x = leaf(np.ones((2, 3)))
    view(x).sum().backward()
    assert x.grad.base is None
    assert x.grad.flags.writeable
    assert x.grad.flags.c_contiguous


@pytest.mark.parametrize("times", range(5))
def test_the_gradient_that_the_user_gives_is_not_changed_or_kept(times):
    x = leaf([1.0, 2.0])
    upstream = np.array([1.0, 10.0])
    (sum([x] * times) if times else x).backward(upstream)
    np.testing.assert_array_equal(upstream, [1, 10])
    assert not np.shares_memory(x.grad, upstream)


def test_a_gradient_that_a_function_calls_new_but_returns_twice_is_copied():
    """Otherwise two leaves would share their `grad`, and clipping, which scales in place, would scale it twice."""

    class Add(mg.Function):
        returns_new_arrays = True

        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return g, g

    upstream = np.array([3.0, 4.0], np.float32)
    a, b = leaf(upstream), leaf(upstream)
    Add.apply(a, b).backward(upstream)
    assert not any(np.shares_memory(x, y) for x, y in [(a.grad, b.grad), (a.grad, upstream), (b.grad, upstream)])
    mg.optim.clip_grad_norm([a, b], 1.0)
    assert abs(np.sqrt((a.grad**2 + b.grad**2).sum()) - 1) < 1e-5


def test_gradients_that_a_function_calls_new_but_are_parts_of_one_array_become_arrays_of_their_own():
    class Add(mg.Function):
        returns_new_arrays = True

        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return tuple(np.stack([g, g]))

    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    Add.apply(a, b).sum().backward()
    assert a.grad.base is None
    assert b.grad.base is None


def test_a_read_only_gradient_will_do():
    a, b = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    upstream = np.ones(2)
    upstream.setflags(write=False)
    (a + b + a + a + b).backward(upstream)
    np.testing.assert_array_equal(a.grad, [3, 3])
    np.testing.assert_array_equal(b.grad, [2, 2])


# Memory


def test_a_second_backward_is_refused():
    x = leaf(2.0)
    y = x * x
    y.backward()
    with pytest.raises(mg.AutogradError, match=r"Multiply: backward ran a second time .* retain_graph=True"):
        y.backward()
    assert x.grad == 4


def test_retain_graph_allows_a_second_backward():
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad == 8
    with pytest.raises(mg.AutogradError):
        y.backward()


def test_two_losses_on_one_trunk_need_retain_graph():
    x = leaf(2.0)
    trunk = x * x
    one, two = trunk * 3, trunk * 5
    one.backward(retain_graph=True)
    two.backward()
    assert x.grad == 4 * 8


def test_saved_arrays_are_dropped_while_the_walk_goes_on():
    """By the time an earlier node runs, a later one has let go of what it saved."""
    saved = []
    gone = []

    class Saves(mg.Function):
        @staticmethod
        def forward(ctx, x):
            kept = x.copy()
            ctx.save(kept)
            ctx.also = other = x.copy()
            saved.extend([weakref.ref(kept), weakref.ref(other)])
            return x + 0

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Looks(mg.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 0

        @staticmethod
        def backward(ctx, grad):
            gone.extend(ref() is None for ref in saved)
            return grad

    x = leaf([1.0])
    loss = Saves.apply(Looks.apply(x)).sum()
    assert all(ref() is not None for ref in saved)
    loss.backward()
    assert gone == [True, True]


def test_a_loss_that_is_kept_keeps_no_activations_after_backward():
    x = leaf(np.ones(1000))
    hidden = F.exp(x)
    activation = weakref.ref(hidden.data)
    loss = (hidden * hidden).sum()
    del hidden
    assert activation() is not None
    loss.backward()
    assert activation() is None
    assert loss.item() > 0


def test_the_tape_has_no_reference_cycles():
    """With the garbage collector off, reference counts alone free a graph that was never walked."""
    F.cross_entropy(np.ones((1, 2)), np.zeros(1, int))  # starts the pool of threads, which is not the tape's business
    gc.collect()
    gc.disable()
    try:
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2))
        hidden = model(mg.Tensor(np.ones((5, 3), np.float32)))
        loss = F.cross_entropy(hidden, np.zeros(5, int))
        refs = [weakref.ref(hidden), weakref.ref(hidden.data), weakref.ref(loss.data)]
        del hidden, loss
        assert [ref() for ref in refs] == [None] * 3
        assert gc.collect() == 0
    finally:
        gc.enable()


def chain(n):
    x = leaf(1.0)
    y = x
    for _ in range(n):
        y = Twice.apply(y) * 0.5
    return x, y


def test_a_chain_of_a_hundred_thousand_operations_runs_and_is_destroyed_without_recursion():
    x, y = chain(50_000)
    y.backward()
    assert x.grad == 1
    _, y = chain(25_000)
    del y  # never walked


@pytest.mark.slow
def test_a_chain_of_a_million_operations():
    x, y = chain(500_000)
    y.backward()
    assert x.grad == 1
    _, y = chain(500_000)
    del y


# no_grad


def test_nothing_is_recorded_inside_no_grad():
    x = leaf(1.0)
    with mg.no_grad():
        y = x * 2
    assert not y.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_decorates():
    @mg.no_grad()
    def evaluate(x, depth):
        assert not (x * 2).requires_grad
        return evaluate(x, depth - 1) if depth else x * 2

    x = leaf(1.0)
    assert not evaluate(x, 3).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_nests_also_in_itself():
    x = leaf(1.0)
    silent = mg.no_grad()
    with silent:
        with silent:
            pass
        with mg.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_ends_with_an_exception():
    x = leaf(1.0)
    with pytest.raises(KeyError), mg.no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_enable_grad_records_inside_no_grad_and_nests():
    x = leaf(1.0)
    recording = mg.enable_grad()
    with mg.no_grad(), mg.no_grad():
        with recording:
            assert (x * 2).requires_grad
            with mg.no_grad():
                assert not (x * 2).requires_grad
                with recording:
                    assert (x * 2).requires_grad
                assert not (x * 2).requires_grad
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_enable_grad_decorates():
    @mg.enable_grad()
    def double(x):
        return x * 2

    with mg.no_grad():
        assert double(leaf(1.0)).requires_grad


def test_backward_works_inside_no_grad():
    x = leaf(3.0)
    y = x * x
    with mg.no_grad():
        y.backward()
    assert x.grad == 6


def test_no_grad_is_each_threads_own():
    x = leaf(1.0)
    inside, leave = threading.Event(), threading.Event()
    seen = {}

    def silent():
        with mg.no_grad():
            inside.set()
            leave.wait(10)
            seen["inside"] = (x * 2).requires_grad

    thread = threading.Thread(target=silent)
    thread.start()
    assert inside.wait(10)
    seen["outside"] = (x * 2).requires_grad
    leave.set()
    thread.join()
    assert seen == {"inside": False, "outside": True}


def test_threads_can_train_models_of_their_own():
    results = {}

    def work(i):
        x = leaf(float(i))
        for _ in range(200):
            (x * x).backward()
        results[i] = float(x.grad)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: 400.0 * i for i in range(4)}


def test_gradients_that_threads_add_to_one_leaf_all_arrive():
    class Slow(np.ndarray):
        def __iadd__(self, other):
            added = self + other
            time.sleep(0.01)
            self[...] = added
            return self

    x = leaf(0.0)
    x.grad = np.zeros(()).view(Slow)
    threads = [threading.Thread(target=(x * 1).backward) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert x.grad == 4


# Anomalies


def test_detect_anomaly_names_the_operation_and_shows_the_line_of_the_forward():
    x = leaf([0.0, 1.0])
    with mg.detect_anomaly(), np.errstate(divide="ignore"):
        y = F.sqrt(x)  # the culprit
        with pytest.raises(mg.AnomalyError) as error:
            y.sum().backward()
    assert "Sqrt.backward returned a NaN or an infinity for argument 0" in str(error.value)
    assert "test_autograd.py" in str(error.value)
    assert "y = F.sqrt(x)  # the culprit" in str(error.value)


def test_without_detect_anomaly_infinities_pass():
    x = leaf([0.0, 1.0])
    with np.errstate(divide="ignore"):
        F.sqrt(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [np.inf, 0.5])


def test_detect_anomaly_says_when_it_has_not_seen_the_forward():
    y = returning(np.array(np.nan)).apply(leaf(1.0))
    with mg.detect_anomaly(), pytest.raises(mg.AnomalyError, match="outside detect_anomaly"):
        y.backward()


def test_detect_anomaly_lets_finite_gradients_pass_and_nests():
    x = leaf(2.0)
    detect = mg.detect_anomaly()
    with detect, detect:
        (x * x).backward()
    assert x.grad == 4
    returning(np.array(np.nan)).apply(x).backward()  # over: not looked at any more


# Writing in place


def test_a_step_between_forward_and_backward_is_refused():
    layer = nn.Linear(3, 1)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    x = leaf(np.ones((2, 3)), np.float32)
    layer(x).sum().backward()
    stale = layer(x).sum()
    optimizer.step()
    with pytest.raises(mg.AutogradError, match=r"Linear: an array of shape \(1, 3\) .* written to in place"):
        stale.backward()


@pytest.mark.parametrize("change", ["setitem", "load_state_dict", "mark_written"])
def test_every_way_to_write_is_noticed(change):
    layer = nn.Linear(2, 2, bias=False)
    y = layer(leaf(np.ones((1, 2)), np.float32)).sum()
    if change == "setitem":
        with mg.no_grad():
            layer.weight[0, 0] = 5.0
    elif change == "load_state_dict":
        layer.load_state_dict({"weight": np.zeros((2, 2))})
    else:
        layer.weight.data *= 2
        mg.mark_written(layer.weight.data)
    with pytest.raises(mg.AutogradError, match="Linear"):
        y.backward()


@pytest.mark.parametrize("change", ["another backward", "clip_grad_norm"])
def test_writing_to_a_gradient_is_noticed(change):
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    y = (mg.Tensor(x.grad) * x).sum()
    if change == "another backward":
        (x * x).sum().backward()
    else:
        optim.clip_grad_norm([x], 0.1)
    with pytest.raises(mg.AutogradError, match="Multiply: .* written to in place"):
        y.backward()


@pytest.mark.parametrize("write_to", ["view", "owner"])
def test_writing_to_a_view_of_a_saved_array_or_saving_a_view_is_noticed(write_to):
    memory = mg.Tensor(np.ones((4, 4)))
    view = memory[1:3].T
    saved, written = (memory, view) if write_to == "view" else (view, memory)
    y = (leaf(np.ones(saved.shape)) * saved).sum()
    written[0] = 7.0
    with pytest.raises(mg.AutogradError, match="Multiply"):
        y.backward()


def test_writing_to_an_index_that_was_used_is_noticed():
    x, ids = leaf([1.0, 2.0, 3.0]), mg.Tensor(np.array([0, 1]))
    y = x[ids].sum()
    ids[0] = 2
    with pytest.raises(mg.AutogradError, match="GetItem"):
        y.backward()


def test_writing_before_an_array_was_saved_is_fine():
    """As a step of the optimizer does, whatever else is written to until the backward."""
    x, c, other = leaf([1.0, 2.0]), mg.Tensor([3.0, 4.0]), mg.Tensor([0.0])
    c[0] = 7.0
    y = (x * c).sum()
    other[0] = 1.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [7, 4])


def test_writing_to_what_was_not_saved_is_fine():
    x, c = leaf([1.0, 2.0]), mg.Tensor([3.0, 4.0])
    y = (x + c).sum()
    c[0] = 7.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_writing_before_the_forward_is_fine():
    w = leaf([1.0, 2.0])
    with mg.no_grad():
        w[0] = 5.0
    (w * w).sum().backward()
    np.testing.assert_array_equal(w.grad, [10, 4])


def test_writing_to_a_tensor_that_wants_gradients_needs_no_grad():
    x = leaf([1.0, 2.0])
    with pytest.raises(mg.AutogradError, match="writing in place"):
        x[0] = 1.0
    with pytest.raises(mg.AutogradError, match="writing in place"):
        (x * 2)[0] = 1.0


def test_writing_a_tensor_that_wants_gradients_into_one_that_does_not_needs_no_grad():
    w, sums = leaf([1.0, 2.0]), mg.Tensor(np.zeros(2))
    with pytest.raises(mg.AutogradError, match="or the value written to it, requires gradients"):
        sums[0] += (w * w).sum()
    with pytest.raises(mg.AutogradError, match="or the value written to it, requires gradients"):
        sums[:] = [0.0, (w * w).sum()]
    with mg.no_grad():
        sums[0] += (w * w).sum()
    assert sums.data.tolist() == [5, 0]


@pytest.mark.parametrize(
    "change",
    [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow],
    ids=lambda change: change.__name__,
)
def test_a_leaf_is_changed_in_place_inside_no_grad(change):
    w = leaf([1.0, 2.0])
    array, expected = w.data, change(w.data.copy(), 4.0)
    stale = (w * w).sum()
    with mg.no_grad():
        assert change(w, 4.0) is w
    assert w.data is array
    np.testing.assert_array_equal(array, expected)
    with pytest.raises(mg.AutogradError, match="written to in place"):
        stale.backward()


def test_a_step_of_gradient_descent_by_hand_trains_the_module():
    layer = nn.Linear(2, 1)
    for _ in range(50):
        layer.zero_grad()
        loss = (layer([[1.0, 2.0]]) - 3.0) ** 2
        loss.sum().backward()
        with mg.no_grad():
            for p in layer.parameters():
                p -= 0.05 * p.grad
    assert loss.item() < 1e-6


def test_changing_a_leaf_in_place_is_refused_while_operations_are_recorded():
    w = leaf([1.0, 2.0])
    with pytest.raises(mg.AutogradError, match="changing a leaf"):
        w *= 2


def test_adding_to_a_sum_makes_a_new_tensor():
    w = leaf([1.0, 2.0])
    total = first = w.sum()
    total += (w * w).sum()
    total.backward()
    assert first.item() == 3
    np.testing.assert_array_equal(w.grad, [3, 5])


@pytest.mark.parametrize("mode", [mg.no_grad, mg.enable_grad, mg.detect_anomaly])
def test_what_runs_later_cannot_be_decorated(mode):
    def numbers():
        yield 1

    async def number():
        return 1

    for function in (numbers, number):
        with pytest.raises(TypeError, match=f"put `with {mode.__name__}\\(\\):` inside it"):
            mode()(function)


# Operations of one's own


class Scale(mg.Function):
    """One gradient for each tensor: x has one, the factor is a plain number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor


class ScaleWithNone(Scale):
    """One gradient for each argument, None for the number."""

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.parametrize("operation", [Scale, ScaleWithNone])
def test_backward_returns_a_gradient_for_each_tensor_or_for_each_argument(operation):
    x = leaf([1.0, 2.0])
    operation.apply(x, 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])
    mg.gradcheck(lambda x: operation.apply(x, 3.0), [np.ones(2)])


def test_a_tensor_after_a_plain_argument_gets_its_gradient():
    class Weighted(mg.Function):
        @staticmethod
        def forward(ctx, name, x, factor, y):
            assert name == "sum"
            ctx.factor = factor
            return x + factor * y

        @staticmethod
        def backward(ctx, grad):
            return grad, ctx.factor * grad

    x, y = leaf(1.0), leaf(1.0)
    Weighted.apply("sum", x, 5.0, y).backward()
    assert (x.grad, y.grad) == (1, 5)


class SumAndProduct(mg.Function):
    """Two outputs, so two gradients come in."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save(x, y)
        return x + y, x * y

    @staticmethod
    def backward(ctx, grad_sum, grad_product):
        x, y = ctx.saved
        return grad_sum + y * grad_product, grad_sum + x * grad_product


def test_an_operation_with_several_outputs():
    mg.gradcheck(SumAndProduct.apply, [np.array([1.0, 2.0]), np.array([3.0, 4.0])])
    x, y = leaf(2.0), leaf(5.0)
    total, product = SumAndProduct.apply(x, y)
    (total * 10 + product + product).backward()
    assert (x.grad, y.grad) == (10 + 2 * 5, 10 + 2 * 2)


@pytest.mark.parametrize("output", [0, 1])
def test_the_gradient_of_an_output_that_is_not_used_is_zero(output):
    x, y = leaf(2.0), leaf(5.0)
    SumAndProduct.apply(x, y)[output].backward()
    assert (x.grad, y.grad) == ((1, 1) if output == 0 else (5, 2))


def test_needs_input_grad_says_whose_gradient_will_be_used():
    seen = []

    class Looks(mg.Function):
        @staticmethod
        def forward(ctx, x, y, z):
            seen.append(ctx.needs_input_grad)
            return x + y + z

        @staticmethod
        def backward(ctx, grad):
            return grad, None, None

    Looks.apply(leaf(1.0), mg.Tensor(1.0), 1.0)
    with mg.no_grad():
        Looks.apply(leaf(1.0), mg.Tensor(1.0), 1.0)
    assert seen == [(True, False, False), (False, False, False)]


def test_none_means_no_gradient():
    x = leaf(1.0)
    inner = x * 2
    (returning((None,)).apply(inner) + 3 * x).backward()
    assert x.grad == 3


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (np.ones(3), r"Returning.backward returned a gradient \(3,\) float64 for argument 0, which is \(2,\) float64"),
        (np.ones(2, np.float32), r"gradient \(2,\) float32 for argument 0, which is \(2,\) float64"),
        (np.ones((1, 2)), r"gradient \(1, 2\) float64"),
        ((np.ones(2), np.ones(2)), "returned 2 gradients; expected one for each of its 1 tensors"),
        ((), "returned 0 gradients"),
        (
            None,
            r"Returning.backward returned None; expected a gradient for each of its 1 tensors.*is a return missing\?",
        ),
    ],
    ids=["shape", "dtype", "one axis more", "too many", "too few", "no return"],
)
@pytest.mark.parametrize("through", ["leaf", "node"])
def test_a_wrong_gradient_is_refused(gradient, message, through):
    x = leaf([1.0, 2.0])
    y = returning(gradient).apply(x if through == "leaf" else x * 1)
    with pytest.raises(mg.AutogradError, match=message):
        y.sum().backward()


def test_operations_that_lack_a_half_say_so():
    class Nothing(mg.Function):
        pass

    with pytest.raises(TypeError, match=r"must define forward"):
        Nothing.apply(leaf(1.0))


# What is refused


def test_integers_cannot_require_gradients():
    for value in ([1, 2], np.array([True]), 3):
        with pytest.raises(TypeError, match="only floating-point tensors can require gradients"):
            mg.Tensor(value, requires_grad=True)


def test_an_output_of_integer_dtype_leaves_the_gradients_of_the_others_alone():
    class LargestWithItsPlace(mg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.place, ctx.shape = x.argmax(), x.shape
            return x.max(), ctx.place

        @staticmethod
        def backward(ctx, g, _):
            dx = np.zeros(ctx.shape)
            dx[ctx.place] = g
            return dx

    x = leaf([1.0, 3.0, 2.0])
    largest, place = LargestWithItsPlace.apply(x)
    assert (largest.requires_grad, place.requires_grad, place.item()) == (True, False, 1)
    largest.backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 0])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_tensor_holds_a_plain_array_whatever_class_it_comes_in():
    x = mg.Tensor(np.matrix([[1.0, 2.0], [3.0, 4.0]]))
    assert (x * x).data.tolist() == [[1, 4], [9, 16]]
    assert type(x.data) is np.ndarray


class OfAnotherLibrary:
    def __array__(self, dtype=None, copy=None):
        return np.array([0.1, 0.2], dtype)


@pytest.mark.parametrize(
    ("array_like", "dtype"),
    [
        ([0.1, 0.2], np.float32),
        ([np.float64(0.1), np.float64(0.2)], np.float32),
        ([np.array([0.1]), np.array([0.2])], np.float64),
        ([[mg.Tensor(np.array(0.1))], [mg.Tensor(np.array(0.2))]], np.float64),
        (OfAnotherLibrary(), np.float64),
    ],
    ids=["floats", "numpy's floats", "arrays", "tensors in lists", "another library's array"],
)
def test_floats_become_float32_and_arrays_keep_their_dtype(array_like, dtype):
    x = mg.Tensor(array_like)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.data.reshape(-1), np.array([0.1, 0.2], dtype))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"])
def test_leaves_can_be_copied_and_pickled_and_for_what_operations_made_it_is_said_why_not(again):
    x = again(leaf([1.0, 2.0]))
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 4])
    np.testing.assert_array_equal(again((x * x).detach()).data, [1, 4])
    model = nn.Linear(2, 1)
    model.seen = model(x.astype("float32"))
    for what in x * x, model:
        with pytest.raises(TypeError, match=r"the tape cannot be copied or pickled.*detach\(\) the tensor first"):
            again(what)


def test_tensors_of_one_number_format_as_numbers():
    x = mg.Tensor([2.75])
    assert f"{x:.1f}" == "2.8"
    assert f"{x}" == str(x)
    assert int(x) == 2


def test_arrays_of_another_byte_order_are_converted():
    x = mg.Tensor(np.array([1.0, 2.0], np.dtype("f4").newbyteorder()), requires_grad=True)
    (x * x).sum().backward()
    assert x.dtype.isnative
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_results_of_integer_dtype_are_not_recorded():
    x = leaf([1.5, 2.5])
    assert not x.astype(np.int64).requires_grad


def test_backward_from_several_elements_needs_a_gradient():
    with pytest.raises(mg.AutogradError, match=r"grad can be left out only for a scalar; this tensor has shape \(2,\)"):
        (leaf([1.0, 2.0]) * 2).backward()


def test_backward_with_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"expected a grad of shape \(2,\), the shape of the tensor, got \(3,\)"):
        (leaf([1.0, 2.0]) * 2).backward(np.ones(3))


def test_backward_from_a_tensor_that_depends_on_nothing():
    with pytest.raises(mg.AutogradError, match="does not depend on any tensor that requires gradients"):
        (mg.Tensor([1.0]) * 2).backward()


def test_long_values_are_named_by_their_type_in_messages():
    assert describe("x" * 58) == repr("x" * 58)
    assert describe("x" * 59) == "str"
    assert (
        describe(np.zeros((2, 3), np.float32)) == describe(mg.Tensor(np.zeros((2, 3), np.float32))) == "(2, 3) float32"
    )
