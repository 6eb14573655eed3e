"""DiLoCo in one process; checks_of_trainer.py has it on several ranks."""

import numpy as np
import pytest

import minigrad as mg
from gpt.config import TrainConfig
from gpt.errors import ConfigError
from minigrad import nn, optim
from minigrad.distributed import Communicator, DiLoCo


def inner_steps(layer, optimizer, n):
    for _ in range(n):
        (layer(mg.Tensor(np.ones((2, 3), layer.weight.dtype))) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def layer():
    mg.manual_seed(0)
    return nn.Linear(3, 4)


def test_the_outer_step_is_nesterovs(layer):
    """After every second step, on the change since the one before."""
    layer.to(dtype="float64")
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    outer = DiLoCo(optimizer, Communicator(), interval=2, lr=0.7, momentum=0.9)
    w, v = layer.weight.data.copy(), 0.0
    for n in range(1, 7):
        before = layer.weight.data.copy()
        inner_steps(layer, optimizer, 1)
        changed = layer.weight.data.copy()
        assert outer.after_step(n) == (n % 2 == 0)
        if n % 2 == 0:
            d = w - changed
            v = 0.9 * v + d
            w = w - 0.7 * (d + 0.9 * v)
            np.testing.assert_allclose(layer.weight.data, w, rtol=0, atol=1e-15)
        else:
            np.testing.assert_array_equal(layer.weight.data, changed)
        assert (layer.weight.data != before).all()


def test_without_momentum_one_process_goes_on_as_without_diloco(layer):
    layer.to(dtype="float64")
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    outer = DiLoCo(optimizer, Communicator(), interval=3, lr=1.0, momentum=0.0)
    inner_steps(layer, optimizer, 3)
    expected = layer.weight.data.copy()
    assert outer.after_step(3)
    np.testing.assert_allclose(layer.weight.data, expected, rtol=0, atol=1e-15)


def test_masters_of_16_bit_parameters_take_the_outer_step(layer):
    layer.to(dtype="float16")
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    inner_steps(layer, optimizer, 1)  # makes the masters
    outer = DiLoCo(optimizer, Communicator(), interval=1)
    inner_steps(layer, optimizer, 2)
    before = {p: master.copy() for p, master in optimizer.masters().items()}
    outer.step()
    for p, master in optimizer.masters().items():
        assert master.dtype == "float32"
        assert (master != before[p]).any()
        np.testing.assert_array_equal(p.data, master.astype("float16"))


def test_the_state_continues_exactly(layer):
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    outer = DiLoCo(optimizer, Communicator(), interval=2)
    inner_steps(layer, optimizer, 2)
    outer.step()
    saved = layer.state_dict(), optimizer.state_dict(), outer.state_dict()
    weights, inner, velocity = ({name: mg.Tensor(x.data.copy()) for name, x in state.items()} for state in saved)
    inner_steps(layer, optimizer, 2)
    outer.step()
    expected = layer.weight.data.copy()
    layer.load_state_dict(weights)
    optimizer.load_state_dict(inner)
    again = DiLoCo(optimizer, Communicator(), interval=2)
    again.load_state_dict(velocity)
    inner_steps(layer, optimizer, 2)
    again.step()
    np.testing.assert_array_equal(layer.weight.data, expected)
    again.load_state_dict({})  # of a run without DiLoCo
    assert not any(v.any() for v in again.velocity)
    with pytest.raises(ValueError, match=r"DiLoCo\.load_state_dict: expected the velocity of each parameter"):
        again.load_state_dict({"0.velocity": mg.Tensor(np.zeros(2))})


def test_options_that_do_not_fit():
    optimizer = optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="DiLoCo: expected an interval of at least 1 step, got 0"):
        DiLoCo(optimizer, Communicator(), 0)
    for options, message in (
        ({"eval_interval": 25}, "eval_interval is 25; expected a multiple of local_steps 10"),
        ({"max_iters": 99}, "max_iters is 99; expected a multiple of local_steps 10"),
        ({"save_interval": 5}, "save_interval is 5; expected a multiple"),
        ({"on_divergence": "rollback"}, "expected 'stop' or 'skip' with local_steps above 1"),
        ({"shard_optimizer": True}, "expected False with local_steps above 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**{"max_iters": 100, "eval_interval": 50, "local_steps": 10, **options})
