"""What arrays can look like: hypothesis strategies for shapes, shapes that broadcast, layouts in memory, and values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

seeds = st.integers(0, 2**32 - 1)


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 3) -> st.SearchStrategy:
    """Shapes from 0-d on, with axes of size 1 and (unless min_side is 1) of size 0."""
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def broadcastable(n: int, max_dims: int = 3, min_side: int = 1) -> st.SearchStrategy:
    """n shapes that broadcast against each other, any of them stretched along any axis."""
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=n, max_dims=max_dims, min_side=min_side, max_side=3)
    return drawn.map(lambda shapes: shapes.input_shapes)


@st.composite
def shape_and_axis(draw: Any, min_side: int = 1) -> tuple[tuple[int, ...], Any]:
    """A shape, and an axis as reductions take it: None, an axis, a tuple of axes or (), counted from either end."""
    shape = draw(shapes(min_side=min_side))
    one = st.integers(-len(shape), len(shape) - 1) if shape else st.nothing()
    several = st.sets(st.sampled_from(range(len(shape))), max_size=len(shape)) if shape else st.just(set())
    return shape, draw(st.none() | one | several.map(tuple))


class Layout(NamedTuple):
    """A way for an array to lie in memory: `view` of an array (or tensor) of shape `base_shape(shape)` has `shape`."""

    name: str
    base_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    view: Callable[[Any], Any]

    def __repr__(self) -> str:
        return self.name


LAYOUTS = [
    Layout("contiguous", lambda shape: shape, lambda x: x),
    Layout("transposed", lambda shape: shape[::-1], lambda x: x.T),
    Layout("negative strides", lambda shape: shape, lambda x: x[(slice(None, None, -1),) * x.ndim]),
    Layout("every second", lambda shape: tuple(2 * n for n in shape), lambda x: x[(slice(1, None, 2),) * x.ndim]),
]
layouts = st.sampled_from(LAYOUTS)


# Values


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def positive(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


def nonzero(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """At least 0.5 away from 0, on either side."""
    return positive(shape, seed) * np.random.default_rng(seed).choice([-1, 1], shape)


def distinct(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """No two elements closer than 0.1, so that finite differences do not see the kink of a maximum."""
    n = int(np.prod(shape))
    return 0.1 * np.random.default_rng(seed).permutation(np.arange(float(n))).reshape(shape)
