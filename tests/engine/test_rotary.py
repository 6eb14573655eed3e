"""Rotary position embedding: pairs of channels turned by an angle that grows with the position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import functional as F
from tests.shapes import layouts, normal, seeds, shapes


def turned_in_the_plane(x, offset=0, base=10000.0):
    """Every pair of channels is a complex number, multiplied by e^(i angle)."""
    half = x.shape[-1] // 2
    angles = np.outer(offset + np.arange(x.shape[-2]), [base ** (-i / half) for i in range(half)])
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


rows_of_pairs = shapes(min_dims=2, max_dims=4).map(lambda shape: (*shape[:-1], 2 * shape[-1]))  # (…, T, D), D even


bases = st.sampled_from([0.5, 10, 1e4])


@given(shape=rows_of_pairs, layout=layouts, seed=seeds, offset=st.integers(0, 1000), base=bases)
def test_rotary_turns_pairs_of_channels(shape, layout, seed, offset, base):
    x = layout.view(normal(layout.base_shape(shape), seed))
    y = F.rotary(x, offset, base).data
    np.testing.assert_allclose(y, turned_in_the_plane(x, offset, base), rtol=1e-9, atol=1e-12)


@given(shape=rows_of_pairs, layout=layouts, seed=seeds, offset=st.integers(0, 1000))
def test_gradient_of_rotary(shape, layout, seed, offset):
    mg.gradcheck(lambda base: F.rotary(layout.view(base), offset), normal(layout.base_shape(shape), seed))


def test_the_backward_of_rotary_turns_back():
    x = mg.Tensor(normal((2, 5, 6)), requires_grad=True)
    y = F.rotary(x, 7)
    y.backward(y.data)
    np.testing.assert_allclose(x.grad, x.data, rtol=1e-12)


def test_rotary_changes_no_length_and_not_the_first_row():
    x = normal((3, 5, 8))
    y = F.rotary(x).data
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-12)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    assert not np.allclose(y[:, 1], x[:, 1])


def test_the_offset_is_the_position_of_the_first_row():
    x = normal((2, 7, 6))
    np.testing.assert_array_equal(F.rotary(x[:, 3:], 3).data, F.rotary(x).data[:, 3:])


def test_the_product_of_query_and_key_depends_on_their_distance_alone():
    q, k = normal((1, 8), 0), normal((1, 8), 1)

    def score(at_q, at_k):
        return (F.rotary(q, at_q) @ F.rotary(k, at_k).T).item()

    assert score(5, 3) == pytest.approx(score(905, 903), rel=1e-9)
    assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-2)


def test_positions_far_out_lose_no_precision_in_float32():
    x = normal((4, 16))
    far = 1_000_000
    np.testing.assert_allclose(F.rotary(x.astype(np.float32), far).data, F.rotary(x, far).data, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (np.zeros(4), {}),
        (np.zeros((3, 5)), {}),
        (np.zeros((3, 4), int), {}),
        (np.zeros((3, 4)), {"base": 0}),
        (np.zeros((3, 4)), {"base": math.nan}),
    ],
    ids=["one axis", "odd", "integers", "base 0", "base NaN"],
)
def test_what_rotary_refuses(x, options):
    with pytest.raises(
        ValueError, match=r"Rotary: expected floating x \(…, T, D\) with an even D, .* a base above 0; got"
    ):
        F.rotary(x, **options)
