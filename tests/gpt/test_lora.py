"""LoRA: adapters change nothing at first, learn alone, are saved apart, and can be added to the weights."""

import json

import numpy as np
import pytest

import minigrad as mg
from gpt import CheckpointError, ConfigError, lora
from minigrad import nn
from minigrad.gradcheck import gradcheck, gradcheck_directional
from tests.gpt import model_options

ALL = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
IDS = np.random.default_rng(0).integers(0, 11, (4, 9))


def new_model(seed=0):
    mg.manual_seed(seed)
    model = model_options.new_model()
    for parameter in model.parameters():
        parameter.data *= 10  # as far from zero as weights that have learned something
    return model


def learned(model):
    """The model with adapters that have been moved away from zero."""
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data[...] = 0.3 * rng.standard_normal(parameter.shape)
    return model


def weights(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def logits(model):
    return model.eval()(IDS[:, :8])[0].numpy()


def loss(model):
    return model(IDS[:, :-1], IDS[:, 1:])[1]


# What a layer computes


def test_the_formula():
    linear = nn.Linear(5, 4)
    layer = lora.LoRALinear(linear, rank=2, alpha=3.0)
    layer.lora_B.data[...] = np.random.default_rng(0).standard_normal((4, 2))
    x = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    weight = linear.weight.numpy() + 3 / 2 * layer.lora_B.numpy() @ layer.lora_A.numpy()
    expected = x @ weight.T + linear.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.merged()(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert [name for name, _ in layer.named_parameters()] == ["lora_A", "lora_B"]
    assert [name for name, _ in layer.merged().named_parameters()] == ["weight", "bias"]


def test_what_a_layer_starts_with():
    layer = lora.LoRALinear(nn.Linear(400, 50), rank=8, alpha=16.0)
    a, bound = layer.lora_A.numpy(), 1 / 20
    assert -bound <= a.min() < -0.99 * bound
    assert 0.99 * bound < a.max() <= bound
    np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.05)  # evenly distributed
    assert not layer.lora_B.numpy().any()


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_of_a_layer(bias):
    layer = lora.LoRALinear(nn.Linear(4, 3, bias=bias).to(dtype="float64"), rank=2, alpha=5.0)
    rng = np.random.default_rng(0)

    def forward(x, a, b):
        layer.lora_A, layer.lora_B = a, b
        return layer(x)

    assert gradcheck(forward, [rng.standard_normal(shape) for shape in ((2, 3, 4), (2, 4), (3, 2))])


def test_gradient_of_all_adapters_of_a_model():
    model = learned(lora.add_adapters(new_model().to(dtype="float64"), rank=2, layers=ALL))
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype("float64")}
    assert gradcheck_directional(lambda *_: loss(model), list(model.parameters()))


# Adapters on a model


@pytest.mark.parametrize("layers", [("attn.c_attn",), ALL])
def test_at_first_the_model_is_unchanged(layers):
    before = logits(new_model())
    np.testing.assert_array_equal(logits(lora.add_adapters(new_model(), rank=2, layers=layers)), before)


def test_what_learns_is_the_adapters():
    model = lora.add_adapters(new_model(), rank=3, layers=["c_attn", "h.1.mlp.c_proj"])
    assert {name: p.shape for name, p in model.named_parameters()} == {
        "h.0.attn.c_attn.lora_A": (3, 8),
        "h.0.attn.c_attn.lora_B": (24, 3),
        "h.1.attn.c_attn.lora_A": (3, 8),
        "h.1.attn.c_attn.lora_B": (24, 3),
        "h.1.mlp.c_proj.lora_A": (3, 32),
        "h.1.mlp.c_proj.lora_B": (8, 3),
    }
    assert model.num_parameters() == sum(p.size for p in model.parameters())


def test_gradients_flow_to_the_adapters_only():
    model = new_model()
    base = list(model.parameters())
    lora.add_adapters(model, rank=2, layers=ALL)
    frozen = [value for module in model.modules() for value in vars(module).values() if type(value) is lora.Frozen]
    loss(learned(model)).backward()
    assert all(np.abs(p.grad).max() > 0 for p in model.parameters())
    assert len(set(frozen)) == len(base)
    assert not any(value.requires_grad or value.grad is not None for value in [*frozen])
    assert all(p.grad is None for p in base)


