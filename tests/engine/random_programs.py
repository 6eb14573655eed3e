"""Random programs on the engine, which a naive engine (naive.py) follows step by step.

A program is what Hypothesis makes of the rules below: it makes leaves, computes with them inside and outside of no_grad
and checkpoints, goes backward from anywhere with and without keeping the graph, writes in place, detaches, zeroes
gradients and drops tensors. After every step the values agree, and after every backward the gradients of all leaves.
Every second leaf has a hook, which each backward calls once, with the gradient that the leaf has at the end.
A backward that must fail fails, and one that may fail because of a write in place fails or is right.
"""

import functools
import weakref
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.in_place import owner_of

from . import naive

SHAPES = [(), (1,), (3,), (4,), (2, 3), (3, 3), (3, 1), (1, 4), (4, 3), (2, 1, 3), (2, 2, 3)]
MOST_ELEMENTS, LARGEST_VALUE = 24, 100.0

# Formulas of a tensor x, or of two, on any engine E. All are smooth, or their kinks are at 0.
SMOOTH = {
    "exp": lambda E, x: E.exp(E.clip(x, -60, 4)),
    "log": lambda E, x: E.log(x * x + 1),
    "sqrt": lambda E, x: E.sqrt(x * x + 0.5),
    "negative": lambda E, x: E.negative(x),
    "numbers": lambda E, x: 1.5 - 2 * x / 4,
    "square": lambda E, x: E.power(x, 2),
    "power": lambda E, x: E.power(x * x + 1, -1.5),
    "tanh": lambda E, x: E.tanh(x),
    "sigmoid": lambda E, x: E.sigmoid(x),
    "gelu": lambda E, x: E.gelu(x),
    "gelu, exact": lambda E, x: E.gelu(x, "none"),
    "silu": lambda E, x: E.silu(x),
    "softplus": lambda E, x: E.softplus(x),
}
WITH_KINKS = {
    "abs": lambda E, x: E.abs(x),
    "relu": lambda E, x: E.relu(x),
    "squared_relu": lambda E, x: E.squared_relu(x),
    "clip": lambda E, x: E.clip(x, 0.0, None) if E is F else E.clip(x, 0.0, np.inf),
}
PAIRS = {
    "add": lambda E, x, y: x + y,
    "subtract": lambda E, x, y: x - y,
    "multiply": lambda E, x, y: x * y,
    "divide": lambda E, x, y: x / (y * y + 1),
    "power": lambda E, x, y: E.power(x * x + 1, E.tanh(y)),
    "shared part": lambda E, x, y: (x * y + x) * (x * y),
    "same twice": lambda E, x, y: x * x + y - y * x,
}
CHECKPOINTED = {
    "product": lambda E, x, y: E.tanh(x * y) * x,
    "softmax": lambda E, x, y: E.softmax(x + y, -1) * y,
    "first alone": lambda E, x, y: E.exp(E.tanh(x)) + 0 * y,
}


class Variable:
    """A tensor of the engine, the same on each reference, and the tape that leads to it: its nodes and its leaves."""

    def __init__(self, tensor, theirs, nodes=frozenset(), leaves=frozenset()):
        self.tensor, self.theirs, self.nodes, self.leaves = tensor, theirs, nodes, leaves
        self.first = theirs  # of a leaf, what its gradient is by: a write in place changes `theirs`
        self.used = False  # has anything been computed from it?
        self.grad = None  # of a leaf: the gradient so far and the scale of its rounding errors, (2, *shape)

    shape = property(lambda self: self.tensor.shape)
    ndim = property(lambda self: self.tensor.ndim)
    values = property(lambda self: naive.values(self.theirs[0]))


def replaced(argument, get):
    """An argument, or a list of them, with each variable replaced by what `get` returns for it."""
    if isinstance(argument, list):
        return [replaced(part, get) for part in argument]
    return get(argument) if isinstance(argument, Variable) else argument


def variables_in(arguments):
    for argument in arguments:
        yield from variables_in(argument) if isinstance(argument, list) else [argument] * isinstance(argument, Variable)


