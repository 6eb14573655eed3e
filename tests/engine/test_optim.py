"""Optimizers against a few lines of their formulas, clipping, the schedule, and continuing from saved state."""

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.optim.optimizer import clip_gradients, squared_gradient_norm
from tests.engine.optimizers import parameters, train


def gradients(shape, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for _ in range(steps)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_follows_its_formula(momentum, weight_decay):
    (p,) = parameters((2, 3))
    w, v = p.data.copy(), 0
    train(optimizer := optim.SGD([p], lr=0.05, momentum=momentum, weight_decay=weight_decay), steps=10)
    for g in gradients((2, 3), steps=10):
        v = momentum * v + (g + weight_decay * w)
        w = w - 0.05 * v
    np.testing.assert_allclose(p.data, w, rtol=1e-12)
    assert list(optimizer.state[0]) == (["momentum"] if momentum else [])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_follows_its_formula(weight_decay):
    (p,) = parameters((2, 3))
    w, m, v = p.data.copy(), 0, 0
    train(optim.AdamW([p], lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=weight_decay), steps=10)
    for t, g in enumerate(gradients((2, 3), steps=10), start=1):
        w = w - 0.05 * weight_decay * w
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.95**t)
        w = w - 0.05 * m_hat / (np.sqrt(v_hat) + 1e-3)
    np.testing.assert_allclose(p.data, w, rtol=1e-12)


def test_the_first_step_of_adamw_is_the_learning_rate_whatever_the_gradient():
    for gradient in (1e-3, 1.0, 1e3):
        p = nn.Parameter(np.array([0.0]))
        p.grad = np.array([gradient])
        optim.AdamW([p], lr=0.1, weight_decay=0).step()
        np.testing.assert_allclose(p.data, [-0.1], rtol=1e-4)


