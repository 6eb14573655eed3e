"""A hook of a leaf is called once in a backward pass, when the leaf's gradient is complete."""

import copy
import gc
import weakref

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import hooks, nn, optim


def leaf(value=(1.0, 2.0)):
    return mg.Tensor(np.array(value), requires_grad=True)


class Record:
    """A hook that notes which leaves it was called with, and their gradients at that time."""

    def __init__(self, *leaves):
        self.calls = []
        self.handles = [x.register_post_accumulate_grad_hook(self) for x in leaves]

    def __call__(self, x):
        self.calls.append((x, x.grad.copy()))

    def check(self, *leaves):
        """It was called with exactly these leaves, in this order, and their gradients were those of now."""
        assert [id(x) for x, _ in self.calls] == [id(x) for x in leaves]
        for x, gradient in self.calls:
            np.testing.assert_array_equal(gradient, x.grad)
        self.calls.clear()


def test_it_comes_after_the_last_of_several_uses():
    x, y = leaf(), leaf()
    record = Record(x, y)
    (F.exp(x) * x + F.tanh(x) * y + x).sum().backward()
    assert {id(z) for z, _ in record.calls} == {id(x), id(y)}
    assert len(record.calls) == 2
    for z, gradient in record.calls:
        np.testing.assert_array_equal(gradient, z.grad)


def test_it_is_called_while_the_pass_goes_on():
    x, y = leaf(), leaf()
    seen = []
    y.register_post_accumulate_grad_hook(lambda y: seen.append(x.grad))
    (F.exp(x) * y).sum().backward()
    assert len(seen) == 1
    assert seen[0] is None
    assert x.grad is not None


def test_a_second_pass_calls_it_again_with_the_sum():
    x = leaf()
    record = Record(x)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    record.check(x)
    y.backward()
    record.check(x)
    np.testing.assert_array_equal(x.grad, 4 * x.data)


def test_it_is_not_called_if_no_gradient_reaches_the_leaf():
    class Blocked(mg.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, g):
            return g, None

    x, y, unused = leaf(), leaf(), leaf()
    record = Record(x, y, unused)
    Blocked.apply(x, y).sum().backward()
    record.check(x)
    (F.exp(Blocked.apply(x, y * 2)) * unused.detach()).sum().backward()  # a node that no gradient reaches
    record.check(x)


def test_a_root_that_is_a_leaf():
    x = leaf()
    record = Record(x)
    x.backward(np.ones(2))
    record.check(x)


def test_it_is_called_once_for_a_checkpointed_module_and_other_uses():
    """The passes inside the checkpoints complete the weight each for itself, the outer pass for all of them."""
    layer, x = nn.Linear(2, 2), leaf([[1.0, 2.0]]).astype("float32").detach()
    record = Record(layer.weight, layer.bias)
    y = nn.checkpoint(layer, F.tanh(nn.checkpoint(layer, x)))
    (F.linear(y, layer.weight)).sum().backward()
    assert len(record.calls) == 2
    for p, gradient in record.calls:
        np.testing.assert_array_equal(gradient, p.grad)


def test_a_checkpoint_inside_a_checkpoint():
    layer = nn.Linear(2, 2)

    class Outer(nn.Module):
        def __init__(self):
            self.inner = layer

        def forward(self, x):
            return F.tanh(nn.checkpoint(self.inner, x)) @ self.inner.weight

    x = leaf([[1.0, 2.0]]).astype("float32")
    record = Record(layer.weight)
    nn.checkpoint(Outer(), x).sum().backward()
    record.check(layer.weight)


def test_a_function_that_adds_to_the_gradient_itself():
    """As the losses of `minigrad.distributed` do: the leaf is complete when that function's backward is over."""

    class AddsItself(mg.Function):
        @staticmethod
        def forward(ctx, w, p):
            ctx.leaf = p[0]
            return w * 3

        @staticmethod
        def backward(ctx, g):
            with mg.enable_grad():
                (ctx.leaf * 3 * mg.Tensor(g)).sum().backward()
            ctx.leaf.grad = ctx.leaf.grad + 1.0
            return (None,)

    w = leaf()
    record = Record(w)
    (AddsItself.apply(w, [w]) + w).sum().backward()
    record.check(w)
    np.testing.assert_array_equal(w.grad, [5.0, 5.0])


def test_a_hook_may_update_the_leaf_and_drop_the_gradient():
    """The example in the docstring trains as SGD does."""
    mg.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def update(p):
        with mg.no_grad():
            p -= 0.1 * p.grad
        p.grad = None

    for p in models[0].parameters():
        p.register_post_accumulate_grad_hook(update)
    optimizer = optim.SGD(models[1].parameters(), lr=0.1)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    for _ in range(3):
        for model in models:
            (model(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert p.grad is None
        np.testing.assert_allclose(p.data, q.data, rtol=1e-6)


def test_hooks_are_called_in_their_order_until_they_are_removed():
    x, calls = leaf(), []
    first = x.register_post_accumulate_grad_hook(lambda x: calls.append(1))
    with x.register_post_accumulate_grad_hook(lambda x: calls.append(2)):
        x.sum().backward()
        assert calls == [1, 2]
    x.sum().backward()
    assert calls == [1, 2, 1]
    first.remove()
    first.remove()
    x.sum().backward()
    assert calls == [1, 2, 1]


def test_a_hook_may_remove_itself_and_others():
    x, calls, handles = leaf(), [], []

    def once(x):
        calls.append(1)
        for handle in handles:
            handle.remove()

    handles += [x.register_post_accumulate_grad_hook(once) for _ in range(2)]
    x.sum().backward()
    x.sum().backward()
    assert calls == [1, 1]  # a pass calls the hooks that it found


def test_an_error_in_a_hook_ends_the_pass_and_the_next_one_works():
    x, y = leaf(), leaf()
    with x.register_post_accumulate_grad_hook(lambda x: 1 / 0), pytest.raises(ZeroDivisionError):
        (x * y).sum().backward()
    record = Record(x)
    (x * y).sum().backward()
    record.check(x)


def test_a_hook_may_go_backward_itself():
    x, y = leaf(), leaf()
    record = Record(y)
    x.register_post_accumulate_grad_hook(lambda x: (y * 2).sum().backward())
    (x * 3).sum().backward()
    record.check(y)


def test_a_copy_has_no_hooks_and_nothing_is_left_of_a_leaf_that_is_gone():
    x = leaf()
    record = Record(x)
    copy.deepcopy(x).sum().backward()
    assert not record.calls
    x.register_post_accumulate_grad_hook(print)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None
    assert not hooks.any_hooks()


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda: mg.Tensor(1.0), "a tensor without requires_grad"), (lambda: leaf() * 2, "the result of an operation")],
)
def test_only_leaves_that_require_gradients_have_hooks(make, kind):
    with pytest.raises(mg.AutogradError, match=f"expected a leaf that requires gradients, got {kind}"):
        make().register_post_accumulate_grad_hook(print)
