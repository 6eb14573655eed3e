"""Training in other precisions than float32, and batches that lie on the GPU.

Here on the fake GPU.
"""

import math

import numpy as np
import pytest

import minigrad as mg
from gpt import CharTokenizer, ConfigError, DataError, checkpoint, precision
from gpt.evaluate import evaluate
from gpt.loading import load_model
from gpt.text import data
from gpt.text.data import Dataset
from minigrad import kernels, optim
from minigrad.kernels.cuda import cublaslt, products
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu
from tests.gpt.runs import SHORT_TEXT, new_gpu_trainer

HALF = ["bfloat16", "float16"]


@pytest.fixture
def card(monkeypatch):
    with fake_gpu(monkeypatch) as launches:
        yield launches


def losses(trainer, n):
    return [trainer.step(trainer.learning_rate())[0].item() for _ in range(n)]


def optimizer_of(x, dtype):
    """AdamW for one parameter with the values of x."""
    w = mg.Tensor(x, dtype=dtype, requires_grad=True)
    return w, optim.AdamW([w], lr=0.1)


# Which precision


def test_the_cpu_computes_in_float32(tmp_path):
    assert precision.choose("auto", "cpu") == precision.choose("float32", "cpu") == "float32"
    for dtype in ("tf32", "bfloat16", "float16"):
        with pytest.raises(ConfigError, match=f"dtype is '{dtype}', but the CPU computes in 'float32': NumPy has no"):
            new_gpu_trainer(tmp_path, "cpu", dtype=dtype)
    with pytest.raises(ConfigError, match="dtype is 'float8'; expected 'auto' or 'float32' or 'tf32' or"):
        new_gpu_trainer(tmp_path, "cpu", dtype="float8")


@needs_compiler
def test_a_gpu_computes_in_what_it_has(card, monkeypatch):
    assert [precision.choose(dtype, "cuda:0") for dtype in ("auto", "float32", "tf32", *HALF)] == [
        "bfloat16", "float32", "tf32", *HALF,
    ]  # fmt: skip
    monkeypatch.setattr("minigrad.cuda.get_device_capability", lambda device: (7, 5))
    assert precision.choose("auto", "cuda:0") == "float32"
    assert precision.choose("float16", "cuda:0") == "float16"
    for dtype in ("tf32", "bfloat16"):
        with pytest.raises(ConfigError, match=r"compute capability 8.0 or newer; cuda:0 has 7.5: use 'float16' or"):
            precision.choose(dtype, "cuda:0")
    with kernels.reference():
        assert precision.choose("auto", "cuda:0") == "float32"
        with pytest.raises(ConfigError, match="needs the CUDA kernels, and not all of them run on cuda:0"):
            precision.choose("float16", "cuda:0")


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [("auto", 2e-2), ("float16", 3e-3)])
def test_16_bits_train_as_float32_does(card, tmp_path, dtype, tolerance):
    expected = losses(new_gpu_trainer(tmp_path, "cpu", {"dropout": 0.0}), 5)
    trainer = new_gpu_trainer(tmp_path, shape={"dropout": 0.0}, dtype=dtype)
    assert {str(p.dtype) for p in trainer.model.parameters()} == {"bfloat16" if dtype == "auto" else dtype}
    assert trainer.config.dtype == str(trainer.model.wte.weight.dtype)
    np.testing.assert_allclose(losses(trainer, 5), expected, rtol=tolerance)


@needs_compiler
def test_tf32_is_for_products_inside_a_run(card, tmp_path):
    things = cublaslt.library.things
    trainer = new_gpu_trainer(tmp_path, dtype="tf32", max_iters=1)
    trainer.train()
    assert cublaslt.COMPUTE_TF32 in {thing.get("compute") for thing in things.values()}
    assert not products.tf32
    things.clear()
    cublaslt.forget()
    new_gpu_trainer(tmp_path, dtype="float32", max_iters=1).train()
    assert cublaslt.COMPUTE_TF32 not in {thing.get("compute") for thing in things.values()}


# Loss scaling


def test_the_scale_falls_with_an_overflow_and_rises_after_good_steps():
    scaler = optim.GradScaler(patience=3)
    assert scaler.scale == 65536
    assert [scaler.update(norm) for norm in (1.0, math.inf, math.nan, 1.0, 1.0)] == [True, False, False, True, True]
    assert scaler.scale == 16384
    again = optim.GradScaler(patience=3)
    again.load_state_dict(scaler.state_dict())
    for each in (scaler, again):
        each.update(1.0)
        assert (each.scale, each.good_steps) == (32768, 0)
    for _ in range(100):
        scaler.update(math.inf)
    assert scaler.scale == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_compiler)])
