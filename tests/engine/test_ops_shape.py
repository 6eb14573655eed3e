"""Operations that only move elements: reshape, transpose, broadcast_to, concatenate, stack, split."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from minigrad.ops.shape import sum_to
from tests.checks import forward_and_backward
from tests.shapes import broadcastable, layouts, normal, seeds, shapes


@given(shape=shapes(), layout=layouts, seed=seeds)
def test_reshape_keeps_the_elements_in_c_order(shape, layout, seed):
    base = normal(layout.base_shape(shape), seed)
    new_shape = (1, *shape[::-1])
    expected = np.array(list(layout.view(base).flat)).reshape(new_shape)
    np.testing.assert_array_equal(F.reshape(layout.view(mg.Tensor(base)), new_shape).data, expected)
    mg.gradcheck(lambda base: F.reshape(layout.view(base), new_shape).T, base)


def test_reshape_takes_numbers_or_a_tuple_and_may_leave_one_out():
    x = mg.Tensor(np.arange(6))
    assert x.reshape(2, 3).shape == x.reshape((2, 3)).shape == x.reshape([2, -1]).shape == x.reshape(-1, 3).shape
    assert mg.Tensor([5.0]).reshape(()).shape == ()


@given(data=st.data(), shape=shapes(min_dims=1, max_dims=4), layout=layouts, seed=seeds)
def test_transpose_by_any_permutation(data, shape, layout, seed):
    axes = data.draw(st.permutations(range(len(shape))))
    counted_from_the_end = [axis - len(shape) for axis in axes]
    base = normal(layout.base_shape(shape), seed)
    y = F.transpose(layout.view(mg.Tensor(base)), counted_from_the_end)
    np.testing.assert_array_equal(y.data, np.moveaxis(layout.view(base), axes, range(len(shape))))
    mg.gradcheck(lambda base: F.transpose(layout.view(base), *axes), base)


def test_transpose_without_axes_reverses_them():
    x = mg.Tensor(normal((2, 3, 4)))
    assert x.T.shape == x.transpose().shape == (4, 3, 2)
    np.testing.assert_array_equal(x.T.data, np.einsum("ijk->kji", x.data))


@given(data=st.data(), shape=shapes(min_dims=1), seed=seeds)
def test_swapaxes(data, shape, seed):
    a, b = (data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2))
    x = normal(shape, seed)
    np.testing.assert_array_equal(mg.Tensor(x).swapaxes(a, b).data, np.swapaxes(x, a, b))
    mg.gradcheck(lambda x: x.swapaxes(a, b), x)


@given(shapes=broadcastable(2, min_side=0), layout=layouts, seed=seeds)
def test_broadcast_to_repeats_and_its_backward_adds_up(shapes, layout, seed):
    target = np.broadcast_shapes(*shapes)
    base = normal(layout.base_shape(shapes[0]), seed)
    y = F.broadcast_to(layout.view(mg.Tensor(base)), target)
    np.testing.assert_array_equal(y.data, layout.view(base) + np.zeros(target))
    mg.gradcheck(lambda base: F.broadcast_to(layout.view(base), target).T, base)


@given(shapes=broadcastable(2, min_side=0), seed=seeds)
def test_sum_to_is_the_adjoint_of_broadcasting(shapes, seed):
    """<broadcast(x), g> = <x, sum_to(g)> for every x and g."""
    target = np.broadcast_shapes(*shapes)
    x, g = normal(shapes[0], seed), normal(target, seed + 1)
    summed = sum_to(g, x.shape)
    assert summed.shape == x.shape
    np.testing.assert_allclose((np.broadcast_to(x, target) * g).sum(), (x * summed).sum(), atol=1e-12)


@given(data=st.data(), shape=shapes(min_dims=1), layout=layouts, seed=seeds)
def test_concatenate_along_any_axis(data, shape, layout, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    part_shapes = []
    for n in lengths:
        part = list(shape)
        part[axis] = n
        part_shapes.append(tuple(part))
    bases = [normal(layout.base_shape(part), seed + i) for i, part in enumerate(part_shapes)]
    y = F.concatenate([layout.view(mg.Tensor(base)) for base in bases], axis)
    start = 0
    for base, n in zip(bases, lengths, strict=True):
        np.testing.assert_array_equal(np.take(y.data, range(start, start + n), axis), layout.view(base))
        start += n
    assert y.shape[axis] == start
    mg.gradcheck(lambda *bases: F.concatenate([layout.view(base) for base in bases], axis).T, bases)


@given(data=st.data(), shape=shapes(), n=st.integers(1, 3), seed=seeds)
def test_stack_along_any_new_axis(data, shape, n, seed):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    xs = [normal(shape, seed + i) for i in range(n)]
    y = F.stack([mg.Tensor(x) for x in xs], axis)
    for i, x in enumerate(xs):
        np.testing.assert_array_equal(np.take(y.data, i, axis), x)
    mg.gradcheck(lambda *xs: F.stack(xs, axis).T, xs)


@given(data=st.data(), shape=shapes(min_dims=1, max_side=5), size=st.integers(1, 4), layout=layouts, seed=seeds)
def test_split_and_concatenate_undo_each_other(data, shape, size, layout, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    base = normal(layout.base_shape(shape), seed)
    parts = F.split(layout.view(mg.Tensor(base)), size, axis)
    assert all(part.shape[axis] == size for part in parts[:-1])
    np.testing.assert_array_equal(F.concatenate(parts, axis).data, layout.view(base))
    mg.gradcheck(lambda base: F.split(layout.view(base), size, axis), base)


def test_split_takes_a_size_of_each_part():
    x = mg.Tensor(np.arange(6.0))
    assert [part.data.tolist() for part in F.split(x, [1, 3, 2])] == [[0], [1, 2, 3], [4, 5]]
    assert [part.shape for part in F.split(x, np.int64(4))] == [(4,), (2,)]


def test_split_of_nothing_is_one_empty_part():
    x = mg.Tensor(np.zeros((0, 3)), requires_grad=True)
    (part,) = F.split(x, 2)
    part.sum().backward()
    assert part.shape == x.grad.shape == (0, 3)


def test_the_gradient_of_a_part_that_is_not_used_is_zero():
    x = mg.Tensor(np.arange(5.0), requires_grad=True)
    _, second, _ = F.split(x, 2)
    (second * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 0, 3, 3, 0])


def test_the_same_tensor_may_be_concatenated_with_itself():
    _, (dx,) = forward_and_backward(lambda x: F.concatenate([x, x, x]) * np.arange(6.0), [np.ones(2)], seed=3)
    upstream = np.random.default_rng(3).standard_normal(6) * np.arange(6.0)
    np.testing.assert_allclose(dx, upstream.reshape(3, 2).sum(0))


def test_arrays_and_lists_may_stand_beside_tensors():
    x = mg.Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    y = F.concatenate([np.zeros((1, 2), np.float32), x, [[3.0, 4.0]]])
    y.backward(np.arange(8.0).reshape(4, 2))
    np.testing.assert_array_equal(x.grad, [[2, 3], [4, 5]])