def apart(x, y):
    """Is no element of x so close to its counterpart in y that rounding might decide which is larger?"""
    ours = np.subtract(x.tensor.data, getattr(y, "tensor", mg.Tensor(0.0)).data) == 0
    theirs = np.abs(x.values - (y.values if isinstance(y, Variable) else y))
    return bool(np.where(ours, theirs == 0, theirs > 1e-6).all())


@functools.cache
def compatible(f, *shapes):
    """Would NumPy's function f take arrays of these shapes?"""
    try:
        return f(*map(np.zeros, shapes)).size <= MOST_ELEMENTS
    except ValueError:
        return False


class RandomPrograms(RuleBasedStateMachine):
    references = (naive,)

    def __init__(self):
        super().__init__()
        self.contexts = []  # the no_grad and enable_grad that the program is inside
        self.modes = [True]  # whether the tape records, outside of all of them and in each
        self.pool, self.leaves = [], []
        self.completed = []  # the leaves whose hook the latest backward has called, with their gradients then
        self.clock = 0  # the number of the latest operation or write
        self.freed = set()  # nodes
        self.owners, self.written = {}, {}  # the memory of a node's inputs and outputs; when it was last written to
        mg.manual_seed(0)

    def teardown(self):
        for root in self.pool[-3:]:
            if root.tensor.requires_grad:
                self.go_backward(root, np.ones(root.shape), True)
        while self.contexts:
            self.leave()

    # Variables

    def new_leaf(self, tensor):
        leaf = Variable(tensor, [E.leaf(tensor.data) for E in self.references])
        if tensor.requires_grad:
            leaf.leaves = frozenset([leaf])
            self.leaves.append(leaf)
            if len(self.leaves) % 2:
                tensor.register_post_accumulate_grad_hook(lambda t: self.completed.append((t, t.grad.copy())))
        return leaf

    def pick(self, data, suits=lambda x: True):
        """One of the variables that suit, or None if none does."""
        candidates = [x for x in self.pool if suits(x)]
        return candidates[data.draw(st.integers(-len(candidates), -1), "variable")] if candidates else None

    def apply(self, formula, *arguments, ours=None, parameters: Iterable = ()):
        """The formula on the engine and on the references. The result, or results, join the pool."""
        if any(x is None for x in arguments):
            return
        result = (ours or functools.partial(formula, F))(*(replaced(x, lambda x: x.tensor) for x in arguments))
        theirs = [
            formula(E, *(replaced(x, lambda x, i=i: x.theirs[i]) for x in [*arguments, *parameters]))
            for i, E in enumerate(self.references)
        ]
        inputs = [*variables_in(arguments), *parameters]
        for x in inputs:
            x.used = True
        recorded = self.modes[-1] and any(x.tensor.requires_grad for x in inputs)
        on_tape = [x for x in inputs if x.tensor.requires_grad] if recorded else []
        self.clock += 1
        nodes = frozenset([self.clock] if recorded else []).union(*(x.nodes for x in on_tape))
        leaves = frozenset().union(*(x.leaves for x in on_tape))
        outputs = list(result) if isinstance(result, tuple) else [result]
        theirs = [list(values) if isinstance(result, tuple) else [values] for values in theirs]
        self.owners[self.clock] = {id(owner_of(x.data)) for x in [*(x.tensor for x in inputs), *outputs]}
        for tensor, *counterparts in zip(outputs, *theirs, strict=True):
            counterparts = [E.array_of(x) for E, x in zip(self.references, counterparts, strict=True)]
            if not recorded:
                counterparts = [E.detach(x) for E, x in zip(self.references, counterparts, strict=True)]
            x = Variable(tensor, counterparts, nodes, leaves)
            assert tensor.requires_grad == recorded
            assert tensor.dtype == np.float64
            for E, y in zip(self.references, counterparts, strict=True):
                np.testing.assert_allclose(tensor.data, E.values(y), rtol=1e-9, atol=1e-9)
                assert tensor.shape == E.values(y).shape
            if tensor.size <= MOST_ELEMENTS and tensor.ndim <= 3 and np.abs(x.values).max() <= LARGEST_VALUE:
                self.pool.append(x)

    @initialize(seed=st.integers(0, 99))
    def start(self, seed):
        rng = np.random.default_rng(seed)
        self.mlp = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3), nn.LayerNorm(3), nn.Dropout(0.5))
        self.mlp.to(dtype="float64")
        for parameter in self.mlp.parameters():
            parameter.data[...] = rng.normal(size=parameter.shape)
        self.parameters = [self.new_leaf(parameter) for parameter in self.mlp.parameters()]
        for shape in [(3,), (2, 3)]:
            self.pool.append(self.new_leaf(mg.Tensor(rng.normal(size=shape), requires_grad=True)))

    @rule(shape=st.sampled_from(SHAPES), seed=st.integers(0, 99), wants=st.sampled_from([True, True, False]))
    def make_leaf(self, shape, seed, wants):
        array = np.random.default_rng(seed).normal(size=shape)
        if seed % 5 == 0:
            array = array.round()  # ties and zeros
        self.pool.append(self.new_leaf(mg.Tensor(array, requires_grad=wants)))

    # Operations

    @rule(data=st.data(), name=st.sampled_from(sorted(SMOOTH)))
    def elementwise(self, data, name):
        self.apply(SMOOTH[name], self.pick(data))

    @rule(data=st.data(), name=st.sampled_from(sorted(WITH_KINKS)))
    def with_a_kink(self, data, name):
        self.apply(WITH_KINKS[name], self.pick(data, lambda x: apart(x, 0)))

    @rule(data=st.data(), name=st.sampled_from(sorted(PAIRS)))
    def pair(self, data, name):
        x = self.pick(data)
        self.apply(PAIRS[name], x, self.pick(data, lambda y: compatible(np.add, x.shape, y.shape)))

    @rule(data=st.data(), name=st.sampled_from(["maximum", "minimum"]))
    def larger_or_smaller(self, data, name):
        x = self.pick(data)
        y = self.pick(data, lambda y: compatible(np.add, x.shape, y.shape) and apart(x, y))
        self.apply(lambda E, x, y: getattr(E, name)(x, y), x, y)

    @rule(data=st.data(), seed=st.integers(0, 9), fill=st.booleans())
    def choose(self, data, seed, fill):
        x = self.pick(data)
        mask = np.random.default_rng(seed).random(x.shape) < 0.5
        if fill:
            return self.apply(lambda E, x: E.masked_fill(x, mask, 0.5), x)
        y = self.pick(data, lambda y: compatible(np.add, x.shape, y.shape))
        return self.apply(lambda E, x, y: E.where(mask, x, y), x, y)

    @rule(
        data=st.data(),
        name=st.sampled_from(["sum", "mean", "var", "logsumexp", "max", "min"]),
        axes=st.sampled_from([None, 0, -1, (0, -1)]),
        keepdims=st.booleans(),
    )
    def reduce(self, data, name, axes, keepdims):
        x = self.pick(data, lambda x: x.ndim > 1 or (x.ndim == 1 and axes != (0, -1)))
        if x is None:
            return
        flat = Variable(x.tensor.reshape(-1, 1).detach(), [naive.reshape(x.theirs[0], (-1, 1))])
        transposed = Variable(flat.tensor.T, [flat.theirs[0].T])
        if name in ("max", "min") and not apart(flat, transposed):
            return
        settings = {"correction": 0} if name == "var" else {}
        self.apply(lambda E, x: getattr(E, name)(x, axis=axes, keepdims=keepdims, **settings), x)

    @rule(data=st.data(), name=st.sampled_from(["flat", "column", "swap", "reverse", "spread", "stretch", "back"]))
    def reshape(self, data, name):
        formulas = {
            "flat": lambda E, x: E.reshape(x, (-1,)),
            "column": lambda E, x: E.reshape(x, (x.shape[-1], -1)) if len(x.shape) else E.reshape(x, (1, 1)),
            "swap": lambda E, x: E.swapaxes(x, 0, -1) if len(x.shape) else x + 0,
            "reverse": lambda E, x: x.T if len(x.shape) == 2 else E.reshape(x, x.shape),
            "spread": lambda E, x: E.transpose(x, 1, 2, 0) if len(x.shape) == 3 else E.reshape(x, (1, *x.shape)),
            "stretch": lambda E, x: E.broadcast_to(x, (2, *x.shape)),
            "back": lambda E, x: E.transpose(E.transpose(x, *range(len(x.shape))[::-1])) if E is F else x + 0,
        }
        self.apply(formulas[name], self.pick(data))

    @rule(data=st.data(), seed=st.integers(0, 99))
    def index(self, data, seed):
        x, rng = self.pick(data, lambda x: x.ndim), np.random.default_rng(seed)
        if x is None:
            return
        n = x.shape[0]
        ids = rng.integers(-n, n, rng.integers(1, 5))
        indices = [ids, 0, -1, slice(None, None, 2), slice(None, None, -1), (..., 0), (None, ...), rng.random(n) < 0.7]
        if x.ndim > 1:
            indices += [(ids, rng.integers(0, x.shape[1], len(ids))), (slice(None), ids % x.shape[1])]
        chosen = data.draw(st.sampled_from(range(len(indices))), "index")
        if np.empty(x.shape)[indices[chosen]].size:
            self.apply(lambda E, x: E.getitem(x, indices[chosen]), x)

    @rule(data=st.data(), seed=st.integers(0, 99))
    def embed(self, data, seed):
        table, rng = self.pick(data, lambda x: x.ndim == 2), np.random.default_rng(seed)
        if table is not None:
            ids = rng.integers(0, table.shape[0], [(3,), (2, 2)][seed % 2])
            self.apply(lambda E, x: E.embedding(ids, x), table)

    @rule(data=st.data(), axis=st.sampled_from([0, -1]), stack=st.booleans())
    def join(self, data, axis, stack):
        x = self.pick(data, lambda x: x.ndim)
        if x is None:
            return
        y = self.pick(data, lambda y: y.shape == x.shape)
        self.apply(lambda E, parts: (E.stack if stack else E.concatenate)(parts, axis), [x, y, x])

    @rule(data=st.data(), axis=st.sampled_from([0, -1]), size=st.integers(1, 2))
    def split(self, data, axis, size):
        x = self.pick(data, lambda x: x.ndim)
        if x is not None:
            self.apply(lambda E, x: E.split(x, size, axis % len(x.shape)), x)

    @rule(data=st.data())
    def multiply_matrices(self, data):
        x = self.pick(data, lambda x: x.ndim)
        if x is None:
            return
        y = self.pick(data, lambda y: compatible(np.matmul, x.shape, y.shape))
        if y is not None:
            self.apply(lambda E, x, y: E.matmul(x, y), x, y)
        elif x.ndim > 1:
            self.apply(lambda E, x: E.matmul(x, E.swapaxes(x, -1, -2)), x)

    @rule(data=st.data(), name=st.sampled_from(["softmax", "log_softmax"]), axis=st.sampled_from([0, -1]))
    def softmax(self, data, name, axis):
        self.apply(lambda E, x: getattr(E, name)(x, axis), self.pick(data, lambda x: x.ndim))

    @rule(data=st.data(), rms=st.booleans())
    def normalize(self, data, rms):
        def spread(x):  # rows of nearly equal elements lose all their digits
            return x.ndim and x.shape[-1] > 1 and x.values.std(axis=-1).min() > 0.01

        x = self.pick(data, spread)
        if x is None:
            return
        weight = self.pick(data, lambda y: y.shape == x.shape[-1:])
        bias = self.pick(data, lambda y: y.shape == x.shape[-1:])
        if rms:
            self.apply(lambda E, x, w: E.rms_norm(x, w, 1e-5), x, weight)
        else:
            self.apply(lambda E, x, w, b: E.layer_norm(x, w, b, 1e-5), x, weight, bias)

    @rule(data=st.data(), seed=st.integers(0, 9))
    def lose(self, data, seed):
        x = self.pick(data, lambda x: x.ndim > 1)
        if x is not None:
            targets = np.random.default_rng(seed).integers(0, x.shape[-1], x.shape[:-1])
            self.apply(lambda E, x: E.cross_entropy(x, targets), x)

    @rule(data=st.data(), causal=st.booleans())
    def attend(self, data, causal):
        def small(x):  # the naive engine's softmax overflows
            return x.ndim > 1 and np.abs(x.values).max() < 15

        q = self.pick(data, small)
        if q is None:
            return
        k, v = (self.pick(data, lambda x: x.shape == q.shape and small(x)) for _ in "kv")
        self.apply(lambda E, q, k, v: E.scaled_dot_product_attention(q, k, v, causal=causal), q, k, v)

    # Modules, dropout and checkpoints

    @rule(data=st.data(), seed=st.integers(0, 9), checkpoint=st.booleans())
    def module(self, data, seed, checkpoint):
        x = self.pick(data, lambda x: x.shape[-1:] == (3,))
        if x is None:
            return
        mask = dropped(x.shape, 0.5, seed)

        def formula(E, x, w1, b1, w2, b2, gain, shift):
            hidden = E.linear(E.gelu(E.linear(x, w1, b1)), w2, b2)
            return E.multiply(E.layer_norm(hidden, gain, shift, 1e-5), mask)

        ours = functools.partial(nn.checkpoint, self.mlp) if checkpoint else self.mlp
        self.apply(formula, x, ours=ours, parameters=self.parameters)

    @rule(data=st.data(), seed=st.integers(0, 9))
    def dropout(self, data, seed):
        x = self.pick(data)
        mask = dropped(x.shape, 0.25, seed)
        self.apply(lambda E, x: E.multiply(x, mask), x, ours=lambda x: F.dropout(x, 0.25))

    @rule(data=st.data(), name=st.sampled_from(sorted(CHECKPOINTED)))
    def checkpoint(self, data, name):
        x = self.pick(data, lambda x: x.ndim)
        if x is None:
            return
        y = self.pick(data, lambda y: compatible(np.add, x.shape, y.shape))
        formula = CHECKPOINTED[name]
        self.apply(formula, x, y, ours=functools.partial(nn.checkpoint, functools.partial(formula, F)))

    # The tape

    @rule(data=st.data(), retain=st.booleans(), seed=st.integers(0, 9))
    def backward(self, data, retain, seed):
        root = self.pick(data, lambda x: x.tensor.requires_grad)
        if root is not None:
            self.go_backward(root, np.random.default_rng(seed).normal(size=root.shape), retain)

    def go_backward(self, root, g, retain):
        failure = ""
        self.completed.clear()
        try:
            root.tensor.backward(g, retain_graph=retain)
        except mg.AutogradError as error:
            failure = str(error)
        if failure:
            self.check_failure(root, failure)
            for leaf in self.leaves:  # some of the gradients may have arrived
                self.zero(leaf)
            if not retain:  # some of the nodes may have run
                self.pool = [x for x in self.pool if not x.nodes & root.nodes]
            return
        assert not root.nodes & self.freed, "a second backward through a freed graph raised no error"
        self.freed |= root.nodes if not retain else set()
        found = [E.gradients(x, g, [leaf.first[i] for leaf in self.leaves]) for i, (E, x) in self.counterparts(root)]
        for leaf, new, *others in zip(self.leaves, *found, strict=True):
            if leaf in root.leaves:
                for gradient in others:  # the references agree, too
                    assert_close(gradient, *new)
                leaf.grad = new if leaf.grad is None else leaf.grad + new
        for leaf in self.leaves:
            self.check_gradient(leaf)
        self.check_hooks(root)

    def check_hooks(self, root):
        called = [id(tensor) for tensor, _ in self.completed]
        assert sorted(called) == sorted(id(leaf.tensor) for leaf in self.leaves[::2] if leaf in root.leaves)
        assert all((tensor.grad == gradient).all() for tensor, gradient in self.completed)

    def check_failure(self, root, failure):
        """A node was freed before, or memory that it may have saved was written to after it ran."""
        if "second time" in failure:
            assert root.nodes & self.freed
        else:
            assert "written to in place" in failure
            assert any(self.written.get(owner, 0) > node for node in root.nodes for owner in self.owners[node])

    def counterparts(self, x):
        return enumerate(zip(self.references, x.theirs, strict=True))

    def check_gradient(self, leaf):
        ours = leaf.tensor.grad
        if leaf.grad is None:
            assert ours is None
            return
        assert type(ours) is np.ndarray
        assert ours.base is None
        assert ours.dtype == np.float64
        assert_close(ours, *leaf.grad)
        shared = [other for other in self.leaves if other is not leaf and other.tensor.grad is not None]
        assert not any(np.may_share_memory(ours, other.tensor.grad) for other in shared)

    @precondition(lambda self: self.leaves)
    @rule(data=st.data())
    def zero_grad(self, data):
        self.zero(data.draw(st.sampled_from(self.leaves), "leaf"))

    def zero(self, leaf):
        leaf.tensor.zero_grad()
        leaf.grad = None

    @rule(data=st.data())
    def detach(self, data):
        x = self.pick(data)
        tensor = x.tensor.detach()
        assert tensor.data is x.tensor.data
        self.pool.append(Variable(tensor, [E.detach(y) for E, y in zip(self.references, x.theirs, strict=True)]))

    @precondition(lambda self: len(self.modes) < 4)
    @rule(recording=st.booleans())
    def enter(self, recording):
        self.modes.append(recording)
        self.contexts.append(mg.enable_grad() if recording else mg.no_grad())
        self.contexts[-1].__enter__()

    @precondition(lambda self: len(self.modes) > 1)
    @rule()
    def leave(self):
        self.modes.pop()
        self.contexts.pop().__exit__(None, None, None)

    @rule(data=st.data(), number=st.sampled_from([0.0, 0.5, -1.0]), scale=st.booleans())
    def write(self, data, number, scale):
        """Write in place: to one row of any tensor, or scale a whole leaf."""
        suits = self.leaves.__contains__ if scale else lambda x: x.ndim and x.tensor.data.flags.writeable
        x = self.pick(data, suits)
        if x is None:
            return
        expected = x.values * 0.5
        if not scale:
            expected = x.values
            expected[:1] = number

        def write_to(tensor):
            if scale:
                tensor *= 0.5
            else:
                tensor[:1] = number

        if self.modes[-1] and x.tensor.requires_grad:
            with pytest.raises(mg.AutogradError, match="not recorded"):
                write_to(x.tensor)
        with mg.no_grad():
            write_to(x.tensor)
        np.testing.assert_allclose(x.tensor.data, expected, rtol=1e-9, atol=1e-9)
        self.clock += 1
        self.written[id(owner_of(x.tensor.data))] = self.clock
        for y in {*self.pool, *self.leaves}:  # views of the same memory have changed, too
            if np.may_share_memory(x.tensor.data, y.tensor.data):
                y.theirs = [E.replace(z, y.tensor.data) for _, (E, z) in self.counterparts(y)]

    @precondition(lambda self: len(self.pool) > 2)
    @rule(data=st.data())
    def drop(self, data):
        """A tensor that nothing is computed from disappears at once: the tape has no cycles."""
        x = self.pick(data)
        self.pool.remove(x)
        if not x.used:
            reference = weakref.ref(x.tensor)
            if x in self.leaves:
                self.leaves.remove(x)
            x.tensor = None
            assert reference() is None


def dropped(shape, p, seed):
    """What the next dropout of an array of this shape multiplies it with: the seed is set once more afterwards."""
    mg.manual_seed(seed)
    factors = F.dropout(np.ones(shape), p).data
    mg.manual_seed(seed)
    return factors


def assert_close(ours, theirs, scale):
    """Each element agrees to 1e-10 of its scale, the sum of the magnitudes of the terms that it consists of.

    A scale far below the largest one comes from values such as a saturated softmax's, whose own rounding is larger.
    """
    np.testing.assert_array_less(np.abs(ours - theirs), 1e-10 * scale + 1e-13 * scale.max(initial=0) + 1e-15)