@pytest.mark.parametrize("max_norm", [math.inf, 1e-7])
def test_clipping_divides_by_the_scale(monkeypatch, device, max_norm):
    """Gradients that float16 has no numbers for become those that they are."""
    with fake_gpu(monkeypatch):
        tiny = np.array([3e-8, -4e-8], np.float32)
        p = mg.Tensor(np.ones(2), dtype="float16", device=device, requires_grad=True)
        p.grad = mg.Tensor(tiny * 65536, dtype="float16", device=device).data
        norm = optim.clip_grad_norm([p], max_norm, loss_scale=65536.0)
        assert float(norm) == pytest.approx(5e-8, rel=1e-3)
        assert p.grad.dtype == np.float32
        factor = min(1, max_norm / (5e-8 + 1e-6))
        np.testing.assert_allclose(mg.Tensor(p.grad).numpy(), tiny * factor, rtol=1e-3)


@needs_compiler
def test_a_step_that_overflows_is_left_out(card, tmp_path):
    trainer = new_gpu_trainer(tmp_path, dtype="float16")
    trainer.scaler.scale = 2.0**40
    before = [p.numpy().tobytes() for p in trainer.model.parameters()]
    loss, norm = trainer.step(1e-2)
    assert math.isfinite(loss.item())
    assert not math.isfinite(float(norm))
    assert [p.numpy().tobytes() for p in trainer.model.parameters()] == before
    assert (trainer.scaler.scale, set(trainer.optimizer.steps)) == (2.0**39, {0})
    trainer.scaler.scale = 2.0**10
    trainer.step(1e-2)
    assert [p.numpy().tobytes() for p in trainer.model.parameters()] != before
    assert (trainer.scaler.scale, set(trainer.optimizer.steps)) == (2.0**10, {1})
    assert trainer.graph is None


@needs_compiler
def test_float16_waits_once_a_step(card, tmp_path):
    trainer = new_gpu_trainer(tmp_path, dtype="float16")
    before = fake_cupy.synchronizations
    for _ in range(3):
        trainer.step(1e-3)
    assert fake_cupy.synchronizations - before == 3


# Gradients of several batches


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_gradients_add_up_in_float32(dtype):
    """A sum of 16 bits stands still when it is some thousand times as large as what is added."""
    pytest.importorskip("ml_dtypes")
    x, optimizer = optimizer_of([0.0], dtype)
    for _ in range(5000):
        optim.widen_gradients([x])
        (x * 1).backward(np.ones(1, x.dtype))
    assert (x.grad.dtype, x.grad[0]) == (np.float32, 5000)
    optimizer.step()
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.numpy(), np.array([-0.1]).astype(x.dtype))


@needs_compiler
def test_several_batches_are_one_large_one(card, tmp_path):
    """The mean of the gradients of batches is that of all their rows, but for rounding."""
    shape = {"dropout": 0.0}
    one, several = (
        new_gpu_trainer(tmp_path, shape=shape, batch_size=b, grad_accum=n, dtype="bfloat16", graph=False)
        for b, n in ((8, 1), (2, 4))
    )
    parts = [one.batch("train", mg.random.new_generator(i)) for i in range(1)]
    (ids, targets) = parts[0]
    one.batch = lambda *_: (ids, targets)
    quarters = iter([(ids[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)])
    several.batch = lambda *_: next(quarters)
    (loss, norm), (same_loss, same_norm) = one.step(1e-3), several.step(1e-3)
    assert same_loss.item() == pytest.approx(loss.item(), rel=1e-3)
    assert float(same_norm) == pytest.approx(float(norm), rel=1e-2)


# Checkpoints


@needs_compiler
@pytest.mark.parametrize("dtype", HALF)
def test_a_resumed_run_goes_on_exactly(card, tmp_path, dtype):
    whole = new_gpu_trainer(tmp_path / "whole", dtype=dtype)
    whole.train()
    new_gpu_trainer(tmp_path / "part", dtype=dtype, max_iters=4).train()
    rest = new_gpu_trainer(tmp_path / "part", dtype=dtype)
    rest.resume(checkpoint.load(tmp_path / "part" / checkpoint.LAST))
    assert rest.iteration == 4
    rest.train()
    for part in ("model", "optimizer"):
        ours, theirs = (
            {n: x.numpy().tobytes() for n, x in getattr(t, part).state_dict().items()} for t in (rest, whole)
        )
        assert ours == theirs
    if dtype == "float16":
        assert rest.scaler.state_dict() == whole.scaler.state_dict()
        assert rest.scaler.good_steps == 6


@needs_compiler
@pytest.mark.parametrize("dtype", HALF)
def test_checkpoints_hold_the_masters_and_work_on_the_cpu(card, tmp_path, dtype):
    trainer = new_gpu_trainer(tmp_path, dtype=dtype, max_iters=3)
    trainer.train()
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    parts = saved.part("model"), dict(trainer.model.named_parameters())
    assert parts[0].keys() == parts[1].keys()
    masters = trainer.optimizer.masters()
    for name, value in parts[0].items():
        parameter = parts[1][name]
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value.numpy(), masters[parameter].get())
        np.testing.assert_array_equal(value.numpy().astype(parameter.dtype), parameter.numpy())
    model, tokenizer = load_model(tmp_path)
    assert (model.wte.weight.device, model.wte.weight.dtype) == ("cpu", np.float32)
    ids = tokenizer.encode("amber birch cedar")
    assert math.isfinite(evaluate(model, ids, len(ids)).loss)
    assert model.generate(ids[None, :4], 3).shape == (1, 7)


