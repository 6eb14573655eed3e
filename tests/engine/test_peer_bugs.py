"""Bugs that were found by running other educational engines: one test each, so that they are never written again."""

import weakref

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim


def leaf(value, dtype=np.float64):
    return mg.Tensor(np.array(value, dtype), requires_grad=True)


@pytest.mark.parametrize("order", ["sum first", "product first"])
def test_one_array_returned_for_two_inputs_is_not_added_to_in_place(order):
    """ml-by-hand: a + b handed one array to a and b; adding the gradient of 3a to it changed b's as well."""
    a, b = leaf([1.0, 1.0]), leaf([1.0, 1.0])
    (a + b + 3 * a if order == "sum first" else 3 * a + (a + b)).sum().backward()
    np.testing.assert_array_equal(a.grad, [4, 4])
    np.testing.assert_array_equal(b.grad, [1, 1])


def test_the_read_only_gradient_of_sum_can_be_accumulated():
    """ml-by-hand: the gradient of sum() is a read-only view; adding to it in place raised."""
    a = leaf([1.0, 2.0])
    b = a * 1
    (b.sum() + b.sum() + (b + a).sum()).backward()
    np.testing.assert_array_equal(a.grad, [4, 4])


def test_nodes_run_after_everything_that_uses_them():
    """numpy2gpt: the oldest node ran first, so c = a + a^2 with a = x^2 gave 4 at x = 2."""
    x = leaf(2.0)
    a = x**2
    (a + a**2).backward()
    assert x.grad == 36


def test_the_gradient_of_a_bias_has_the_shape_of_the_bias():
    """numpy2gpt: it had the shape of the output, (2, 3)."""
    bias = leaf([1.0, 2.0, 3.0])
    (mg.Tensor(np.ones((2, 3))) + bias).sum().backward()
    np.testing.assert_array_equal(bias.grad, [2, 2, 2])


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_moves_the_weights_in_every_dtype(make, dtype):
    """Tricycle: the update sat inside `if use_mixed_precision`."""
    w = leaf([1.0, -1.0], dtype)
    (w * w).sum().backward()
    make([w], lr=0.1).step()
    assert (np.abs(w.data) < 1).all()
    assert w.dtype == dtype


def test_an_index_used_three_times_gets_three_gradients():
    """simplygrad: `g[idx] = grad` kept the last one only."""
    x = leaf([5.0, 6.0])
    x[np.array([0, 0, 0])].sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 0])


def test_float64_constants_do_not_turn_a_float32_graph_into_float64():
    """simplygrad: 0-d float64 arrays did, and with them every array that came after."""
    x = leaf([1.0, 2.0], np.float32)
    y = (x * np.array(0.5) + np.float64(1)) / np.sqrt(2.0) - np.array([1, 2])
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 3), lambda: nn.LayerNorm(3), lambda: nn.RMSNorm(3), nn.GELU, nn.ReLU]
)
def test_a_layer_used_twice_gets_the_gradients_of_both_uses(make):
    """Several: a layer kept its input on itself, and the second call overwrote the first's."""
    layer = make().to(dtype=np.float64)
    mg.gradcheck(lambda x: layer(layer(x) * 2) + layer(x + 1), np.array([[1.0, -2.0, 0.5]]))


def test_dropout_used_twice_backpropagates_through_the_mask_of_each_use():
    layer, x = nn.Dropout(0.5), leaf(np.ones(100))
    once, again = layer(x), layer(x)
    (once * 1 + again * 10).sum().backward()
    np.testing.assert_array_equal(x.grad, once.data + 10 * again.data)


# More that bite


@pytest.mark.parametrize("times", range(1, 9))
def test_accumulation_is_right_at_every_fan_out(times):
    x = leaf([1.0, 2.0])
    y = x * 2
    sum(y * (i + 1) for i in range(times)).sum().backward()
    np.testing.assert_array_equal(x.grad, [times * (times + 1)] * 2)


def test_a_fully_masked_row_does_not_poison_the_weights():
    """A row of -inf has no softmax; 0 times its NaN would be NaN in every weight before it."""
    layer = nn.Linear(4, 4)
    x = mg.Tensor(np.ones((2, 4), np.float32))
    mask = np.array([[True] * 4, [True, False, False, False]])
    weights = F.softmax(F.masked_fill(layer(x), mask, -np.inf))
    (weights * np.arange(4)).sum().backward()
    assert np.isfinite(layer.weight.grad).all()
    assert np.abs(layer.weight.grad).max() > 0


def test_masking_works_in_float16():
    """-1e9 in place of minus infinity does not exist in float16."""
    q = np.ones((2, 2), np.float16)
    y = F.scaled_dot_product_attention(q, q, np.array([[1, 2], [300, 400]], np.float16), causal=True)
    np.testing.assert_array_equal(y.data[0], [1, 2])
    assert y.dtype == np.float16


def test_micro_batches_of_unequal_token_counts_add_up_to_the_whole_batch():
    """The mean of the micro-batches' means is another number; sums divided by the whole count are right."""
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((6, 4)), np.array([0, 1, -100, -100, -100, 3])
    layer = nn.Linear(4, 4).to(dtype=np.float64)
    F.cross_entropy(layer(x), targets).backward()
    whole = layer.weight.grad
    layer.zero_grad()
    for part in (slice(0, 3), slice(3, 6)):
        (F.cross_entropy(layer(x[part]), targets[part], reduction="sum") / (targets != -100).sum()).backward()
    np.testing.assert_allclose(layer.weight.grad, whole, rtol=1e-12)


def test_the_default_gelu_is_the_tanh_form_that_gpt2_wants():
    """The two forms differ in the fourth digit. Value: 0.5 (1 + tanh(sqrt(2/pi) 1.044715)) in 10 digits."""
    assert abs(F.gelu(mg.Tensor(1.0, dtype=np.float64)).item() - 0.8411919906) < 1e-10


def test_gradcheck_computes_in_float64_whatever_it_is_given():
    """Finite differences in float32 are noise."""
    seen = []

    def fn(x):
        seen.append(x.dtype)
        return F.exp(x)

    mg.gradcheck(fn, np.ones(3, np.float32))
    assert set(seen) == {np.dtype(np.float64), np.dtype(np.complex128)}


def test_gradcheck_of_dropout_needs_a_fixed_mask():
    def fixed(x):
        mg.manual_seed(3)
        return F.dropout(x, 0.5)

    mg.gradcheck(fixed, np.ones(50))
    with pytest.raises(mg.GradcheckError):
        mg.gradcheck(lambda x: F.dropout(x, 0.5), np.ones(50))


def test_the_key_bias_in_attention_has_a_gradient_of_zero_and_passes_gradcheck():
    """Adding the same to every key shifts a query's scores alike: a purely relative tolerance would raise an alarm."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, 3)) for _ in range(3))

    def fn(key_bias):
        return F.scaled_dot_product_attention(q, k + key_bias, v)

    mg.gradcheck(fn, np.ones(3))
    bias = leaf(np.ones(3))
    fn(bias).backward(rng.standard_normal((4, 3)))
    np.testing.assert_allclose(bias.grad, 0, atol=1e-15)


def test_a_list_of_losses_does_not_keep_the_activations_of_every_step():
    """Losses are tensors with a graph behind them; what backward has used is dropped all the same."""
    losses, activations = [], []
    w = leaf(np.ones(100))
    for _ in range(3):
        hidden = F.tanh(w * 2)
        activations.append(weakref.ref(hidden.data))
        losses.append((hidden * hidden).sum())
        losses[-1].backward()
        del hidden
    assert [ref() for ref in activations] == [None] * 3
