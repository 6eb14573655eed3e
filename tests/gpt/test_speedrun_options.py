"""What came after GPT-2: rotary positions, squared ReLU, Muon …; and models and runs with any of it and with all."""

import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import GPT, CharTokenizer, CheckpointError, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS, TrainConfig
from gpt.text.data import Dataset
from gpt.trainer import Trainer
from minigrad import functional as F
from minigrad import nn, optim
from minigrad.gradcheck import gradcheck_directional
from minigrad.optim import CombinedOptimizer, Muon, orthogonalize, warmup_linear
from tests.checks import assert_equal_functions, operations_of
from tests.shapes import layouts, nonzero, normal, seeds, shapes

# Rotary position embedding


def turned_in_the_plane(x, offset=0, base=10000.0):
    """Every pair of channels is a complex number, multiplied by e^(i angle)."""
    half = x.shape[-1] // 2
    angles = np.outer(offset + np.arange(x.shape[-2]), [base ** (-i / half) for i in range(half)])
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


rows_of_pairs = shapes(min_dims=2, max_dims=4).map(lambda shape: (*shape[:-1], 2 * shape[-1]))  # (…, T, D), D even


@given(shape=rows_of_pairs, layout=layouts, seed=seeds, offset=st.integers(0, 1000), base=st.sampled_from([10, 1e4]))
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


# Squared ReLU


@given(shape=shapes(), layout=layouts, seed=seeds)
def test_squared_relu(shape, layout, seed):
    def through_the_layout(function):
        return lambda base: function(layout.view(base))

    x = nonzero(layout.base_shape(shape), seed)
    assert_equal_functions(through_the_layout(F.squared_relu), through_the_layout(lambda x: F.relu(x) ** 2), x)
    mg.gradcheck(through_the_layout(F.squared_relu), x)


def test_squared_relu_around_zero():
    x = mg.Tensor([-2.0, -0.0, 0.0, 1e-3, 3.0], requires_grad=True)
    y = nn.SquaredReLU()(x)
    y.sum().backward()
    np.testing.assert_allclose(y.data, [0, 0, 0, 1e-6, 9], rtol=1e-6)
    np.testing.assert_allclose(x.grad, [0, 0, 0, 2e-3, 6], rtol=1e-6)


# The model with each option, and with all

EACH = {
    "rotary": {"position": "rotary"},
    "rms": {"norm": "rms"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"qk_norm": True},
    "zero init": {"zero_init_residual": True},
    "untied": {"tie_weights": False},
    "softcap": {"logit_softcap": 2.0},
}
ALL = {name: value for option in EACH.values() for name, value in option.items()}
every_option = pytest.mark.parametrize("options", [*EACH.values(), ALL], ids=[*EACH, "all"])

BLOCK, VOCAB = 8, 11
SHAPE = {"block_size": BLOCK, "vocab_size": VOCAB, "n_layer": 2, "n_head": 2, "n_embd": 8}


def new_model(options, **shape):
    return GPT(GPTConfig(**{**SHAPE, **shape, **options}))


def random_model(options, scale=0.3, **shape):
    """A model whose every part matters: weights far from 0, so that a wrong one would show."""
    model = new_model(options, **shape)
    for i, parameter in enumerate(model.parameters()):
        parameter.data[...] = scale * normal(parameter.shape, i)
    return model


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def names(options):
    return {name for name, _ in new_model(options).named_parameters()}


def test_options_add_and_remove_parameters_and_rename_none():
    assert names({"position": "rotary"}) == names({}) - {"wpe.weight"}
    assert names({"norm": "rms"}) == {name for name in names({}) if not ("ln_" in name and "bias" in name)}
    assert names({"tie_weights": False}) == names({}) | {"lm_head.weight"}
    for option in ("relu2", "qk_norm", "zero init", "softcap"):
        assert names(EACH[option]) == names({})