def test_weight_decay_of_adamw_is_decoupled_from_the_gradient():
    p = nn.Parameter(np.array([2.0]))
    p.grad = np.array([0.0])
    optim.AdamW([p], lr=0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(p.data, [2 * (1 - 0.1 * 0.5)])


def test_groups_have_settings_of_their_own_and_inherit_the_rest():
    decayed, plain = parameters((2,), (2,))
    before = decayed.data.copy(), plain.data.copy()
    optimizer = optim.AdamW([{"params": [decayed], "weight_decay": 0.5}, {"params": [plain], "lr": 0.3}], lr=0.1)
    for p in (decayed, plain):
        p.grad = np.zeros(2)
    optimizer.step()
    np.testing.assert_allclose(decayed.data, before[0] * (1 - 0.1 * 0.5))
    np.testing.assert_allclose(plain.data, before[1] * (1 - 0.3 * 0.01))


def test_defaults():
    (p,) = parameters((2, 2))
    for optimizer, settings in (
        (optim.SGD([p], lr=0.1), {"momentum": 0, "weight_decay": 0}),
        (optim.AdamW([p], lr=0.1), {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
        (
            optim.Muon([p], lr=0.1),
            {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 0, "split": 1},
        ),
    ):
        assert optimizer.param_groups == [{"params": [p], "lr": 0.1, **settings}]
    scaler = optim.GradScaler()
    assert (scaler.scale, scaler.patience) == (65536, 2000)
    np.testing.assert_array_equal(optim.orthogonalize(p.data), optim.orthogonalize(p.data, 5))
    assert optim.warmup_linear(5, 1.0, 0.1, 4, 20) == optim.warmup_linear(5, 1.0, 0.1, 4, 20, 0)


def test_settings_may_change_between_steps():
    (p,) = parameters((1,))
    optimizer = optim.SGD([p], lr=1.0)
    p.data[...] = 0
    for lr, momentum in ((1.0, 0.0), (0.5, 0.0), (0.5, 0.9), (0.5, 0.9)):
        optimizer.param_groups[0].update(lr=lr, momentum=momentum)
        p.grad = np.ones(1)
        optimizer.step()
    np.testing.assert_allclose(p.data, [-1 - 0.5 - 0.5 - 0.5 * 1.9])


def test_parameters_without_a_gradient_stay_as_they_are():
    moved, still = parameters((2,), (2,))
    before = still.data.copy()
    optimizer = optim.AdamW([moved, still], lr=0.1)
    moved.grad = np.ones(2)
    optimizer.step()
    np.testing.assert_array_equal(still.data, before)


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW, optim.Muon])
def test_a_step_works_in_place_and_leaves_the_gradient_alone(make):
    (p,) = parameters((3, 2), dtype=np.float32)
    array, p.grad = p.data, np.arange(6, dtype=np.float32).reshape(3, 2)
    p.grad.setflags(write=False)
    momentum = {} if make is optim.AdamW else {"momentum": np.float64(0.9)}
    make([p], lr=np.float64(0.1), weight_decay=np.float64(0.1), **momentum).step()
    assert p.data is array
    assert p.data.dtype == np.float32


def test_a_parameter_whose_first_gradient_comes_late_counts_its_own_steps():
    """The bias correction of AdamW makes up for m and v starting at 0, whenever that is."""
    early, late = nn.Parameter(np.zeros(1)), nn.Parameter(np.zeros(1))
    optimizer = optim.AdamW([early, late], lr=0.1, weight_decay=0)
    early.grad = np.ones(1)
    optimizer.step()
    optimizer.step()
    late.grad = np.ones(1)
    optimizer.step()
    np.testing.assert_allclose(late.data, [-0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        (optim.SGD, {"lr": -0.1}, "SGD: expected lr of at least 0, got -0.1"),
        (optim.SGD, {"lr": math.nan}, "SGD: expected lr of at least 0, got nan"),
        (optim.SGD, {"lr": 0.1, "momentum": -0.9}, "SGD: expected momentum of at least 0, got -0.9"),
        (optim.SGD, {"lr": 0.1, "weight_decay": -1}, "SGD: expected weight_decay of at least 0, got -1"),
        (optim.AdamW, {"lr": -0.1}, "AdamW: expected lr of at least 0, got -0.1"),
        (optim.AdamW, {"lr": 0.1, "eps": -1e-8}, "AdamW: expected eps of at least 0, got -1e-08"),
        (optim.AdamW, {"lr": 0.1, "weight_decay": -0.1}, "AdamW: expected weight_decay of at least 0, got -0.1"),
        (optim.AdamW, {"lr": 0.1, "betas": (1.0, 0.9)}, r"two betas, at least 0 and less than 1, got \(1.0, 0.9\)"),
        (optim.AdamW, {"lr": 0.1, "betas": (0.9, 1.0)}, r"two betas, at least 0 and less than 1, got \(0.9, 1.0\)"),
        (optim.AdamW, {"lr": 0.1, "betas": (-0.1, 0.9)}, r"two betas, at least 0 and less than 1, got \(-0.1, 0.9\)"),
        (optim.AdamW, {"lr": 0.1, "betas": (0.9,)}, r"two betas, at least 0 and less than 1, got \(0.9,\)"),
        (optim.Muon, {"lr": -0.1}, "Muon: expected lr of at least 0, got -0.1"),
        (optim.Muon, {"lr": 0.1, "momentum": -1}, "Muon: expected momentum of at least 0, got -1"),
        (optim.Muon, {"lr": 0.1, "weight_decay": -1}, "Muon: expected weight_decay of at least 0, got -1"),
        (optim.Muon, {"lr": 0.1, "ns_steps": 0}, "Muon: expected ns_steps of at least 1, got 0"),
        (optim.Muon, {"lr": 0.1, "split": 0}, "Muon: expected split of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(optimizer, settings, message):
    params = parameters((2, 3))
    with pytest.raises(ValueError, match=message):
        optimizer(params, **settings)
    with pytest.raises(ValueError, match=message):
        optimizer([{"params": params, **settings}], lr=0.1)


def test_settings_at_their_limits_are_accepted():
    optim.SGD(parameters((2,)), lr=0, momentum=0, weight_decay=0)
    optim.AdamW(parameters((2,)), lr=0, betas=(0, 0), eps=0, weight_decay=0)
    optim.Muon(parameters((2, 3)), lr=0, momentum=0, weight_decay=0, ns_steps=1, split=1)


def test_a_float32_gradient_whose_square_overflows_leaves_its_weight_where_it_is():
    """As in PyTorch; the docstring says so."""
    p = nn.Parameter(np.ones(2, np.float32))
    optimizer = optim.AdamW([p], lr=0.1, weight_decay=0)
    with np.errstate(over="ignore"):
        for gradient in (1e20, 1.0, 1.0):
            p.grad = np.array([gradient, 1e10], np.float32)
            optimizer.step()
    assert p.data[0] == 1
    assert p.data[1] < 0.8


def test_zero_grad_forgets():
    (p,) = parameters((2,))
    p.grad = np.ones(2)
    optim.SGD([p], lr=0.1).zero_grad()
    assert p.grad is None


# Every optimizer; Muon takes matrices alone
EACH = {
    "SGD": lambda ps: optim.SGD(ps, 0.1, momentum=0.9),
    "AdamW": lambda ps: optim.AdamW(ps, 0.1),
    "Muon": lambda ps: optim.Muon(ps[:1], lr=0.1),
    "Muon and AdamW": lambda ps: optim.CombinedOptimizer(optim.Muon(ps[:1], lr=0.1), optim.AdamW(ps[1:], lr=0.01)),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_training_continues_bit_for_bit_from_saved_state(name, dtype, tmp_path):
    straight, make = parameters((3, 4), (4,), dtype=dtype), EACH[name]
    train(optimizer := make(straight), steps=5)
    mg.save(optimizer.state_dict(), tmp_path / "optimizer")
    resumed = [nn.Parameter(p.data.copy()) for p in straight]
    train(optimizer, steps=5, seed=1)
    again = make(resumed)
    again.load_state_dict(mg.load(tmp_path / "optimizer"))
    train(again, steps=5, seed=1)
    assert [p.data.tobytes() for p in resumed] == [p.data.tobytes() for p in straight]


def test_state_may_be_loaded_from_lists():
    (p,) = parameters((2,))
    train(one := optim.AdamW([p], lr=0.1), steps=2)
    another = optim.AdamW([p], lr=0.1)
    another.load_state_dict({name: value.numpy().tolist() for name, value in one.state_dict().items()})
    assert another.steps == one.steps
    for slot in ("m", "v"):
        np.testing.assert_allclose(another.state[0][slot], one.state[0][slot], rtol=1e-6)


def test_the_state_of_a_parameter_without_updates_may_be_missing():
    (p,) = parameters((2,))
    optimizer = optim.AdamW([p], lr=0.1)
    optimizer.load_state_dict({"steps": [0]})
    assert (optimizer.steps, optimizer.state) == ([0], [{}])
    optim.SGD([p], lr=0.1).load_state_dict({"steps": [3]})  # without momentum nothing is kept


def test_a_master_is_loaded_for_half_precision_alone():
    state = {"steps": [1], **{f"0.{slot}": np.full(2, 0.1) for slot in ("m", "v", "master")}}
    for dtype, kept in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        optimizer = optim.AdamW(parameters((2,), dtype=dtype), lr=0.1)
        optimizer.load_state_dict(state)
        assert {array.dtype for array in optimizer.state[0].values()} == {np.dtype(kept)}
        assert set(optimizer.state[0]) == {"m", "v"} | ({"master"} if dtype is np.float16 else set())


def test_loaded_state_is_a_copy():
    (p,) = parameters((2,))
    train(one := optim.AdamW([p], lr=0.1), steps=1)
    (q,) = parameters((2,))
    another = optim.AdamW([q], lr=0.1)
    another.load_state_dict(one.state_dict())
    before = one.state[0]["m"].copy()
    train(another, steps=1)
    np.testing.assert_array_equal(one.state[0]["m"], before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"steps": [3], "0.m": np.zeros(3)}, r"0.m \(3,\) fits no parameter"),
        ({"steps": [3], "7.m": np.zeros(2)}, "7.m .* fits no parameter"),
        ({"steps": [3], "0.momentum": np.zeros(2)}, "0.momentum .* fits no parameter"),
        ({"0.m": np.zeros(2)}, r"expected a number of steps for each of 1 parameters, got \[\]"),
        ({"steps": [3]}, "parameter 0 has no m and no v after 3 steps"),
        ({"steps": [3], "0.m": np.zeros(2)}, "parameter 0 has no v after 3 steps"),
        ({"steps": [-3]}, r"expected a number of steps for each of 1 parameters, got \[-3\]"),
        ({"steps": [0.0]}, r"expected a number of steps for each of 1 parameters, got \[0.0\]"),
        ({"steps": [0, 0]}, r"expected a number of steps for each of 1 parameters, got \[0, 0\]"),
        ({"steps": [0], "1.m": np.zeros(2)}, r"1.m \(2,\) fits no parameter"),
        ({"steps": [0], "-1.m": np.zeros(2)}, r"-1.m \(2,\) fits no parameter"),
        ({"steps": [0], "0.m": np.zeros((1, 2))}, r"0.m \(1, 2\) fits no parameter"),
        ({"steps": [1], "0.v": np.zeros(2)}, "parameter 0 has no m after 1 steps"),
    ],
    ids=str,
)
def test_state_of_something_else_is_refused_and_changes_nothing(state, message):
    (p,) = parameters((2,))
    train(optimizer := optim.AdamW([p], lr=0.1), steps=1)
    before = {name: tensor.data.copy() for name, tensor in optimizer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    for name, tensor in optimizer.state_dict().items():
        np.testing.assert_array_equal(tensor.data, before[name])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "SGD: got no parameters"),
        ([mg.Tensor([1.0])], TypeError, "expected leaf tensors that require gradients"),
        ([nn.Parameter([1.0]) * 2], TypeError, "expected leaf tensors"),
        ([np.ones(2)], TypeError, "expected leaf tensors"),
        (nn.Parameter([1.0]), TypeError, "expected leaf tensors"),
        ([{"params": parameters((1,)), "learning_rate": 1}], ValueError, r"unknown settings \['learning_rate'\]"),
        ([{"lr": 1}], ValueError, r"a group has no params, only \['lr'\]"),
        (parameters((1,)) * 2, ValueError, "appears twice"),
    ],
    ids=["none", "not required", "not a leaf", "array", "a tensor", "unknown setting", "no params", "twice"],
)
def test_what_optimizers_refuse(params, error, message):
    with pytest.raises(error, match=message):
        optim.SGD(params, lr=0.1)


