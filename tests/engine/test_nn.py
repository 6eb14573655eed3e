"""Modules: what they register, save, load and switch; and the layers against their formulas."""

import contextlib
import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.gradcheck import gradcheck_directional
from tests.checks import operations_of
from tests.engine.modules import Tied


class Block(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.drop = nn.Dropout(0.5)
        self.size = 4  # neither a parameter nor a module

    def forward(self, x):
        for layer in self.layers:
            x = x + self.drop(layer(self.norm(x)))
        return x * self.scale


NAMES = ["scale", "norm.weight", "norm.bias", "layers.0.weight", "layers.0.bias", "layers.1.weight"]


def test_parameters_are_found_by_their_dotted_names():
    block = Block()
    named = dict(block.named_parameters())
    assert list(named) == NAMES
    assert named["layers.1.weight"] is block.layers[1].weight
    assert list(block.parameters()) == list(named.values())
    assert block.num_parameters() == 1 + 4 + 4 + 16 + 4 + 16


def test_all_parameters_get_gradients():
    block = Block()
    block(np.ones((2, 4), np.float32) * np.arange(4, dtype=np.float32)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_a_shared_parameter_comes_once_and_gets_both_gradients():
    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["embedding.weight"]
    assert tied.num_parameters() == 15
    tied.to(dtype=np.float64)
    assert tied.head.weight is tied.embedding.weight
    weight = tied.embedding.weight.data.copy()
    tied(np.array([1])).sum().backward()
    expected = np.tile(weight[1], (5, 1))  # from the head
    expected[1] += weight.sum(0)  # from the embedding
    np.testing.assert_allclose(tied.head.weight.grad, expected)


def test_state_dict_shares_memory_with_the_parameters():
    block = Block()
    state = block.state_dict()
    assert list(state) == NAMES
    block.scale.data[0] = 7
    assert state["scale"].item() == 7
    assert not state["scale"].requires_grad


def test_a_saved_model_loads_to_the_same_function(tmp_path):
    one, another = Block().eval(), Block().eval()
    x = np.ones((2, 4), np.float32)
    mg.save(one.state_dict(), tmp_path / "model.safetensors")
    another.load_state_dict(mg.load(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(one(x).data, another(x).data)
    assert not np.shares_memory(one.scale.data, another.scale.data)


def test_loading_converts_to_the_dtype_of_the_parameters():
    layer = nn.Linear(2, 1, bias=False)
    layer.load_state_dict({"weight": np.array([[1.5, 2.5]], np.float64)})
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer.weight.data, [[1.5, 2.5]])


def test_loading_lists_all_that_is_wrong_and_changes_nothing():
    layer = nn.Linear(2, 3)
    before = layer.weight.data.copy()
    state = {"weight": np.zeros((3, 3)), "extra": np.zeros(1)}
    with pytest.raises(ValueError, match="Linear.load_state_dict") as error:
        layer.load_state_dict(state)
    for problem in ("missing bias", "unexpected extra", "weight has shape (3, 3), expected (3, 2)"):
        assert problem in str(error.value)
    np.testing.assert_array_equal(layer.weight.data, before)


@pytest.mark.parametrize(
    ("bias", "problem"),
    [
        (np.array([1j, 0, 0]), "bias: a tensor holds real numbers or booleans, not complex128"),
        (np.array(["1", "2", "x"]), "bias: a tensor holds real numbers or booleans, not <U1"),
        ([None, 2.0, 3.0], "bias: cannot make an array of numbers from list"),
    ],
)
def test_values_that_are_no_real_numbers_are_not_loaded_and_change_nothing(bias, problem):
    layer = nn.Linear(2, 3)
    before = layer.weight.data.copy()
    with pytest.raises(ValueError, match=f"Linear.load_state_dict: {problem}"):
        layer.load_state_dict({"weight": np.zeros((3, 2)), "bias": bias})
    np.testing.assert_array_equal(layer.weight.data, before)


def test_train_and_eval_reach_every_module_inside():
    block = Block()
    assert all(module.training for module in block.modules())
    assert block.eval() is block
    assert not any(module.training for module in block.modules())
    block.train()
    assert block.drop.training


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_is_afterwards_in_the_mode_that_it_was_in(mode):
    model = nn.Sequential(nn.Dropout(0.5)).train(mode)
    with contextlib.suppress(KeyError), model.evaluating():
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert all(module.training == mode for module in model.modules())


def test_to_converts_every_parameter_and_forgets_gradients():
    block = Block()
    block.scale.grad = np.ones(1, np.float32)
    assert block.to("cpu", np.float64) is block
    assert {p.dtype for p in block.parameters()} == {np.dtype(np.float64)}
    assert block.scale.grad is None
    assert block(np.ones((1, 4))).dtype == np.float64


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_parameters_are_floats(dtype):
    layer = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=f"Linear.to: expected a floating dtype, got {dtype}"):
        layer.to(dtype=dtype)
    assert layer.weight.dtype == np.float32


def test_sequential_applies_its_modules_in_order():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = mg.Tensor(np.ones((5, 3), np.float32))
    expected = F.linear(F.relu(F.linear(x, model[0].weight, model[0].bias)), model[2].weight, model[2].bias)
    np.testing.assert_array_equal(model(x).data, expected.data)
    assert len(model) == 3
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("inside", [F.gelu, [nn.ReLU()], None], ids=["a function", "a list", "None"])
def test_sequential_takes_nothing_but_modules(inside):
    with pytest.raises(TypeError, match=f"Sequential: expected modules, got {type(inside).__name__} at index 1"):
        nn.Sequential(nn.Linear(1, 1), inside)


def test_a_module_in_two_places_comes_once():
    layer = nn.Linear(1, 1)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
    assert model([[2.0]]).shape == (1, 1)


def test_module_lists_keep_the_order_of_many():
    layers = nn.ModuleList(nn.Linear(1, i + 1) for i in range(12))
    assert [layer.weight.shape[0] for layer in layers] == list(range(1, 13))
    assert layers[-1] is layers[11]


def test_repr_shows_the_tree():
    """With the shapes of parameters and the settings of each module."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Sequential(nn.GELU(), nn.LayerNorm(3)), nn.Dropout(0.25))
    assert repr(model.eval()).splitlines() == [
        "Sequential(",
        "  (0): Linear(weight=(3, 2), bias=None)",
        "  (1): Sequential(",
        "    (0): GELU(approximate='tanh')",
        "    (1): LayerNorm(weight=(3,), bias=(3,), eps=1e-05)",
        "  )",
        "  (2): Dropout(p=0.25)",
        ")",
    ]

    class Scaled(nn.Module):
        def __init__(self):
            self.scale, self.inner = nn.Parameter(1.0), nn.ReLU()

    assert repr(Scaled()) == "Scaled(\n  scale=()\n  (inner): ReLU()\n)"
    assert repr(nn.Sequential()) == "Sequential()"


def test_a_module_without_forward_says_so():
    with pytest.raises(TypeError, match=r"Module must define forward"):
        nn.Module()(1)


# Layers


def test_linear():
    layer = nn.Linear(3, 2)
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_allclose(layer(x).data, x @ layer.weight.data.T + layer.bias.data, rtol=1e-6)
    assert nn.Linear(3, 2, bias=False).bias is None


def test_linear_starts_uniform_within_one_over_the_root_of_its_inputs():
    layer = nn.Linear(400, 300)
    for array in (layer.weight.data, layer.bias.data):
        assert array.dtype == np.float32
        assert np.abs(array).max() <= 1 / 20
        assert np.abs(array).max() > 0.95 / 20
        assert abs(array.mean()) < 0.005
    assert math.isclose(layer.weight.data.std(), 1 / 20 / math.sqrt(3), rel_tol=0.02)


def test_embedding_starts_normal():
    layer = nn.Embedding(200, 300)
    assert layer.weight.dtype == np.float32
    assert abs(layer.weight.data.mean()) < 0.02
    assert math.isclose(layer.weight.data.std(), 1, rel_tol=0.02)
    np.testing.assert_array_equal(layer([[7, 0]]).data, layer.weight.data[[[7, 0]]])


def test_norms_start_as_pure_normalization():
    x = mg.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_allclose(nn.LayerNorm(3)(x).data, F.layer_norm(x).data)
    np.testing.assert_allclose(nn.LayerNorm(3, bias=False, eps=0.5)(x).data, F.layer_norm(x, eps=0.5).data)
    np.testing.assert_allclose(nn.RMSNorm(3)(x).data, F.rms_norm(x).data)
    assert [name for name, _ in nn.LayerNorm(3, bias=False).named_parameters()] == ["weight"]


def test_dropout_drops_in_training_only():
    layer, x = nn.Dropout(0.5), mg.Tensor(np.ones(1000))
    assert 400 < (layer(x).data == 0).sum() < 600
    layer.eval()
    assert layer(x) is x


def test_gelu_layers_have_both_forms():
    x = mg.Tensor([1.0, 2.0])
    np.testing.assert_array_equal(nn.GELU()(x).data, F.gelu(x).data)
    np.testing.assert_array_equal(nn.GELU("none")(x).data, F.gelu(x, approximate="none").data)


def test_the_same_seed_makes_the_same_layer():
    made = []
    for _ in range(2):
        mg.manual_seed(5)
        made.append(nn.Linear(4, 4).weight.data)
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))],
    ids=["Linear", "LayerNorm", "RMSNorm", "Sequential"],
)
def test_gradients_of_the_parameters_inside_a_layer(layer):
    layer.to(dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((3, 4))
    assert gradcheck_directional(lambda x, *_: layer(x), [x, *layer.parameters()])


# Activation checkpointing


class DeepBlock(nn.Module):
    """Parameters, dropout, and an input that is used twice."""

    def __init__(self):
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale):
        return self.dropout(F.tanh(self.layer(x))) * x * scale


def gradients_of(run, block, x, scale):
    """The value, all gradients, and the next random number after a forward and backward of two blocks in a row."""
    mg.manual_seed(5)
    block.zero_grad()
    x, scale = mg.Tensor(x, requires_grad=True), mg.Tensor(scale, requires_grad=True)
    y = run(run(x, scale), scale)
    (y * y).sum().backward()
    return [y.data, x.grad, scale.grad, *[p.grad for p in block.parameters()], mg.random.uniform((1,), 0, 1)]


def test_checkpoint_changes_nothing_but_memory():
    block, x, scale = DeepBlock(), np.ones((3, 4), "float32"), np.full((4,), 0.5, "float32")
    plain = gradients_of(block, block, x, scale)
    checkpointed = gradients_of(lambda *inputs: nn.checkpoint(block, *inputs), block, x, scale)
    for ours, expected in zip(checkpointed, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)  # bit for bit, so dropout fell on the same elements


def test_checkpoint_reaches_parameters_when_no_input_wants_a_gradient():
    block = DeepBlock()
    nn.checkpoint(block, mg.Tensor(np.ones((2, 4), "float32")), 2.0).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_checkpoint_keeps_its_inputs_and_nothing_else():
    deep = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(10)])
    x = mg.Tensor(np.ones((4, 8), "float32"), requires_grad=True)
    names = operations_of(nn.checkpoint(deep, x))
    assert names == ["Checkpoint"]


def test_checkpoint_detects_an_input_that_was_changed_since():
    block, x = DeepBlock(), mg.Tensor(np.ones((2, 4), "float32"), requires_grad=True)
    y = nn.checkpoint(block, x * 1.0, 1.0)
    array = y.origin[0].saved[0]
    array += 1
    mg.mark_written(array)
    with pytest.raises(mg.AutogradError, match="Checkpoint: an array"):
        y.sum().backward()


def test_checkpoint_detects_a_parameter_that_was_changed_since():
    layer = nn.Linear(2, 2)
    y = nn.checkpoint(layer, mg.Tensor(np.ones((1, 2), np.float32), requires_grad=True))
    with mg.no_grad():
        layer.weight[0] = 0.0
    with pytest.raises(mg.AutogradError, match="written to in place"):
        y.sum().backward()


def test_checkpoint_records_its_second_run_inside_no_grad_too():
    layer, x = nn.Linear(2, 2), mg.Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    y = nn.checkpoint(layer, x).sum()
    with mg.no_grad():
        y.backward()
    np.testing.assert_allclose(x.grad[0], layer.weight.data.sum(axis=0))


def test_checkpoint_of_a_function_that_detaches_its_result_gives_no_gradient():
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    y = nn.checkpoint(lambda x: x.detach() * 2, x)
    (y + x).sum().backward()
    np.testing.assert_array_equal(y.data, [2, 4])
    np.testing.assert_array_equal(x.grad, [1, 1])  # from the other term alone


def test_checkpoint_refuses_a_list_of_tensors_whose_gradients_it_would_lose():
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="expected each tensor that requires gradients as its own argument, got a list"):
        nn.checkpoint(lambda pair: pair[0] * pair[1], [x, x])
    assert nn.checkpoint(lambda pair: pair[0] * pair[1], [x.detach(), 3.0]).data.tolist() == [3, 6]


def test_checkpoint_takes_a_list_of_tensors_where_nothing_is_recorded():
    tensors = [mg.Tensor([1.0], requires_grad=True), mg.Tensor([2.0], requires_grad=True)]
    with mg.no_grad():
        assert nn.checkpoint(lambda tensors: tensors[0] + tensors[1], tensors).item() == 3