@needs_compiler
@pytest.mark.parametrize("dtype", HALF)
def test_a_run_begins_with_all_digits_of_its_weights(card, tmp_path, dtype):
    """What the first checkpoint holds is what a float32 run begins with."""
    half, single = (new_gpu_trainer(tmp_path / each, dtype=each, max_iters=0) for each in (dtype, "float32"))
    half.train()
    saved = checkpoint.load(tmp_path / dtype / checkpoint.LAST).part("model")
    for name, value in single.model.state_dict().items():
        np.testing.assert_array_equal(saved[name].numpy(), value.numpy(), err_msg=name)


@needs_compiler
def test_a_run_can_go_on_in_another_precision(card, tmp_path):
    new_gpu_trainer(tmp_path, dtype="bfloat16", max_iters=3).train()
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    other = new_gpu_trainer(tmp_path, "cpu")
    other.resume(saved)
    assert not other.optimizer.masters()
    np.testing.assert_array_equal(other.model.wte.weight.numpy(), saved.part("model")["wte.weight"].numpy())
    assert math.isfinite(losses(other, 1)[0])


# Batches


@pytest.mark.parametrize("most", [2**26, 0], ids=["on the GPU", "from the host"])
def test_a_gpu_gets_the_cpus_batches_without_waiting(monkeypatch, most):
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(data, "MOST_TOKENS_ON_GPU", most)
    tokenizer = CharTokenizer.from_text(SHORT_TEXT)
    dataset = Dataset(tokenizer.encode(SHORT_TEXT), 12)
    for split in ("train", "val"):
        ours, theirs = np.random.default_rng(0), np.random.default_rng(0)
        for _ in range(3):
            before = fake_cupy.synchronizations
            got = dataset.batch(split, 5, ours, "cuda")
            assert fake_cupy.synchronizations == before
            for part, expected in zip(got, dataset.batch(split, 5, theirs), strict=True):
                assert part.dtype == np.int32
                np.testing.assert_array_equal(part.get(), expected)
    assert len(dataset._copies) == (2 if most else 0)


@needs_compiler
def test_what_a_gpu_drops_leaves_the_batches_alone(card, tmp_path):
    states = []
    for device, dropout in (("cpu", 0.0), ("cuda", 0.2)):
        losses(new_gpu_trainer(tmp_path, device, {"dropout": dropout}), 2)
        states.append(mg.random.get_state())
    assert states[0]["cpu"] == states[1]["cpu"]
    assert states[0]["gpu"] < states[1]["gpu"]


@pytest.mark.parametrize("most", [2**26, 0], ids=["on the GPU", "from the host"])
def test_ids_outside_of_the_vocabulary_do_not_come_to_a_gpu(monkeypatch, most):
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(data, "MOST_TOKENS_ON_GPU", most)
    dataset = Dataset.of_parts(np.array([1, 2, 9, 1, 2]), np.arange(5), 4, vocab_size=5)
    with pytest.raises(DataError, match='the id 9 at position 2 of "train" is not in the vocabulary'):
        dataset.batch("train", 1, np.random.default_rng(0), "cuda")