def test_a_group_may_be_a_single_tensor():
    (p,) = parameters((2,))
    before = p.data.copy()
    optimizer = optim.SGD([{"params": p, "lr": 0.5}], lr=0.1)
    p.grad = np.array([1.0, 2.0])
    optimizer.step()
    np.testing.assert_allclose(p.data, before - [0.5, 1.0])


# Clipping


def test_clipping_scales_all_gradients_by_one_factor():
    a, b = parameters((2,), (1,))
    a.grad, b.grad = np.array([3.0, 0.0]), np.array([4.0])
    norm = optim.clip_grad_norm([a, b], max_norm=1.0)
    assert norm == 5
    np.testing.assert_allclose(a.grad, [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(b.grad, [0.8], rtol=1e-6)


def test_clipping_is_a_write_that_the_tape_notices():
    (p,), (x,) = parameters((2,)), parameters((2,))
    p.grad = np.array([3.0, 4.0])
    y = (mg.Tensor(p.grad) * x).sum()
    optim.clip_grad_norm([p], 1.0)
    with pytest.raises(mg.AutogradError, match="written"):
        y.backward()


def test_clipping_leaves_small_gradients_alone_and_still_tells_the_norm():
    a, none = parameters((2, 2), (3,))
    a.grad = np.full((2, 2), 0.5)
    assert optim.clip_grad_norm(iter([a, none]), max_norm=1.5) == 1
    np.testing.assert_array_equal(a.grad, np.full((2, 2), 0.5))
    assert none.grad is None


def test_a_step_is_a_write_that_the_tape_notices():
    for make in (lambda p: optim.SGD([p], 0.1), lambda p: optim.AdamW([p], 0.1), lambda p: optim.Muon([p], 0.1)):
        (p,) = parameters((2, 2))
        y = (p * p).sum()
        p.grad = np.ones((2, 2))
        make(p).step()
        with pytest.raises(mg.AutogradError, match="written"):
            y.backward()


def test_eps_is_added_to_the_corrected_root():
    (p,) = parameters((1,))
    p.data[...] = 0
    optimizer = optim.AdamW([p], lr=0.1, weight_decay=0)
    for t in (1, 2, 3):
        p.grad = np.array([3e-8])
        optimizer.step()
        np.testing.assert_allclose(p.data, [-0.1 * t * 3 / 4], rtol=1e-6)


def test_the_factor_of_clipping_to_the_last_digits():
    (p,) = parameters((2,))
    for clip in (
        lambda: optim.clip_grad_norm([p], 1e-6),
        lambda: optim.clip_grad_norm([p], 1e-6, 1.0),
        lambda: clip_gradients([p], 2.5e-11, 1e-6),
        lambda: optim.SGD([p], 0.1).clip_grad_norm(1e-6),
        lambda: optim.CombinedOptimizer(optim.SGD([p], 0.1)).clip_grad_norm(1e-6),
    ):
        p.grad = np.array([3e-6, 4e-6])
        norm = clip()
        assert type(norm) is float
        assert norm == pytest.approx(5e-6, rel=1e-12)
        np.testing.assert_allclose(p.grad, [0.5e-6, 4e-6 / 6], rtol=1e-12)
    assert squared_gradient_norm([]) == 0.0
    assert squared_gradient_norm(parameters((2,))) == 0.0


def test_only_half_precision_is_widened():
    params = [mg.Tensor(np.zeros(2, dtype), requires_grad=True) for dtype in (np.float16, np.float32, np.float64)]
    optim.widen_gradients(params)  # none has a gradient
    for p in params:
        p.grad = np.ones(2, p.dtype)
    _, *others = grads = [p.grad for p in params]
    optim.widen_gradients(params)
    assert params[0].grad.dtype == np.float32
    assert all(p.grad is grad for p, grad in zip(params[1:], others, strict=True))
    np.testing.assert_array_equal(params[0].grad, grads[0])


def test_clipping_does_not_write_to_gradients_within_the_limit():
    """So the gradients may be read-only."""
    (p,) = parameters((2,))
    p.grad = np.array([3.0, 4.0])
    p.grad.setflags(write=False)
    for max_norm in (5.1, math.inf):
        assert optim.clip_grad_norm([p], max_norm) == 5
    with pytest.raises(ValueError, match="read-only"):
        optim.clip_grad_norm([p], 4.9)


def test_the_norm_of_float64_gradients_has_all_digits():
    (p,) = parameters((2,))
    p.grad = np.array([1 / 3, 1 / 7])
    assert optim.clip_grad_norm([p], 1.0) == pytest.approx(math.hypot(1 / 3, 1 / 7), rel=1e-14)


def test_clipping_keeps_float32():
    (p,) = parameters((3,), dtype=np.float32)
    p.grad = np.full(3, 10, np.float32)
    assert isinstance(optim.clip_grad_norm([p], np.float64(1.0)), float)
    assert p.grad.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(p.grad), 1, rtol=1e-5)


def test_the_norm_of_no_gradients_is_zero():
    assert optim.clip_grad_norm(parameters((2,)), 1.0) == 0


# The schedule


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0 / 11),  # not 0: the first step must move
        (4, 5.0 / 11),
        (9, 10.0 / 11),
        (10, 1.0),  # warm
        (35, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 0.55),  # halfway down
        (110, 0.1),
        (111, 0.1),
        (10_000, 0.1),
    ],
)
def test_warmup_cosine(step, expected):
    lr = optim.warmup_cosine(step, learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    assert math.isclose(lr, expected)


def test_warmup_cosine_without_warmup_starts_at_the_top():
    assert optim.warmup_cosine(0, 1.0, 0.1, warmup_iters=0, lr_decay_iters=100) == 1


def test_warmup_cosine_rises_then_falls():
    rates = [optim.warmup_cosine(step, 1.0, 0.1, 10, 50) for step in range(60)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0 / 11),  # not 0: the first step must move
        (9, 10.0 / 11),
        (10, 1.0),  # warm
        (30, 1.0),  # held
        (70, 0.55),  # halfway down
        (110, 0.1),
        (10_000, 0.1),
    ],
)
def test_warmup_linear(step, expected):
    lr = optim.warmup_linear(step, learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110, lr_hold_iters=20)
    assert math.isclose(lr, expected)


