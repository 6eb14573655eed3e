"""Training with 16-bit parameters: the optimizer keeps float32 masters, which learn what 16 bits would round away."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim

OPTIMIZERS = [
    lambda params: optim.SGD(params, lr=1e-4, momentum=0.9, weight_decay=0.1),
    lambda params: optim.AdamW(params, lr=1e-4, weight_decay=0.1),
    lambda params: optim.Muon(params, lr=1e-4, weight_decay=0.1),
]


def gradients(t):
    return np.random.default_rng(t).standard_normal((6, 4)).astype(np.float16)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_master_learns_as_a_float32_parameter_does(make):
    start = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float16)
    half, single = (mg.Tensor(start.astype(dtype), requires_grad=True) for dtype in (np.float16, np.float32))
    optimizers = make([half]), make([single])
    for t in range(20):
        half.grad, single.grad = gradients(t), gradients(t).astype(np.float32)
        for optimizer in optimizers:
            optimizer.step()
    master = optimizers[0].state[0]["master"]
    assert master.dtype == np.float32
    assert all(array.dtype == np.float32 for array in optimizers[0].state[0].values())
    np.testing.assert_array_equal(master, single.data)
    np.testing.assert_array_equal(half.data, master.astype(np.float16))
    assert half.dtype == np.float16


@pytest.mark.parametrize("make", [*OPTIMIZERS, lambda params: optim.CombinedOptimizer(optim.SGD(params, lr=1e-4))])
def test_masters_can_begin_with_the_digits_that_rounding_took(make):
    """Then the parameter learns as the float32 one that it was rounded from."""
    exact = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    half, single = mg.Tensor(exact.astype(np.float16), requires_grad=True), mg.Tensor(exact.copy(), requires_grad=True)
    optimizers = make([half]), make([single])
    for parameter, optimizer in zip((half, single), optimizers, strict=True):
        optimizer.start_masters({parameter: exact})
    assert not optimizers[1].masters()  # it has all its digits
    np.testing.assert_array_equal(optimizers[0].masters()[half], exact)
    for t in range(3):
        half.grad, single.grad = gradients(t), gradients(t).astype(np.float32)
        for optimizer in optimizers:
            optimizer.step()
    np.testing.assert_array_equal(optimizers[0].masters()[half], single.data)
    assert not np.shares_memory(optimizers[0].masters()[half], exact)


def test_steps_too_small_for_16_bits_add_up():
    """A step of 1e-4 from 1 is lost in float16, whose next number below is 0.9995; a thousand of them are not."""
    weight = mg.Tensor(np.ones((1, 1), np.float16), requires_grad=True)
    sgd = optim.SGD([weight], lr=1e-4)
    for _ in range(1000):
        weight.grad = np.ones((1, 1), np.float16)
        sgd.step()
    assert weight.item() == pytest.approx(0.9, abs=5e-4)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_with_the_same_bits(make):
    weight = mg.Tensor(np.ones((6, 4), np.float16), requires_grad=True)
    optimizer = make([weight])
    for t in range(3):
        weight.grad = gradients(t)
        optimizer.step()
    state = {name: mg.Tensor(value.numpy().copy()) for name, value in optimizer.state_dict().items()}
    again = mg.Tensor(weight.numpy().copy(), requires_grad=True)
    restored = make([again])
    restored.load_state_dict(state)
    for t in range(3, 6):
        weight.grad = again.grad = gradients(t)
        optimizer.step()
        restored.step()
    np.testing.assert_array_equal(again.data, weight.data)
    np.testing.assert_array_equal(restored.state[0]["master"], optimizer.state[0]["master"])