def test_training_lowers_the_loss_and_leaves_the_weights_alone():
    model = new_model()
    arrays = [parameter.data for parameter in model.parameters()]
    before = [array.copy() for array in arrays]
    lora.add_adapters(model, rank=4, layers=ALL)
    optimizer = model.configure_optimizer(lr=1e-2, weight_decay=0.0)
    assert {id(p) for p in optimizer.params} == {id(p) for p in model.parameters()}
    first = loss(model).item()
    for _ in range(40):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model).item() < first / 2
    for array, value in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, value)


# Merging


@pytest.mark.parametrize("layers", [("attn.c_attn",), ALL])
def test_merging_gives_a_plain_model_that_computes_the_same(layers):
    plain = new_model().to(dtype="float64")
    arrays = {name: value.data for name, value in plain.state_dict().items()}
    untouched = weights(plain)
    model = learned(lora.add_adapters(plain, rank=2, layers=layers))
    expected = logits(model)
    merged = lora.merge(model)
    np.testing.assert_allclose(logits(merged), expected, rtol=1e-9, atol=1e-9)
    assert np.abs(expected - logits(new_model())).max() > 0.1, "adapters that do nothing would prove nothing"

    assert weights(merged).keys() == untouched.keys()
    assert merged.lm_head.weight is merged.wte.weight
    assert all(p.requires_grad for p in merged.parameters())
    assert not [module for module in merged.modules() if isinstance(module, lora.LoRALinear)]
    again = new_model(seed=5).to(dtype="float64")
    again.load_state_dict(merged.state_dict())
    np.testing.assert_array_equal(logits(again), logits(merged))
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, untouched[name], err_msg="merging wrote into an array it was given")


def test_a_model_without_adapters_merges_to_itself():
    before = weights(new_model())
    for name, value in weights(lora.merge(new_model())).items():
        np.testing.assert_array_equal(value, before[name])


# Files


@pytest.fixture
def saved(tmp_path):
    """A model with adapters, and the file of them."""
    model = learned(lora.add_adapters(new_model(), rank=2, alpha=7.0, layers=ALL))
    lora.save_adapters(model, tmp_path / "adapters.safetensors")
    return model, tmp_path / "adapters.safetensors"


def test_adapters_are_saved_apart_and_found_again(saved):
    model, path = saved
    assert set(mg.load(path)) == {name for name, _ in model.named_parameters()}
    loaded = lora.load_adapters(new_model(), path)
    np.testing.assert_array_equal(logits(loaded), logits(model))
    assert loaded.h[0].mlp.c_fc.alpha == 7.0


def test_adapters_of_other_weights_are_refused(saved):
    other = new_model(seed=3)
    before = logits(other)
    with pytest.raises(CheckpointError, match=r"adapters.safetensors: these adapters were trained on other weights"):
        lora.load_adapters(other, saved[1])
    np.testing.assert_array_equal(logits(other), before)
    assert other.state_dict().keys() == new_model().state_dict().keys()


@pytest.mark.parametrize("name", [name for name, _ in new_model().named_parameters()])
def test_adapters_are_for_all_of_the_weights(saved, name):
    """Whichever of them is another."""
    other = new_model()
    dict(other.named_parameters())[name].data[-1] += 1
    with pytest.raises(CheckpointError, match="these adapters were trained on other weights"):
        lora.load_adapters(other, saved[1])