def test_warmup_linear_without_warmup_or_hold_falls_from_the_start():
    assert [optim.warmup_linear(step, 1.0, 0.0, 0, 4) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def test_a_hold_beyond_the_decay_ends_with_it():
    assert [optim.warmup_linear(step, 1.0, 0.1, 1, 3, lr_hold_iters=9) for step in range(5)] == [0.5, 1, 1, 0.1, 0.1]


@pytest.mark.parametrize("step", [0, 1, 98, 99, 100, 399, 10_000])
def test_warmup_inverse_square_root_is_the_papers_formula_counted_from_0(step):
    t = step + 1
    expected = 64**-0.5 * (t * 100**-1.5 if t < 100 else t**-0.5)
    assert math.isclose(optim.warmup_inverse_square_root(step, n_embd=64, warmup_iters=100), expected)


def test_warmup_inverse_square_root_is_highest_at_the_end_of_the_warm_up():
    rates = [optim.warmup_inverse_square_root(step, 64, 100) for step in range(400)]
    assert np.argmax(rates) == 99
    assert math.isclose(max(rates), 1 / math.sqrt(64 * 100))
    assert math.isclose(rates[399], max(rates) / 2)  # four times the steps


def test_warmup_inverse_square_root_without_warmup_is_refused():
    with pytest.raises(ValueError, match="warmup_inverse_square_root: expected .* at least 1, got 64 and 0"):
        optim.warmup_inverse_square_root(0, 64, 0)


# All of it together


@pytest.mark.parametrize("make", [lambda ps: optim.SGD(ps, 0.1, momentum=0.9), lambda ps: optim.AdamW(ps, 0.1)])
def test_optimizers_find_the_minimum(make):
    w = nn.Parameter(np.array([5.0, -3.0]))
    optimizer = make([w])
    for _ in range(300):
        optimizer.zero_grad()
        ((w - [1.0, 2.0]) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(w.data, [1, 2], atol=0.05)


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.1, momentum=0.9), lambda p: optim.AdamW(p, lr=0.1)])
def test_a_parameter_may_be_a_number(make):
    p = nn.Parameter(np.array(1.0, np.float32))
    p.grad = np.array(2.0, np.float32)
    optimizer = make([p])
    optimizer.step()
    optimizer.step()
    assert p.dtype == np.float32
    assert p.item() < 1