@pytest.mark.parametrize(
    ("option", "operation"),
    [("rotary", "Rotary"), ("rms", "RMSNorm"), ("relu2", "SquaredReLU"), ("qk_norm", "RMSNorm"), ("softcap", "Tanh")],
)
def test_an_option_brings_its_operation(option, operation):
    ids = random_ids(1, 4)
    assert operation not in operations_of(new_model({})(ids)[0])
    assert operation in operations_of(new_model(EACH[option])(ids)[0])


@every_option
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradient_of_the_whole_model(options, bias):
    """All parameters at once, along random directions, in float64."""
    model = random_model(options, bias=bias).to(dtype="float64")
    ids, targets = random_ids(2, 6), random_ids(2, 6, seed=1)
    for seed in range(3):
        assert gradcheck_directional(lambda *_: model(ids, targets)[1], list(model.parameters()), seed=seed)


@every_option
def test_float32_throughout(options):
    model, ids = random_model(options), random_ids(2, BLOCK)
    logits, loss = model(ids, ids)
    loss.backward()
    assert logits.dtype == loss.dtype == np.float32
    assert all(parameter.grad.dtype == np.float32 for parameter in model.parameters())


@every_option
def test_no_token_sees_the_future(options):
    model, ids = random_model(options), random_ids(1, BLOCK)
    before = model(ids)[0].numpy()
    ids[0, 5] = (ids[0, 5] + 1) % VOCAB
    after = model(ids)[0].numpy()
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


@every_option
@pytest.mark.parametrize("prompts", [random_ids(3, 3), random_ids(2, BLOCK + 4), [[1, 2, 3, 4, 5], [6]]], ids=len)
@pytest.mark.parametrize("temperature", [0, 1])
def test_cached_and_uncached_tokens_are_the_same(options, prompts, temperature):
    """Within the context, past it, where the window slides, and with rows of different lengths."""
    model = random_model(options, scale=1.0)
    settings = {"max_new_tokens": 2 * BLOCK, "temperature": temperature, "seed": 3}
    cached = model.generate(prompts, **settings)
    for row, uncached in zip(cached, model.generate(prompts, **settings, use_cache=False), strict=True):
        np.testing.assert_array_equal(row, uncached)


@every_option
def test_cached_logits_are_the_uncached_ones(options):
    model, ids = random_model(options), random_ids(2, BLOCK)
    whole, cache = model(ids)[0].numpy(), model.new_cache()
    with mg.no_grad():
        parts = [model(ids[:, a:b], cache=cache)[0].numpy() for a, b in ((0, 3), (3, 4), (4, 8))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)


def test_rotary_tells_the_order_of_tokens():
    """A single block without positions sees the tokens before the last as a bag."""
    ids = random_ids(1, 6)
    shuffled = ids[:, [3, 0, 4, 2, 1, 5]]
    model = random_model({"position": "rotary"}, n_layer=1)
    assert not np.allclose(model(ids)[0].numpy()[:, -1], model(shuffled)[0].numpy()[:, -1], atol=1e-3)
    model.h[0].attn.rotary = False
    np.testing.assert_allclose(model(ids)[0].numpy()[:, -1], model(shuffled)[0].numpy()[:, -1], atol=1e-5)


def test_with_qk_norm_the_size_of_queries_and_keys_makes_no_difference():
    ids = random_ids(2, BLOCK)
    for qk_norm in (True, False):
        model = random_model({"qk_norm": qk_norm}, scale=1.0, bias=False)
        before = model(ids)[0].numpy()
        for block in model.h:
            block.attn.c_attn.weight.data[: 2 * 8] *= 5  # of the rows that make q and k
        assert np.allclose(model(ids)[0].numpy(), before, atol=1e-3) == qk_norm


