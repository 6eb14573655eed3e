"""The model with each option of what came after GPT-2 (rotary positions, squared ReLU …), and with all of them."""

import math

import numpy as np
import pytest

import minigrad as mg
from gpt import ConfigError, GPTConfig
from minigrad.gradcheck import gradcheck_directional
from tests.checks import operations_of
from tests.gpt.model_options import ALL, BLOCK, EACH, VOCAB, every_option, new_model, random_ids, random_model
from tests.shapes import normal


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


def test_configs_from_before_the_options_are_gpt2s():
    """A checkpoint holds its config's fields by name; an old one has these."""
    old = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0, "bias": True}
    assert GPTConfig(**old) == GPTConfig(**old, position="learned", norm="layer", activation="gelu", qk_norm=False,
                                         zero_init_residual=False, tie_weights=True, logit_softcap=0.0)  # fmt: skip


# Its optimizer


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