def test_optimizers_clip_their_parameters():
    for several in (False, True):
        params = [mg.Tensor([3.0, 0.0], requires_grad=True), mg.Tensor([4.0], requires_grad=True)]
        for p in params:
            p.grad = p.data.copy()
        one = optim.SGD(params, lr=0.1)
        optimizer = optim.CombinedOptimizer(*(optim.SGD([p], lr=0.1) for p in params)) if several else one
        assert optimizer.clip_grad_norm(0.5) == pytest.approx(5)
        np.testing.assert_allclose([*params[0].grad, *params[1].grad], [0.3, 0, 0.4], rtol=1e-6)
        assert optimizer.clip_grad_norm(0.5, 0.25) == pytest.approx(2)


def test_clipping_takes_one_tensor():
    (p,) = parameters((2,))
    p.grad = np.array([3.0, 4.0])
    assert optim.clip_grad_norm(p, 1.0) == 5
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-5)


def test_clipping_half_precision_by_a_factor_that_has_no_place_in_it():
    p = mg.Tensor(np.zeros(4, np.float16), requires_grad=True)
    p.grad = np.full(4, 60000, np.float16)
    optim.clip_grad_norm([p], 1e-3)
    assert p.grad.dtype == np.float16
    np.testing.assert_allclose(p.grad, 5e-4, rtol=1e-2)