def test_with_zero_init_every_block_starts_as_the_identity():
    model, x = new_model({"zero_init_residual": True}), mg.Tensor(normal((2, 5, 8)).astype(np.float32))
    for block in model.h:
        np.testing.assert_array_equal(block(x).data, x.data)
    assert all((block.attn.c_attn.weight.data != 0).all() for block in model.h)


def test_the_softcap_bends_the_logits():
    bounded, free = random_model({"logit_softcap": 2.0}, scale=1.0), random_model({}, scale=1.0)
    ids = random_ids(2, BLOCK)
    raw = free(ids)[0].numpy()
    assert np.abs(raw).max() > 4
    np.testing.assert_allclose(bounded(ids)[0].numpy(), 2 * np.tanh(raw / 2), atol=1e-5)
    np.testing.assert_allclose(bounded.next_logits(ids).numpy(), bounded(ids)[0].numpy()[:, -1], atol=1e-5)


def test_an_untied_head_starts_like_the_embeddings_and_learns_by_itself():
    model, ids = new_model({"tie_weights": False}, vocab_size=500, n_embd=64), random_ids(2, BLOCK)
    assert abs(model.lm_head.weight.data.std() / 0.02 - 1) < 0.05
    model(ids, ids)[1].backward()
    unseen = np.setdiff1d(np.arange(500), ids)
    assert not model.wte.weight.grad[unseen].any()
    assert model.lm_head.weight.grad[unseen].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "alibi"}, "position is 'alibi'; expected 'learned' or 'rotary'"),
        ({"norm": "batch"}, "norm is 'batch'; expected 'layer' or 'rms'"),
        ({"activation": "relu"}, "activation is 'relu'; expected 'gelu' or 'relu2'"),
        ({"position": "rotary", "n_embd": 6}, "position 'rotary' needs an even head size, got 3"),
        ({"logit_softcap": -1.0}, "logit_softcap is -1.0; expected a number of at least 0"),
        ({"logit_softcap": math.nan}, "logit_softcap is nan; expected a number of at least 0"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        new_model(options)


# Muon


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


def parameters(*shapes, dtype=np.float64):
    return [nn.Parameter(normal(shape, i).astype(dtype)) for i, shape in enumerate(shapes)]


def train(optimizer, steps, seed=0):
    """Steps with gradients drawn from a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p in optimizer.params:
            p.grad = rng.standard_normal(p.shape).astype(p.dtype)
        optimizer.step()


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


def test_a_step_works_in_place_and_leaves_the_gradient_alone():
    (p,) = parameters((4, 3), dtype=np.float32)
    array, p.grad = p.data, normal((4, 3)).astype(np.float32)
    p.grad.setflags(write=False)
    Muon([p], lr=np.float64(0.1), momentum=np.float64(0.9), weight_decay=np.float64(0.1)).step()
    assert p.data is array
    assert p.data.dtype == np.float32


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


@pytest.mark.parametrize("make", [lambda ps: Muon(ps[:1], lr=0.1), lambda ps: muon_and_adamw(*ps)], ids=["one", "two"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_continues_bit_for_bit_from_saved_state(make, dtype, tmp_path):
    straight = parameters((3, 4), (4,), dtype=dtype)
    train(optimizer := make(straight), steps=3)
    mg.save(optimizer.state_dict(), tmp_path / "optimizer")
    resumed = [nn.Parameter(p.data.copy()) for p in straight]
    train(optimizer, steps=3, seed=1)
    again = make(resumed)
    again.load_state_dict(mg.load(tmp_path / "optimizer"))
    train(again, steps=3, seed=1)
    assert [p.data.tobytes() for p in resumed] == [p.data.tobytes() for p in straight]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"2.steps": [3]}, "CombinedOptimizer.load_state_dict: 2.steps is of none of its 2"),
        (lambda state: state | {"steps": [3]}, "steps is of none of its 2 optimizers"),
        (lambda state: state | {"1.0.m": np.zeros(5)}, r"AdamW.load_state_dict: 0.m \(5,\) fits no parameter"),
        (lambda state: {name: state[name] for name in state if name != "1.steps"}, r"AdamW.*steps \[\], expected"),
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


@pytest.mark.parametrize("options", [{}, ALL], ids=["GPT-2", "all"])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(options):
    model = new_model(options)
    optimizer = model.configure_optimizer(lr=1e-3, weight_decay=0.1, optimizer="muon", muon_lr=0.05)
    named = dict(model.named_parameters())
    found = {}
    for group in optimizer.param_groups:
        found |= dict.fromkeys(group["params"], (group["lr"], group.get("split"), group["weight_decay"]))
    assert len(found) == len(optimizer.params) == len(named)
    for name, parameter in named.items():
        decay = 0.1 if parameter.ndim == 2 else 0.0
        if name.startswith("h.") and parameter.ndim == 2:
            assert found[parameter] == (0.05, 3 if "c_attn" in name else 1, decay), name
        else:
            assert found[parameter] == (1e-3, None, decay), name
    with pytest.raises(ConfigError, match="optimizer is 'sgd'; expected 'adamw' or 'muon'"):
        model.configure_optimizer(lr=1e-3, optimizer="sgd")


# The schedule


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
    lr = warmup_linear(step, learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110, lr_hold_iters=20)
    assert math.isclose(lr, expected)


def test_warmup_linear_without_warmup_or_hold_falls_from_the_start():
    assert [warmup_linear(step, 1.0, 0.0, 0, 4) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def test_a_hold_beyond_the_decay_ends_with_it():
    assert [warmup_linear(step, 1.0, 0.1, 1, 3, lr_hold_iters=9) for step in range(5)] == [0.5, 1, 1, 0.1, 0.1]


# Runs

TEXT = " ".join(np.random.default_rng(0).choice(["amber", "birch", "cedar", "dunes"], 2000))


def new_trainer(out, model_options=ALL, dropout=0.1, **options):
    settings = {"max_iters": 12, "batch_size": 4, "warmup_iters": 3, "lr_decay_iters": 12, "eval_interval": 6}
    config = TrainConfig(**{**settings, "eval_iters": 2, "optimizer": "muon", "schedule": "linear", **options})
    mg.manual_seed(config.seed)
    tokenizer = CharTokenizer.from_text(TEXT)
    model = new_model(model_options, vocab_size=tokenizer.vocab_size, block_size=16, n_embd=32, dropout=dropout)
    return Trainer(model, Dataset(tokenizer.encode(TEXT), 16), tokenizer, config, out)


def weights(trainer):
    return {name: value.numpy().tobytes() for name, value in trainer.model.state_dict().items()}


def test_every_group_follows_the_schedule_in_proportion(tmp_path):
    trainer = new_trainer(tmp_path, learning_rate=1e-3, muon_learning_rate=0.04, min_lr=1e-4)
    seen = []
    for _ in range(13):
        trainer.step(trainer.learning_rate())
        seen.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
    np.testing.assert_allclose([muon / adamw for adamw, muon in seen], 40)
    np.testing.assert_allclose([seen[0][0], seen[3][0], seen[12][0]], [0.25e-3, 1e-3, 1e-4])


def test_a_resumed_run_continues_exactly(tmp_path):
    whole = new_trainer(tmp_path / "whole")
    assert whole.train()
    first = new_trainer(tmp_path / "parts", max_iters=7)
    assert first.train()
    mg.manual_seed(999)  # whatever happened in between
    second = new_trainer(tmp_path / "parts")
    second.resume(checkpoint.load(tmp_path / "parts" / checkpoint.LAST))
    assert second.train()
    assert weights(second) == weights(whole)


def test_a_run_is_resumed_with_its_own_optimizer(tmp_path):
    new_trainer(tmp_path, max_iters=1).train()
    with pytest.raises(CheckpointError, match="last.safetensors: AdamW.load_state_dict: 0.* fits no parameter"):
        new_trainer(tmp_path, optimizer="adamw").resume(checkpoint.load(tmp_path / checkpoint.LAST))


@every_option
def test_a_checkpoint_brings_the_model_back(options, tmp_path):
    trainer = new_trainer(tmp_path, options, max_iters=2)
    trainer.train()
    model, ids = checkpoint.load(tmp_path / checkpoint.LAST).model(), random_ids(2, 16)
    assert model.config == trainer.model.config
    np.testing.assert_array_equal(model(ids)[0].numpy(), trainer.model.eval()(ids)[0].numpy())


def test_configs_from_before_the_options_are_gpt2s():
    """A checkpoint holds its config's fields by name; an old one has these."""
    old = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0, "bias": True}
    assert GPTConfig(**old) == GPTConfig(**old, position="learned", norm="layer", activation="gelu", qk_norm=False,
                                         zero_init_residual=False, tie_weights=True, logit_softcap=0.0)  # fmt: skip


