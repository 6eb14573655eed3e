"""Muon against the singular value decomposition, and several optimizers as one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad import nn, optim
from minigrad.optim import CombinedOptimizer, Muon, orthogonalize
from tests.engine.optimizers import parameters, train
from tests.shapes import normal, seeds


def quintic(s, steps=5):
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def orthogonalized_by_svd(x, steps=5):
    """The singular vectors of x, and the singular values that the polynomial makes of those of x / |x|."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return u @ np.diag(quintic(s / np.linalg.norm(x), steps)) @ vt


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), steps=st.integers(0, 6), seed=seeds)
def test_newton_schulz_acts_on_singular_values_alone(rows, columns, steps, seed):
    x = normal((rows, columns), seed)
    np.testing.assert_allclose(orthogonalize(x, steps), orthogonalized_by_svd(x, steps), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96), (1, 24), (24, 1)])
def test_all_singular_values_end_near_one(shape, dtype):
    """In the band that five steps leave, if they did not begin below 0.002 of the norm."""
    u, _, vt = np.linalg.svd(normal(shape), full_matrices=False)
    s = np.geomspace(0.003, 1, min(shape))
    y = orthogonalize((u * s @ vt).astype(dtype))
    assert y.dtype == dtype
    assert y.shape == shape
    left = np.linalg.svd(y.astype(np.float64), compute_uv=False)
    assert left.min() > 0.68
    assert left.max() < 1.21
    if min(shape) > 1:  # and in the directions that x had
        cosine = np.sum(y * (u @ vt)) / np.linalg.norm(y) / np.linalg.norm(u @ vt)
        assert cosine > 0.98


def test_many_matrices_are_orthogonalized_one_by_one():
    x = normal((2, 3, 5, 4))
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(orthogonalize(x)[i, j], orthogonalize(x[i, j]), rtol=1e-10, atol=1e-12)


def test_the_length_of_a_gradient_makes_no_difference():
    x = normal((5, 4)).astype(np.float32)
    for length in (1e-6, 1e6):
        np.testing.assert_allclose(orthogonalize(np.float32(length) * x), orthogonalize(x), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(orthogonalize(0 * x), 0)


@pytest.mark.parametrize("shape", [(4, 4), (8, 2), (2, 6)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_follows_its_formula(shape, nesterov, weight_decay):
    (p,) = parameters(shape)
    w, v, rng = p.data.copy(), 0, np.random.default_rng(0)
    train(Muon([p], lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay), steps=6)
    for _ in range(6):
        g = rng.standard_normal(shape)
        v = 0.9 * v + g
        w = w - 0.05 * weight_decay * w
        factor = 2 if shape == (8, 2) else 1
        w = w - 0.05 * factor * orthogonalized_by_svd(g + 0.9 * v if nesterov else v)
    np.testing.assert_allclose(p.data, w, rtol=1e-7, atol=1e-9)


def test_a_large_matrix_is_orthogonalized_whole():
    """One that is large enough to be changed in pieces, as AdamW would."""
    (p,) = parameters((300, 250))
    w, g = p.data.copy(), np.random.default_rng(0).standard_normal(p.shape)
    train(Muon([p], lr=0.05, nesterov=False), steps=1)
    np.testing.assert_allclose(p.data, w - 0.05 * np.sqrt(300 / 250) * orthogonalized_by_svd(g), rtol=1e-7, atol=1e-9)


def test_split_treats_a_parameter_as_several():
    stacked, *single = parameters((9, 4), (3, 4), (3, 4), (3, 4))
    for part, p in zip(np.split(stacked.data, 3), single, strict=True):
        p.data[...] = part
    for params, split in (([stacked], 3), (single, 1)):
        train(Muon(params, lr=0.1, split=split), steps=4)
    np.testing.assert_allclose(stacked.data, np.concatenate([p.data for p in single]), rtol=1e-9)


def test_muon_finds_the_minimum():
    target = normal((6, 4))
    w = nn.Parameter(np.zeros((6, 4)))
    optimizer = Muon([w], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        ((w - target) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(w.data, target, atol=0.02)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (4, 3)], ids=str)
def test_muon_is_for_matrices(shape):
    with pytest.raises(ValueError, match=r"Muon: expected matrices, their rows divisible by split 3; got shape"):
        Muon(parameters(shape), lr=0.1, split=3)


# Several optimizers as one


def muon_and_adamw(matrix, vector):
    return CombinedOptimizer(Muon([matrix], lr=0.1, weight_decay=0.1), optim.AdamW([vector], lr=0.01))


def test_combined_optimizers_do_what_each_does_alone():
    together, alone = parameters((3, 4), (4,)), parameters((3, 4), (4,))
    combined = muon_and_adamw(*together)
    assert combined.params == together
    assert [group["lr"] for group in combined.param_groups] == [0.1, 0.01]
    for group in combined.param_groups:
        group["lr"] *= 0.5
    each = [Muon(alone[:1], lr=0.05, weight_decay=0.1), optim.AdamW(alone[1:], lr=0.005)]
    for step in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad, q.grad = normal(p.shape, step), normal(p.shape, step)
        for optimizer in (combined, *each):
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    combined.zero_grad()
    assert all(p.grad is None for p in together)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"2.steps": [3]}, "CombinedOptimizer.load_state_dict: 2.steps is of none of its 2"),
        (lambda state: state | {"steps": [3]}, "steps is of none of its 2 optimizers"),
        (lambda state: state | {"1.0.m": np.zeros(5)}, r"AdamW.load_state_dict: 0.m \(5,\) fits no parameter"),
        (
            lambda state: {name: state[name] for name in state if name != "1.steps"},
            r"AdamW.*expected a number of steps .* got \[\]",
        ),
        (lambda state: {f"{1 - int(name[0])}{name[1:]}": state[name] for name in state}, "Muon.load_state_dict: 0.m"),
    ],
    ids=["a third", "of one alone", "shape", "missing", "exchanged"],
)
def test_state_of_something_else_is_refused_and_changes_nothing(change, message):
    train(optimizer := muon_and_adamw(*parameters((3, 4), (4,))), steps=2)
    train(other := muon_and_adamw(*parameters((3, 4), (4,))), steps=1, seed=1)
    before = {name: tensor.data.copy() for name, tensor in optimizer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(change(other.state_dict()))
    after = optimizer.state_dict()
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name].data, array, err_msg=name)


def test_a_parameter_belongs_to_one_optimizer():
    (p,) = parameters((3, 4))
    with pytest.raises(ValueError, match="CombinedOptimizer: a parameter appears twice"):
        CombinedOptimizer(Muon([p], lr=0.1), optim.AdamW([p], lr=0.1))
