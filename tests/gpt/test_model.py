"""GPT-2's model: its names, its initialization, its gradients, and that it learns. test_model_options.py has more."""

import math

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig
from minigrad.gradcheck import gradcheck_directional
from tests.gpt.model_options import new_model, random_ids


def test_parameters_have_gpt2s_names():
    names = {name for name, _ in new_model().named_parameters()}
    block = {f"{layer}.{kind}" for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
             for kind in ("weight", "bias")}  # fmt: skip
    outside = {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"}
    assert names == outside | {f"h.{i}.{name}" for i in range(2) for name in block}


def test_without_bias_there_is_none():
    model = new_model(n_layer=1, bias=False)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_nanogpts_sizes():
    """The counts that nanoGPT prints: without the position embeddings, 0.80M and 10.65M."""
    cpu = GPT(GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, bias=False))
    assert cpu.num_parameters() - cpu.wpe.weight.size == 795_904
    baby = GPT(GPTConfig(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, bias=False))
    assert baby.num_parameters() - baby.wpe.weight.size == 10_646_784


def test_the_head_is_tied_to_the_token_embeddings():
    model = new_model()
    assert model.lm_head.weight is model.wte.weight
    ids = random_ids(2, 5)
    model(ids, ids)[1].backward()
    grad = model.wte.weight.grad
    unseen = np.setdiff1d(np.arange(11), ids)
    assert np.abs(grad[unseen]).min() > 0, "tokens that were not read get a gradient as tokens that were not predicted"


def test_initialization_is_gpt2s():
    config = GPTConfig(block_size=64, vocab_size=65, n_layer=8, n_head=4, n_embd=128)
    for name, parameter in GPT(config).named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            assert abs(parameter.data.std() / expected - 1) < 0.05, name
            assert abs(parameter.data.mean()) < expected / 10, name
        else:
            assert np.all(parameter.data == (1 if name.endswith("weight") else 0)), name


@pytest.mark.parametrize("vocab_size", [65, 1000])
def test_loss_at_initialization_is_that_of_guessing(vocab_size):
    config = GPTConfig(block_size=64, vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=128)
    ids, targets = random_ids(8, 64, vocab_size=vocab_size), random_ids(8, 64, vocab_size=vocab_size, seed=1)
    assert abs(GPT(config)(ids, targets)[1].item() - math.log(vocab_size)) < 0.05


def test_shapes_and_loss():
    model, ids = new_model(), random_ids(3, 8)
    logits, loss = model(ids)
    assert logits.shape == (3, 8, 11)
    assert loss is None
    logits, loss = model(ids, ids)
    assert loss.item() == pytest.approx(mg.functional.cross_entropy(logits, ids).item())


@pytest.mark.parametrize("like", [np.ndarray.tolist, mg.Tensor], ids=["list", "Tensor"])
def test_ids_and_targets_may_be_lists_or_tensors(like):
    model, ids = new_model(), random_ids(3, 8)
    np.testing.assert_array_equal(model(like(ids), like(ids))[1].data, model(ids, ids)[1].data)
    np.testing.assert_array_equal(model.attention_weights(like(ids))[1].data, model.attention_weights(ids)[1].data)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_of_the_whole_model(bias, dropout):
    """All parameters at once, along a random direction, in float64; with dropout the same elements are dropped."""
    model = new_model(block_size=6, vocab_size=7, dropout=dropout, bias=bias)
    model.to(dtype="float64")
    for parameter in model.parameters():
        parameter.data *= 10  # at GPT-2's initialization most gradients are too small to tell apart from none
    ids, targets = random_ids(2, 6, vocab_size=7), random_ids(2, 6, vocab_size=7, seed=1)
    targets[0, :3] = -100

    def loss(*parameters):
        mg.manual_seed(5)
        return model(ids, targets)[1]

    for seed in range(5):
        assert gradcheck_directional(loss, list(model.parameters()), seed=seed)


def test_dropout_only_in_training():
    model, ids = new_model(dropout=0.5), random_ids(2, 8)
    assert not np.allclose(model(ids)[0].numpy(), model(ids)[0].numpy())
    model.eval()
    np.testing.assert_array_equal(model(ids)[0].numpy(), model(ids)[0].numpy())


@pytest.mark.parametrize("place", ["embeddings", "attention's weights", "attention", "mlp"])
def test_every_place_of_dropout(place):
    """In each place alone it makes a difference."""
    model = new_model(n_layer=1, dropout=0.5)
    (block,), ids = model.h, random_ids(2, 8)
    everywhere = {"embeddings": model.drop, "attention": block.attn.resid_dropout, "mlp": block.mlp.dropout}
    for name, dropout in everywhere.items():
        dropout.p *= name == place
    block.attn.dropout *= place == "attention's weights"
    assert not np.array_equal(model(ids)[0].numpy(), model(ids)[0].numpy())


def test_checkpointing_changes_no_result():
    """Loss and gradients are the same bits, with the same elements dropped."""
    found = []
    for checkpoint in (False, True):
        mg.manual_seed(0)
        model = new_model(dropout=0.3, checkpoint=checkpoint)
        _, loss = model(random_ids(2, 8), random_ids(2, 8, seed=1))
        loss.backward()
        found.append([loss.numpy(), *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        np.testing.assert_array_equal(checkpointed, plain)


def test_overfits_one_batch():
    model = new_model(block_size=16, n_embd=32)
    optimizer = model.configure_optimizer(lr=3e-3, weight_decay=0.0)
    ids, targets = random_ids(4, 16), random_ids(4, 16, seed=1)
    for _ in range(150):
        loss = model(ids, targets)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02


def test_optimizer_decays_matrices_only():
    model = new_model()
    decayed, kept = model.configure_optimizer(lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert decayed["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd 10 is not divisible by n_head 3"),
        ({"n_layer": 0}, "n_layer is 0; expected a whole number of at least 1"),
        ({"block_size": 2.5}, "block_size is 2.5; expected a whole number"),
        ({"n_layer": True}, "n_layer is True; expected a whole number"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a probability"),
        ({"dropout": "a"}, "dropout is 'a'; expected a probability"),
        ({"logit_softcap": math.inf}, "logit_softcap is inf; expected a number of at least 0, not infinity"),
        ({"logit_softcap": None}, "logit_softcap is None; expected a number"),
        ({"bias": "no"}, "bias is 'no'; expected True or False"),
        ({"tie_weights": 1}, "tie_weights is 1; expected True or False"),
    ],
)
def test_contradicting_options(options, message):
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**options)


def test_bad_input():
    model = new_model()
    with pytest.raises(ConfigError, match="a sequence of 9 tokens is longer than block_size 8"):
        model(random_ids(1, 9))
    for ids in (random_ids(4), [1, 2, 3, 4], random_ids(1, 1, 4)):
        with pytest.raises(ConfigError, match=r"GPT: expected ids, integers \(B, T\); got \(.*4.*\) int64"):
            model(ids)
    with pytest.raises(IndexError, match="Embedding: expected ids from 0 to 10, but they range from 3 to 11"):
        model(np.array([[3, 11]]))
    with pytest.raises(TypeError, match="Embedding: expected ids of an integer dtype, not float64"):
        model(np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"CrossEntropy: expected logits .* targets .*\(2, 3\)"):
        model(random_ids(2, 4), random_ids(2, 3))