def test_a_model_with_everything_learns(tmp_path):
    """Random words out of four, as in test_trainer.py: nobody can do better than ln(4) / 6 = 0.231 a character."""
    recipe = {"max_iters": 80, "lr_decay_iters": 80, "batch_size": 16, "learning_rate": 1e-2, "min_lr": 0.0}
    options = {**ALL, "logit_softcap": 15.0}  # within ±2 nobody can be sure of anything
    trainer = new_trainer(tmp_path, options, dropout=0.0, **recipe, eval_interval=80, eval_iters=20)
    trainer.train()
    first, last = (row["val_loss"] for row in trainer.rows if "val_loss" in row)
    assert abs(first - math.log(trainer.tokenizer.vocab_size)) < 0.1
    assert math.log(4) / 6 - 0.03 < last < 0.33


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; expected 'adamw' or 'muon'"),
        ({"schedule": "step"}, "schedule is 'step'; expected 'cosine' or 'linear'"),
        ({"lr_hold_iters": 5}, "lr_hold_iters 5 is for the schedule 'linear', not 'cosine'"),
        ({"lr_hold_iters": -1}, "lr_hold_iters is -1; expected a whole number of at least 0"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate is -1.0; expected a number of at least 0"),
        ({"optimizer": "muon", "learning_rate": 0.0}, "learning_rate is 0; expected more, as Muon's"),
    ],
)
def test_training_options_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_made_of_options(preset):
    model, train = ({field.name for field in dataclasses.fields(config)} for config in (GPTConfig, TrainConfig))
    given = PRESETS[preset]
    assert set(given) <= model | train
    GPTConfig(**{name: value for name, value in given.items() if name in model})
    TrainConfig(**{name: value for name, value in given.items() if name in train})


def test_the_speedrun_from_the_command_line(tmp_path, monkeypatch, capsys):
    """--preset speedrun, with an option of each kind, for a few steps on a small text; then on with --resume."""
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    program = importlib.import_module("train_shakespeare")
    common = ["train_shakespeare.py", "--device", "cpu", "--data", f"{tmp_path}/text.txt", "--out", f"{tmp_path}/out"]
    small = ["--n-layer", "1", "--n-embd", "16", "--eval-iters", "1", "--norm", "layer", "--no-qk-norm"]
    for options, steps in ((["--preset", "speedrun", *small], "3"), (["--resume"], "5")):
        monkeypatch.setattr("sys.argv", [*common, *options, "--max-iters", steps])
        program.main()
    printed = capsys.readouterr().out
    assert "position rotary, norm layer, activation relu2, qk_norm False" in printed
    assert "optimizer muon" in printed
    assert "from step 3" in printed
    monkeypatch.setattr("sys.argv", [*common, "--activation", "swish"])
    with pytest.raises(SystemExit):
        program.main()
    assert "invalid choice: 'swish' (choose from" in capsys.readouterr().err
