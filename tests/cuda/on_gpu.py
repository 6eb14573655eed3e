"""The tests of what a GPU computes, as a class: test_fake_cupy.py runs it on the fake CuPy, test_on_card.py on a card.

Both run without the CUDA kernels; test_with_kernels.py runs it with them. Everything is compared with the reference
operations on NumPy, which other tests have checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig, checkpoint
from gpt.evaluate import evaluate
from minigrad import functional as F
from minigrad import kernels, nn, optim
from minigrad.arguments import plain_index
from minigrad.gradcheck.cases import cases
from minigrad.memory import describe_out_of_memory, memory_use
from tests.cuda.draws import drawn_as_on_a_gpu
from tests.engine.calls import CALLS
from tests.gpt.runs import new_trainer, weights

DEVICE = "cuda"
CASES = {f"{case.operation} {case.what} {i}": case for i, case in enumerate(cases())}
MASKED = "GetItem mask"  # the one that has to wait: how many elements there are depends on the mask


def on_gpu(value: Any) -> Any:
    """An array on the GPU; a function of calls.py or cases.py with all arrays it refers to there; all else as it is."""
    if isinstance(value, np.ndarray):
        return mg.Tensor(value, device=DEVICE).data
    if value is np:
        return importlib.import_module("cupy")
    if not isinstance(value, types.FunctionType) or value.__module__ not in (
        "tests.engine.calls",
        "minigrad.gradcheck.cases",
    ):
        return value
    names = {name: on_gpu(part) for name, part in value.__globals__.items() if name in value.__code__.co_names}
    names["__builtins__"] = __builtins__
    cells = tuple(types.CellType(on_gpu(cell.cell_contents)) for cell in value.__closure__ or ())
    defaults = tuple(map(on_gpu, value.__defaults__ or ()))
    return types.FunctionType(value.__code__, names, value.__name__, defaults, cells)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Inside this context CuPy raises where the host would have to wait for the GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns that it cannot notice everything
        allowed = importlib.import_module("cupyx").allow_synchronize(False)
        allowed.__enter__()
    try:
        yield
    finally:
        allowed.__exit__(None, None, None)


def run(fn: Callable[..., Any], inputs: list[Any], device: str, dtype: Any) -> tuple[list[Any], list[Any]]:
    """The values of a function and the gradients of its floating inputs, which are converted to dtype."""
    is_gpu = device != "cpu"
    given = [np.asarray(x, dtype) if np.asarray(x).dtype.kind == "f" else np.asarray(x) for x in inputs]
    tensors = [
        mg.Tensor(x, requires_grad=True, device=device) if x.dtype.kind == "f" else on_gpu(x) if is_gpu else x
        for x in given
    ]
    mg.manual_seed(5)
    result = (on_gpu(fn) if is_gpu else fn)(*tensors)
    outputs = list(result) if isinstance(result, tuple) else [result]
    rng = np.random.default_rng(1)
    for i, y in enumerate(outputs):
        upstream = mg.Tensor(rng.standard_normal(y.shape).astype(y.dtype), device=y.device)
        y.backward(upstream, retain_graph=i < len(outputs) - 1)
    return [y.data for y in outputs], [x.grad for x in tensors if isinstance(x, mg.Tensor)]


def new_model(device: str = DEVICE, **options: Any) -> GPT:
    settings = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 12, "dropout": 0.0}
    mg.manual_seed(1)
    return GPT(GPTConfig(**{**settings, **options})).to(device)  # type: ignore[return-value]


def trainer_on_gpu(out: Any, **options: Any) -> Any:
    """A small run on the GPU, where a single process trains."""
    trainer = new_trainer(out, **{"processes": 1, **options})
    trainer.model.to(DEVICE)
    trainer.device, trainer.checks_steps = trainer.model.wte.weight.device, False  # as on a GPU from the start
    return trainer


class OnGPU:
    """What holds on every GPU."""

    tolerance: dict[str, float]  # for each dtype, how far from NumPy's result, beside the largest element of it

    kernels_on: frozenset[str] = frozenset()  # the kinds of devices whose kernels are in use

    def gpu(self, monkeypatch: Any) -> Any:
        """The context in which there is a GPU."""
        return contextlib.nullcontext()

    @pytest.fixture(autouse=True)
    def _references(self, monkeypatch: Any) -> Iterator[None]:
        """The reference operations, but for `kernels_on`, and the GPU's random numbers on either side."""
        with self.gpu(monkeypatch), kernels.using(*self.kernels_on), drawn_as_on_a_gpu():
            yield

    def assert_close(self, ours: Any, theirs: np.ndarray | None) -> None:
        if theirs is None:
            assert ours is None
            return
        assert mg.get_array_module(ours) is not np
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        tolerance, exact = self.tolerance[str(theirs.dtype)], theirs.astype(np.float64)
        scale = np.max(np.abs(exact), initial=1e-3, where=np.isfinite(exact))
        np.testing.assert_allclose(ours.get().astype(np.float64), exact, rtol=tolerance, atol=tolerance * scale)

    def compare(self, name: str, fn: Callable[..., Any], inputs: list[Any], dtype: str) -> None:
        expected = run(fn, inputs, "cpu", dtype)
        with contextlib.nullcontext() if name.startswith(MASKED) else no_waiting():
            found = run(fn, inputs, DEVICE, dtype)
        for ours, theirs in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
            self.assert_close(ours, theirs)

    # Operations

    @pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("Astype", "ToDevice"))])
    def test_gradcheck_cases(self, name: str) -> None:
        """Every case that finite differences have checked, but for two that have tests of their own below."""
        self.compare(name, CASES[name].fn, CASES[name].inputs, "float64")

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
    @pytest.mark.parametrize("name", [name for name in CALLS if name != "to"])
    def test_functions(self, name: str, dtype: str) -> None:
        self.compare(name, CALLS[name].fn, CALLS[name].inputs, dtype)

    @pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.operation not in ("Astype", "ToDevice")])
    def test_bfloat16_stays_bfloat16(self, name: str) -> None:
        pytest.importorskip("ml_dtypes")
        case = CASES[name]
        arrays = [np.asarray(x) for x in case.inputs]
        tensors = [
            mg.Tensor(x, requires_grad=True, dtype="bfloat16", device=DEVICE)
            if x.dtype.kind == "f"
            else mg.Tensor(x, device=DEVICE)
            for x in arrays
        ]
        result = on_gpu(case.fn)(*tensors)
        for y in result if isinstance(result, tuple) else (result,):
            assert str(y.dtype) == ("float32" if case.operation == "CrossEntropy" else "bfloat16")
            y.backward(mg.Tensor(np.ones(y.shape), dtype=y.dtype, device=DEVICE), retain_graph=True)
        assert all(str(x.grad.dtype) == "bfloat16" for x in tensors if x.requires_grad)

    def test_astype(self) -> None:
        """The case for finite differences wants a long double, which CuPy does not have."""
        x = mg.Tensor(np.arange(3.0), requires_grad=True, device=DEVICE)
        with no_waiting():
            y = x.astype("float32")
            y.sum().backward()
        assert (y.dtype, x.grad.dtype) == (np.float32, np.float64)

    def test_from_the_gpu_to_the_cpu_and_back(self) -> None:
        x = mg.Tensor([1.0, 2.0], requires_grad=True)
        y = x.to(DEVICE) * 3
        assert y.device.startswith("cuda:")
        (y.to("cpu") * mg.Tensor([1.0, 10.0])).sum().backward()
        np.testing.assert_array_equal(x.grad, [3, 30])

    def test_results_without_axes_stay_on_the_gpu(self) -> None:
        x = mg.Tensor([1.0, 2.0], requires_grad=True, device=DEVICE)
        with no_waiting():
            y = x.sum() / 4
            y.backward()
        assert mg.get_array_module(y.data) is not np
        assert y.item() == 0.75

    def test_indices_and_writing(self) -> None:
        x = mg.Tensor(np.arange(6.0).reshape(2, 3), device=DEVICE)
        for index in ([0, 0], np.array([1, 0]), (slice(None), [2, 0]), mg.Tensor([1])):
            np.testing.assert_array_equal(x[index].numpy(), x.numpy()[plain_index(index, "cpu")])
        x[0] = 7.0
        x[:, [1]] = mg.Tensor([[8.0], [9.0]], device=DEVICE, dtype="float64")
        np.testing.assert_array_equal(x.numpy(), [[7, 8, 7], [3, 9, 5]])
        assert (x > 7).get().sum() == 2

    @pytest.mark.parametrize("n", [0, 1, 2, 3, 100])
    def test_gradients_of_repeated_rows_are_the_same_every_time(self, n: int) -> None:
        """And exact: sums of small whole numbers have nothing to round."""
        rng = np.random.default_rng(0)
        ids, g = rng.integers(0, 7, n), rng.integers(-9, 9, (n, 3)).astype(np.float32)
        expected = np.zeros((8, 3), np.float32)
        np.add.at(expected, ids, g)
        for fn in (lambda w: F.embedding(on_gpu(ids), w), lambda w: w[on_gpu(ids)]):
            weight = mg.Tensor(np.ones((8, 3), np.float32), requires_grad=True, device=DEVICE)
            with no_waiting():
                fn(weight).backward(mg.Tensor(g, device=DEVICE))
            np.testing.assert_array_equal(weight.grad.get(), expected)

    def test_a_row_that_is_not_finite_leaves_others_alone(self) -> None:
        weight = mg.Tensor(np.ones((3, 1), np.float32), requires_grad=True, device=DEVICE)
        F.embedding(on_gpu(np.array([0, 1, 2, 1])), weight).backward([[1.0], [np.inf], [2.0], [3.0]])
        np.testing.assert_array_equal(weight.grad.get(), [[1], [np.inf], [2]])

    def test_sums_of_half_precision_rows_are_rounded_once(self) -> None:
        rows = np.random.default_rng(0).uniform(0.5, 1.5, (5000, 3)).astype(np.float16)
        weight = mg.Tensor(np.ones((2, 3), np.float16), requires_grad=True, device=DEVICE)
        F.embedding(on_gpu(np.ones(5000, int)), weight).backward(mg.Tensor(rows, device=DEVICE))
        np.testing.assert_array_equal(weight.grad.get()[1], rows.astype(np.float64).sum(axis=0).astype(np.float16))

    # Random numbers

    @pytest.mark.parametrize("draw", ["normal", "uniform", "mask"])
    def test_the_seed_and_the_state_decide_what_is_drawn(self, draw: str) -> None:
        random = mg.random

        def numbers() -> np.ndarray:
            drawn = {
                "normal": lambda: random.normal((7,), device=DEVICE),
                "uniform": lambda: random.uniform((7,), -1, 1, device=DEVICE),
                "mask": lambda: random.dropout_mask((70,), 0.5, DEVICE)[0],
            }[draw]()
            return drawn.get()

        mg.manual_seed(3)
        first, state, second = numbers(), random.get_state(), numbers()
        assert (first != second).any()
        mg.manual_seed(3)
        np.testing.assert_array_equal(numbers(), first)
        random.set_state(state)
        np.testing.assert_array_equal(numbers(), second)
        with random.replay(state):
            np.testing.assert_array_equal(numbers(), second)

    def test_drawing_does_not_wait(self) -> None:
        with no_waiting():
            mg.random.normal((5,), device=DEVICE)
            F.dropout(mg.Tensor(np.ones(5), device=DEVICE), 0.5)
            mg.random.get_state()

    def test_gpu_and_cpu_compute_the_same_random_words(self) -> None:
        words = []
        for device in ("cpu", DEVICE):
            mg.manual_seed(2**63 + 5)
            mg.random.Counter(device).words(1)
            words.append(mg.Tensor(mg.random.Counter(device).words(11)).numpy())
        np.testing.assert_array_equal(*words)

    # Models

    @pytest.mark.parametrize("make", [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: optim.AdamW(p, lr=0.1),
        lambda p: optim.Muon(p, lr=0.1),
    ], ids=["SGD", "AdamW", "Muon"])  # fmt: skip
    def test_optimizers_and_clipping(self, make: Any) -> None:
        states = []
        for device in ("cpu", DEVICE):
            rng = np.random.default_rng(0)
            w = nn.Parameter(mg.Tensor(rng.standard_normal((3, 4)), device=device))
            optimizer = make([w])
            with contextlib.nullcontext() if device == "cpu" else no_waiting():
                for _ in range(3):
                    w.grad = mg.Tensor(rng.standard_normal((3, 4)), device=device).data
                    norm = optim.clip_grad_norm([w], 0.5)
                    optimizer.step()
            states.append([w.numpy(), np.asarray(float(norm)), *(t.numpy() for t in optimizer.state_dict().values())])
        for ours, theirs in zip(*states, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    def test_clipping_is_a_write_that_the_tape_notices(self) -> None:
        p, x = (nn.Parameter(mg.Tensor(np.ones(4, np.float32), device=DEVICE)) for _ in range(2))
        p.grad = mg.Tensor(np.full(4, 3, np.float32), device=DEVICE).data
        y = (mg.Tensor(p.grad) * x).sum()
        optim.clip_grad_norm([p], 1.0)
        with pytest.raises(mg.AutogradError, match="written"):
            y.backward()

    @pytest.mark.parametrize("options", [
        {}, {"norm": "rms", "activation": "relu2", "position": "rotary", "qk_norm": True, "logit_softcap": 15.0},
    ], ids=["GPT-2", "speedrun"])  # fmt: skip
    def test_a_models_loss_and_gradients(self, options: Any) -> None:
        ids = np.random.default_rng(0).integers(0, 11, (3, 9))
        found = []
        for device in ("cpu", DEVICE):
            model = new_model(device, **options)
            given = [mg.Tensor(part, device=device).data for part in (ids[:, :-1], ids[:, 1:])]
            with contextlib.nullcontext() if device == "cpu" else no_waiting():
                loss = model(*given)[1]
                loss.backward()
            found.append([loss.numpy(), *(mg.Tensor(p.grad).numpy() for p in model.parameters())])
        for theirs, ours in zip(*found, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())

    def test_moving_and_saving_a_model(self, tmp_path: Any) -> None:
        model, same = new_model(), new_model("cpu")
        mg.save(model.state_dict(), tmp_path / "model.safetensors")
        for name, value in mg.load(tmp_path / "model.safetensors").items():
            np.testing.assert_array_equal(value.numpy(), same.state_dict()[name].numpy())
        for p in model.parameters():
            p.data[...] = 0
        model.load_state_dict(same.state_dict())
        for a, b in zip(model.to("cpu").parameters(), same.parameters(), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert model.to(dtype="float64").to(DEVICE).wte.weight.dtype == np.float64

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_generating(self, use_cache: bool) -> None:
        prompts = [[1, 2, 3], [4]]
        settings = {"temperature": 1.0, "top_k": 5, "seed": 3, "use_cache": use_cache}
        rows = [new_model(device).generate(prompts, 12, **settings) for device in ("cpu", DEVICE)]
        for theirs, ours in zip(*rows, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_evaluating(self) -> None:
        ids = np.random.default_rng(0).integers(0, 11, 60)
        theirs, ours = (evaluate(new_model(device), ids, 60) for device in ("cpu", DEVICE))
        np.testing.assert_allclose(ours.nats, theirs.nats, rtol=1e-4)

    # Training

    @pytest.mark.parametrize("options", [
        {}, {"dropout": 0.2, "grad_accum": 2}, {"optimizer": "muon", "muon_learning_rate": 0.02},
    ], ids=["plain", "dropout and accumulation", "Muon"])  # fmt: skip
    def test_a_training_step_does_not_wait(self, tmp_path: Any, options: Any) -> None:
        trainer = trainer_on_gpu(tmp_path, **{"dropout": 0.0, **options})
        trainer.model.train()
        with no_waiting():
            for _ in range(3):
                loss, norm = trainer.step(1e-3)
        assert np.isfinite(loss.item())
        assert np.isfinite(float(norm))

    def test_training_learns_what_the_cpu_learns(self, tmp_path: Any) -> None:
        on_cpu, here = new_trainer(tmp_path / "cpu", dropout=0.1), trainer_on_gpu(tmp_path / "gpu", dropout=0.1)
        for trainer in (on_cpu, here):
            mg.manual_seed(1)
            assert trainer.train()
        ours, theirs = ([row["val_loss"] for row in t.rows if "val_loss" in row] for t in (here, on_cpu))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3)

    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_a_resumed_run_continues_exactly(self, tmp_path: Any, checkpointed: bool) -> None:
        """Dropout included: the state of the GPU's random numbers is in the checkpoint."""

        def trainer(out: str) -> Any:
            made = trainer_on_gpu(tmp_path / out, dropout=0.2, max_iters=6, eval_interval=3)
            made.model.config = dataclasses.replace(made.model.config, checkpoint=checkpointed)
            mg.manual_seed(7)
            return made

        whole = trainer("whole")
        assert whole.train()
        half = trainer("half")
        half.config = dataclasses.replace(half.config, max_iters=3)
        assert half.train()
        rest = trainer("half")
        rest.resume(checkpoint.load(tmp_path / "half" / checkpoint.LAST))
        assert rest.train()
        for name, value in weights(whole).items():
            np.testing.assert_array_equal(weights(rest)[name], value, err_msg=name)
        again = trainer("again")
        assert again.train()
        for name, value in weights(whole).items():
            np.testing.assert_array_equal(weights(again)[name], value, err_msg=name)

    def test_checkpointed_blocks_replay_their_dropout(self) -> None:
        found = []
        for checkpointed in (False, True):
            model = new_model(dropout=0.3, checkpoint=checkpointed)
            mg.manual_seed(2)
            ids = on_gpu(np.arange(8)[None] % 11)
            model(ids, ids)[1].backward()
            found.append([mg.Tensor(p.grad).numpy() for p in model.parameters()])
        for plain, replayed in zip(*found, strict=True):
            np.testing.assert_array_equal(plain, replayed)

    # Errors

    @pytest.mark.parametrize("mix", [
        lambda here, there: here + there,
        lambda here, there: F.matmul(there, here),
        lambda here, there: here + there.numpy(),
        lambda here, there: here < there,
        lambda here, there: F.where(there.data > 0, here, here),
        lambda here, there: here.__setitem__(0, there[0]),
    ], ids=["add", "matmul", "array", "comparison", "where", "writing"])  # fmt: skip
    def test_devices_do_not_mix(self, mix: Any) -> None:
        here, there = mg.Tensor(np.ones((2, 2)), device=DEVICE), mg.Tensor(np.ones((2, 2)))
        with pytest.raises(mg.DeviceError, match=r"arrays are on (cpu and cuda:\d)(; move them to one device)"):
            mix(here, there)

    def test_a_mask_is_where_its_tensor_is(self) -> None:
        mask = mg.Tensor(np.ones((2, 2)), device=DEVICE).data > 0
        with pytest.raises(mg.DeviceError, match=r"MaskedFill.* are on cpu and cuda:\d"):
            F.masked_fill(mg.Tensor(np.ones((2, 2))), mask, 0.0)

    @pytest.mark.parametrize(("call", "error"), [
        (lambda x: x + F.reshape(x, 3, 2), ValueError),
        (lambda x: x @ x, ValueError),
        (lambda x: F.reshape(x, 4), ValueError),
        (lambda x: F.concatenate([x, x[:, :1]], 0), ValueError),
        (lambda x: x[5], IndexError),
    ], ids=["add", "matmul", "reshape", "concatenate", "index"])  # fmt: skip
    def test_bad_shapes_are_refused_as_on_the_cpu(self, call: Any, error: Any) -> None:
        with pytest.raises(error, match=r"^[A-Z]\w+: .*\(2, 3\)"):
            call(mg.Tensor(np.ones((2, 3), np.float32), device=DEVICE))

    def test_running_out_of_memory_says_how_much_was_wanted_and_is_there(self) -> None:
        with pytest.raises(MemoryError) as raised:
            self.ask_for_too_much()
        text = describe_out_of_memory(raised.value)
        assert text.startswith("out of memory on the GPU: 2048.00 TiB more were requested")
        assert "held by this process" in text or not memory_use(DEVICE).held
        assert text.endswith("are free")

    def ask_for_too_much(self) -> None:
        importlib.import_module("cupy").empty(2**51, "uint8")
