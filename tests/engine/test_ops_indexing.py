"""x[index] with every kind of index, masked_fill, and embedding lookups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg
from minigrad import functional as F
from tests.shapes import broadcastable, distinct, layouts, normal, seeds, shapes

INDICES = {
    "integer": 1,
    "negative integer": -1,
    "NumPy integer": np.int64(2),
    "slice": slice(1, 3),
    "step": slice(None, None, 2),
    "negative step": slice(None, None, -2),
    "empty slice": slice(2, 2),
    "new axis": (None, 0),
    "ellipsis": (..., 1),
    "everything": (),
    "integer array": np.array([0, 2, 0, -1]),
    "matrix of integers": np.array([[0, 1], [1, 0]]),
    "list": [2, 2, 1],
    "empty list": [],
    "pairs": ([0, 1, 0], [3, 2, 3]),
    "tuples for lists": ((0, 1, 0), (3, 2, 3)),
    "array and slice": (np.array([1, 1]), slice(None, 2)),
    "array, new axis, array": (np.array([1, 1]), None, np.array([0, 0])),
    "uint8 array": np.array([2, 2], np.uint8),
    "mask": np.array([True, False, True]),
    "mask of all axes": np.arange(12).reshape(3, 4) % 5 > 1,
    "mask and integers": (np.array([True, False, True]), [1, 1]),
    "list of booleans": [True, False, True],
    "True": True,
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_every_kind_of_index(index):
    x = normal((3, 4))
    np.testing.assert_array_equal(mg.Tensor(x)[index].data, x[index])
    mg.gradcheck(lambda x: x[index], x)


@given(data=st.data(), shape=shapes(min_dims=1), layout=layouts, seed=seeds)
def test_slices_integers_and_new_axes_of_any_shape(data, shape, layout, seed):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    base = normal(layout.base_shape(shape), seed)
    np.testing.assert_array_equal(layout.view(mg.Tensor(base))[index].data, layout.view(base)[index])
    mg.gradcheck(lambda base: layout.view(base)[index].T, base)


@given(data=st.data(), shape=shapes(min_dims=1, min_side=1), seed=seeds)
def test_integer_arrays_that_broadcast_and_repeat_of_any_shape(data, shape, seed):
    index = data.draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=4)))
    mg.gradcheck(lambda x: x[index].T, normal(shape, seed))


@pytest.mark.parametrize("times", range(1, 9))
def test_a_place_named_n_times_gets_n_gradients(times):
    x = mg.Tensor([10.0, 20.0, 30.0], requires_grad=True)
    x[[1] * times].sum().backward()
    np.testing.assert_array_equal(x.grad, [0, times, 0])


def test_tensors_serve_as_indices():
    x, ids = mg.Tensor(normal((3, 4))), mg.Tensor(np.array([2, 0]))
    np.testing.assert_array_equal(x[ids].data, x.data[[2, 0]])
    np.testing.assert_array_equal(x[ids, ids].data, x.data[[2, 0], [2, 0]])
    np.testing.assert_array_equal(x[x > 0].data, x.data[x.data > 0])


def test_iteration_gives_rows_whose_gradients_find_their_place():
    x = mg.Tensor(np.ones((3, 2)), requires_grad=True)
    sum(i * row.sum() for i, row in enumerate(x)).backward()
    np.testing.assert_array_equal(x.grad, [[0, 0], [1, 1], [2, 2]])


@given(shapes=broadcastable(2), layout=layouts, seed=seeds)
def test_masked_fill_with_masks_that_broadcast(shapes, layout, seed):
    shape = np.broadcast_shapes(*shapes)
    mask = normal(shapes[0], seed) > 0
    base = normal(layout.base_shape(shape), seed + 1)
    y = F.masked_fill(layout.view(mg.Tensor(base)), mask, 9.0)
    np.testing.assert_array_equal(y.data, np.where(mask, 9.0, layout.view(base)))
    mg.gradcheck(lambda base: F.masked_fill(layout.view(base), mask, 9.0).T, base)


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_masked_fill_with_what_is_not_finite_leaves_the_gradient_finite(value):
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    F.masked_fill(x, np.array([True, False]), value).backward(np.array([np.nan, 3.0]))
    np.testing.assert_array_equal(x.grad, [0, 3])


@given(ids=hnp.arrays(np.int64, shapes(max_dims=2), elements=st.integers(0, 4)), layout=layouts, seed=seeds)
def test_embedding_with_ids_of_any_shape_that_repeat(ids, layout, seed):
    base = normal(layout.base_shape((5, 2)), seed)
    y = F.embedding(ids, layout.view(mg.Tensor(base)))
    assert y.shape == (*ids.shape, 2)
    np.testing.assert_array_equal(y.data, np.take(layout.view(base), ids, axis=0))
    mg.gradcheck(lambda base: F.embedding(ids, layout.view(base)).T, base)


@given(ids=hnp.arrays(np.int64, shapes(max_dims=2), elements=st.integers(0, 4)))
def test_embedding_is_a_product_with_one_hot_rows(ids):
    """The textbook definition, in values and gradient."""
    one_hot = np.eye(5)[ids]
    a, b = (mg.Tensor(distinct((5, 3)), requires_grad=True) for _ in range(2))
    y, z = F.embedding(ids, a), mg.Tensor(one_hot.reshape(*ids.shape, 5)) @ b
    upstream = normal(y.shape)
    y.backward(upstream)
    z.backward(upstream)
    np.testing.assert_allclose(y.data, z.data)
    np.testing.assert_allclose(a.grad, b.grad, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64])
def test_embedding_takes_ids_of_any_integer_dtype(dtype):
    weight = mg.Tensor(np.eye(3), requires_grad=True)
    F.embedding(np.array([2, 0, 2], dtype), weight).sum().backward()
    np.testing.assert_array_equal(weight.grad[:, 0], [1, 0, 2])


def test_embedding_takes_lists_and_single_ids():
    weight = mg.Tensor(np.eye(3))
    np.testing.assert_array_equal(F.embedding([[0, 2]], weight).data, [[[1, 0, 0], [0, 0, 1]]])
    np.testing.assert_array_equal(F.embedding(1, weight).data, [0, 1, 0])


@pytest.mark.parametrize("shape", [(3, 0), (3, 2)])
@pytest.mark.parametrize("ids", [[0, 2, 0], [[], []]])
def test_embedding_backward_of_no_channels_or_no_ids(shape, ids):
    weight = mg.Tensor(np.ones(shape), requires_grad=True)
    F.embedding(np.array(ids, int), weight).sum().backward()
    np.testing.assert_array_equal(weight.grad, np.repeat([[ids.count(v)] for v in range(3)], shape[1], axis=1))


def test_embedding_backward_is_the_same_bit_for_bit_every_time():
    ids, upstream = np.arange(1000) % 7, normal((1000, 8)).astype(np.float32)
    grads = []
    for _ in range(3):
        weight = mg.Tensor(np.zeros((7, 8), np.float32), requires_grad=True)
        F.embedding(ids, weight).backward(upstream)
        grads.append(weight.grad.tobytes())
    assert len(set(grads)) == 1


def test_looking_up_no_rows():
    weight = mg.Tensor(np.ones((4, 3)), requires_grad=True)
    y = F.embedding(np.zeros((2, 0), int), weight)
    assert y.shape == (2, 0, 3)
    y.backward(np.ones((2, 0, 3)))
    np.testing.assert_array_equal(weight.grad, np.zeros((4, 3)))
