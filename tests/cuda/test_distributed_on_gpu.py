"""`DistributedDataParallel` and ZeRO-1 on the fake CuPy: one rank of two, the other of which has only zeros."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels, optim
from minigrad.distributed import DistributedDataParallel, ZeroRedundancyOptimizer
from tests.cuda.on_gpu import new_model, no_waiting
from tests.fakes import cupy as fake_cupy
from tests.fakes.ranks import FakeCommunicator


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    fake_cupy.install(monkeypatch)
    with kernels.reference():
        yield fake_cupy.cupy


def loss_of(model):
    return lambda ids, targets: model(ids, targets)[1]


def batch(cupy):
    return cupy.asarray(np.random.default_rng(0).integers(11, size=(2, 4, 8)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_added_up_on_the_gpu_without_waiting_for_it(cupy, dtype):
    """This rank has half of the rows. Gradients of 16-bit weights are added up in float32."""
    one, shared = (new_model().to(dtype=dtype) for _ in range(2))
    ids, targets = batch(cupy)
    (loss_of(one)(ids[:2], targets[:2]) * 0.5).backward()
    parallel = DistributedDataParallel(shared, loss_of(shared), FakeCommunicator(device="cuda:0"))
    with parallel, no_waiting():
        parallel(ids, targets).backward()
    for (name, p), q in zip(shared.named_parameters(), one.parameters(), strict=True):
        assert p.grad.dtype == np.float32
        assert p.device == "cuda:0"
        np.testing.assert_allclose(p.grad.get(), q.grad.astype("float32").get(), rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_with_sharded_state_does_not_wait(cupy, dtype):
    """The norm stays on the GPU. This rank's parts change, and the other rank's stay."""
    model = new_model().to(dtype=dtype)
    before = [p.data.copy() for p in model.parameters()]
    with DistributedDataParallel(model, loss_of(model), FakeCommunicator(device="cuda:0")) as parallel:
        optimizer = ZeroRedundancyOptimizer(optim.AdamW(model.parameters(), lr=0.1), parallel)
        ids, targets = batch(cupy)
        with no_waiting():
            parallel(ids, targets).backward()
            norm = optimizer.clip_grad_norm(1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert isinstance(norm, cupy.ndarray)
        changed = sum(int((p.data != old).sum()) for p, old in zip(model.parameters(), before, strict=True))
        own = sum(piece.tensor.size for shard in optimizer.shards for piece in shard.pieces)
        assert 0.9 * own < changed <= own
        assert optimizer.state_bytes() == own * (8 if dtype == "float32" else 12)
        state, params = optimizer.state_dict(), optimizer.params
    moments = {name: value for name, value in state.items() if name.endswith(".m")}
    assert moments  # of parameters of which this rank has a piece
    assert all(value.shape == params[int(name[:-2])].shape for name, value in moments.items())


def test_random_numbers_differ_from_rank_to_rank_on_a_gpu_too(cupy):
    mg.manual_seed(0)
    state = mg.random.get_state()
    drawn = []
    for rank in (0, 1):
        mg.random.set_state(state)
        with mg.random.derived(rank):
            drawn.append(mg.random.normal((3,), device="cuda").get().tolist())
        assert mg.random.get_state() != state
    assert drawn[0] != drawn[1]