def test_a_model_whose_adapters_were_refused_is_trained_on(saved):
    """By the optimizer that it had before: its parameters are the same, and have their gradients."""
    other = new_model(seed=3)
    before = dict(other.named_parameters())
    optimizer = other.configure_optimizer(lr=1e-2)
    first = loss(other)
    first.backward()
    with pytest.raises(CheckpointError, match="these adapters were trained on other weights"):
        lora.load_adapters(other, saved[1])
    after = dict(other.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert other.lm_head.weight is other.wte.weight
    optimizer.step()
    assert loss(other).item() < first.item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "adapters of version 1, expected 2, .*; train them again"),
        ({"alpha": 10**400}, "not one of this project's adapters"),
        ({"layers": ["attn.query"]}, "no linear layer of the blocks is called 'attn.query'"),
        ({"rank": "two"}, "the rank of the adapters is 'two'"),
        ({"rank": 3}, r"h.0.attn.c_attn.lora_A has shape \(2, 8\), expected \(3, 8\)"),
        ({"alpha": -1}, "the alpha of the adapters is -1.0; expected a number above 0"),
        ({"alpha": None}, "not one of this project's adapters"),
        ({"layers": 4}, "not one of this project's adapters"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(saved, change, message, tmp_path):
    with open(saved[1], "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        about = json.loads(json.loads(file.read(size))["__metadata__"]["minigrad_lora"])
    mg.save(mg.load(saved[1]), tmp_path / "x.safetensors", metadata={"minigrad_lora": json.dumps({**about, **change})})
    model = new_model()
    before = list(model.parameters())
    with pytest.raises(CheckpointError, match=message):
        lora.load_adapters(model, tmp_path / "x.safetensors")
    assert all(after is parameter for after, parameter in zip(model.parameters(), before, strict=True))


def test_files_that_hold_no_adapters_are_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.safetensors: there is no such file"):
        lora.load_adapters(new_model(), tmp_path / "nowhere.safetensors")
    mg.save({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not one of this project's adapters"):
        lora.load_adapters(new_model(), tmp_path / "x.safetensors")
    mg.save({}, tmp_path / "x.safetensors", metadata={"minigrad_lora": "[" * 100_000})
    with pytest.raises(CheckpointError, match="not one of this project's adapters"):
        lora.load_adapters(new_model(), tmp_path / "x.safetensors")
    saved[1].write_bytes(saved[1].read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        lora.load_adapters(new_model(), saved[1])
    with pytest.raises(ConfigError, match="this model has no adapters to save"):
        lora.save_adapters(new_model(), tmp_path / "y.safetensors")


# 16 bits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_learn_in_16_bits_and_are_saved_with_the_digits_that_their_masters_have(dtype, tmp_path):
    """They are for the weights as these were before rounding."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = lora.convert(lora.add_adapters(new_model(), rank=2, layers=ALL), dtype)
    held = {value.dtype.name for module in model.modules() for value in vars(module).values() if is_tensor(value)}
    assert held == {dtype}
    assert model.lm_head.weight is model.wte.weight
    optimizer = model.configure_optimizer(lr=1e-2, weight_decay=0.0)
    first = loss(model).item()
    for _ in range(10):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model).item() < first

    lora.save_adapters(model, tmp_path / "adapters.safetensors", optimizer)
    loaded = lora.load_adapters(new_model(), tmp_path / "adapters.safetensors")
    masters = optimizer.masters()
    for (name, exact), rounded in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert exact.dtype == np.float32
        np.testing.assert_array_equal(exact.numpy(), masters[rounded], err_msg=name)
        assert (exact.numpy() != rounded.numpy().astype(np.float32)).any(), "nothing was rounded"

    lora.save_adapters(model, tmp_path / "rounded.safetensors")
    for value, rounded in zip(mg.load(tmp_path / "rounded.safetensors").values(), model.parameters(), strict=True):
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value.numpy(), rounded.numpy().astype(np.float32))


def test_adapters_and_what_is_frozen_are_floats():
    model = lora.add_adapters(new_model(), rank=2)
    with pytest.raises(TypeError, match="GPT.to: expected a floating dtype, got int8"):
        lora.convert(model, "int8")
    assert model.wte.weight.dtype == np.float32


def is_tensor(value):
    return isinstance(value, mg.Tensor)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "the rank of the adapters is 0; expected 1 to 8"),
        ({"rank": 9}, "the rank of the adapters is 9; expected 1 to 8"),
        ({"rank": 2.0}, "the rank of the adapters is 2.0"),
        ({"rank": True}, "the rank of the adapters is True; expected 1 to 8"),
        ({"alpha": 0.0}, "the alpha of the adapters is 0.0; expected a number above 0"),
        ({"alpha": float("nan")}, "the alpha of the adapters is nan"),
        ({"alpha": "a"}, "the alpha of the adapters is 'a'; expected a number above 0"),
        ({"layers": ["lm_head"]}, "called 'lm_head'; they are attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj$"),
        ({"layers": ["attn.c_attn", "attn"]}, "no linear layer of the blocks is called 'attn'"),
        ({"layers": []}, "no linear layer of the blocks is called ''"),
    ],
)
def test_options_without_meaning_change_nothing(options, message):
    model = new_model()
    before = dict(model.named_parameters())
    with pytest.raises(ConfigError, match=message):
        lora.add_adapters(model, **{"rank": 2, **options})
    assert dict(model.named_parameters()) == before


def test_adapters_are_added_once():
    with pytest.raises(ConfigError, match="this model has adapters already"):
        lora.add_adapters(lora.add_adapters(new_model(), rank=2), rank=2)
