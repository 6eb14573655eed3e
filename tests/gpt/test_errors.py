"""Bad input: each error names the operation, and the shapes and dtypes that it got."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from gpt.errors import GPTError, OutOfMemoryError, memory_advice, run_program
from minigrad import functional as F
from minigrad import memory, nn
from minigrad.backend import check_device

ROOT = Path(__file__).parents[2]


def f32(*shape):
    return mg.Tensor(np.ones(shape, np.float32), requires_grad=True)


def f64(*shape):
    return mg.Tensor(np.ones(shape), requires_grad=True)


ids = np.array([0, 1, 2])
attention = F.scaled_dot_product_attention

BAD = {
    # shapes
    "add": (lambda: f32(2) + f32(3), ValueError, ["Add", "(2,) float32", "(3,) float32"]),
    "multiply": (lambda: f32(2, 3) * f32(2), ValueError, ["Multiply", "(2, 3) float32", "(2,) float32"]),
    "where": (lambda: F.where(np.array([True, False]), f32(3), 0), ValueError, ["Where", "(2,) bool", "(3,) float32"]),
    "matmul": (lambda: f32(2, 3) @ f32(2, 3), ValueError, ["MatMul", "(2, 3) float32", "the same K"]),
    "matmul of stacks": (lambda: f32(2, 3, 3) @ f32(4, 3, 3), ValueError, ["MatMul", "(2, 3, 3)", "(4, 3, 3)"]),
    "matmul of a number": (lambda: f32(2) @ 3.0, ValueError, ["MatMul", "(2,) float32", "() float32"]),
    "linear": (lambda: F.linear(f32(5, 3), f32(2, 4)), ValueError, ["Linear", "(5, 3)", "(2, 4)", "weight (O, I)"]),
    "linear bias": (lambda: F.linear(f32(5, 3), f32(2, 3), f32(3)), ValueError, ["Linear", "(5, 3)", "(3,)"]),
    "linear weight": (lambda: F.linear(f32(3), f32(3)), ValueError, ["Linear", "weight (O, I)"]),
    "reshape": (lambda: f32(2, 3).reshape(4, 2), ValueError, ["Reshape", "(2, 3) float32", "(4, 2)"]),
    "broadcast_to": (lambda: F.broadcast_to(f32(3), (2, 4)), ValueError, ["BroadcastTo", "(3,) float32", "(2, 4)"]),
    "concatenate": (lambda: F.concatenate([f32(2, 3), f32(2, 4)]), ValueError, ["Concatenate", "(2, 3)", "(2, 4)"]),
    "concatenate nothing": (lambda: F.concatenate([]), ValueError, ["concatenate", "at least one"]),
    "stack": (lambda: F.stack([f32(2), f32(3)]), ValueError, ["stack", "(2,)", "(3,)"]),
    "stack nothing": (lambda: F.stack([]), ValueError, ["stack", "at least one"]),
    "split": (lambda: F.split(f32(5), [2, 2]), ValueError, ["Split", "[2, 2]", "(5,) float32"]),
    "split below zero": (lambda: F.split(f32(5), [7, -2]), ValueError, ["Split", "[7, -2]", "(5,) float32"]),
    "split size": (lambda: F.split(f32(5), 0), ValueError, ["split", "at least 1", "got 0"]),
    "getitem": (lambda: f32(3)[5], IndexError, ["GetItem", "(3,) float32", "5"]),
    "getitem axes": (lambda: f32(3)[0, 0], IndexError, ["GetItem", "(3,) float32"]),
    "getitem floats": (lambda: f32(3)[np.array([0.5])], IndexError, ["GetItem", "(3,) float32", "(1,) float64"]),
    "masked_fill": (
        lambda: F.masked_fill(f32(3), np.ones((2, 3), bool), 0),
        ValueError,
        ["MaskedFill", "(3,) float32", "(2, 3) bool"],
    ),
    "softmax without an axis": (lambda: F.softmax(f32(3), None), TypeError, ["softmax", "one axis", "None"]),
    "clip by a tensor": (lambda: F.clip(f32(3), f32(3)), TypeError, ["clip", "numbers or None", "(3,) float32"]),
    "astype": (lambda: f32(3).astype("complex64"), TypeError, ["astype", "real numbers", "complex64"]),
    "attention of nothing": (
        lambda: F.scaled_dot_product_attention(f32(2, 0), f32(3, 0), f32(3, 4)),
        ValueError,
        ["Attention", "(2, 0) float32", "D of at least 1"],
    ),
    "layer_norm": (lambda: F.layer_norm(f32(2, 3), f32(2)), ValueError, ["LayerNorm", "(2, 3)", "(2,)", "(C,)"]),
    "rms_norm": (lambda: F.rms_norm(f32(2, 3), f32(2)), ValueError, ["RMSNorm", "(2, 3)", "(2,)"]),
    "embedding weight": (lambda: F.embedding(ids, f32(3)), ValueError, ["Embedding", "(V, C)", "(3,) float32"]),
    "targets": (lambda: F.cross_entropy(f32(2, 5), ids), ValueError, ["CrossEntropy", "(2, 5) float32", "(3,) int64"]),
    "targets as columns": (
        lambda: F.cross_entropy(f32(3, 5), ids[:, None]),
        ValueError,
        ["CrossEntropy", "(3, 5) float32", "(3, 1) int64"],
    ),
    "attention": (
        lambda: attention(f32(4, 3), f32(5, 2), f32(5, 3)),
        ValueError,
        ["Attention", "(4, 3)", "(5, 2)", "(5, 3)", "expected q"],
    ),
    "attention keys": (
        lambda: attention(f32(4, 3), f32(5, 3), f32(6, 3)),
        ValueError,
        ["Attention", "(5, 3)", "(6, 3)"],
    ),
    "attention mask": (
        lambda: attention(f32(4, 3), f32(5, 3), f32(5, 3), mask=np.ones((5, 4), bool)),
        ValueError,
        ["Attention", "(4, 3)", "(5, 4) bool"],
    ),
    "var": (lambda: F.var(f32(1)), ValueError, ["Var", "correction 1", "(1,) float32"]),
    "max of nothing": (lambda: F.max(f32(0)), ValueError, ["Max", "(0,) float32"]),
    "split into sizes below zero": (lambda: F.split(f32(2), [3, -1]), ValueError, ["Split", "[3, -1]", "at least 0"]),
    "a list of tensors": (lambda: F.sum([f32(2), f32(2)]), TypeError, ["list of tensors", "stack()"]),
    "a list of lists of tensors": (lambda: f32(2) + [[f32(), f32()]], TypeError, ["list of tensors", "stack()"]),
    "masked_fill by a tensor": (
        lambda: F.masked_fill(f32(3), np.ones(3, bool), f32()),
        TypeError,
        ["masked_fill", "value gets no gradient", "where"],
    ),
    "rotary at half a place": (
        lambda: F.rotary(f32(3, 2), offset=0.5),
        ValueError,
        ["Rotary", "integer offset", "0.5"],
    ),
    # axes
    "sum axis": (lambda: f32(2, 3).sum(axis=2), ValueError, ["sum", "axis 2", "(2, 3)"]),
    "mean axis": (lambda: f32(2, 3).mean(axis=-3), ValueError, ["mean", "axis -3", "(2, 3)"]),
    "max axis": (lambda: f32(2, 3).max(axis=5), ValueError, ["max", "axis 5", "(2, 3)"]),
    "min axis": (lambda: f32(2, 3).min(axis=5), ValueError, ["min", "axis 5", "(2, 3)"]),
    "var axis": (lambda: f32(2, 3).var(axis=5), ValueError, ["var", "axis 5", "(2, 3)"]),
    "logsumexp axis": (lambda: F.logsumexp(f32(2, 3), 5), ValueError, ["logsumexp", "axis 5", "(2, 3)"]),
    "axis twice": (lambda: f32(2, 3).sum(axis=(0, -2)), ValueError, ["sum", "(0, -2)", "(2, 3)", "twice"]),
    "softmax axis": (lambda: F.softmax(f32(2, 3), 2), ValueError, ["softmax", "axis 2", "(2, 3)"]),
    "softmax of a number": (lambda: F.softmax(f32()), ValueError, ["softmax", "axis -1", "()"]),
    "log_softmax axis": (lambda: F.log_softmax(f32(2, 3), 2), ValueError, ["log_softmax", "axis 2", "(2, 3)"]),
    "transpose axis": (lambda: F.transpose(f32(2, 3), 0, 2), ValueError, ["transpose", "axis 2", "(2, 3)"]),
    "transpose too few": (lambda: F.transpose(f32(2, 3), 0), ValueError, ["Transpose", "(2, 3) float32"]),
    "swapaxes": (lambda: f32(2, 3).swapaxes(0, 2), ValueError, ["swapaxes", "axis 2", "(2, 3)"]),
    "concatenate axis": (lambda: F.concatenate([f32(2)], 1), ValueError, ["concatenate", "axis 1", "(2,)"]),
    "stack axis": (lambda: F.stack([f32(2)], 2), ValueError, ["stack", "axis 2", "(2,)"]),
    "split axis": (lambda: F.split(f32(2), 1, 1), ValueError, ["split", "axis 1", "(2,)"]),
    # dtypes
    "matmul dtypes": (lambda: f32(2, 2) @ f64(2, 2), TypeError, ["matmul", "float32 and float64", "astype"]),
    "linear dtypes": (lambda: F.linear(f64(2, 3), f32(4, 3)), TypeError, ["linear", "float32 and float64", "astype"]),
    "linear bias dtype": (lambda: F.linear(f32(2, 3), f32(4, 3), f64(4)), TypeError, ["linear", "float32 and float64"]),
    "layer_norm dtypes": (lambda: F.layer_norm(f32(2, 3), f64(3)), TypeError, ["layer_norm", "float32 and float64"]),
    "rms_norm dtypes": (lambda: F.rms_norm(f32(2, 3), f64(3)), TypeError, ["rms_norm", "float32 and float64"]),
    "attention dtypes": (
        lambda: attention(f32(2, 3), f32(2, 3), f64(2, 3)),
        TypeError,
        ["scaled_dot_product_attention", "float32 and float64"],
    ),
    "concatenate dtypes": (lambda: F.concatenate([f32(2), f64(2)]), TypeError, ["concatenate", "float32 and float64"]),
    "stack dtypes": (lambda: F.stack([f32(2), f64(2)]), TypeError, ["stack", "float32 and float64"]),
    "where mask": (lambda: F.where(ids, f32(3), 0), TypeError, ["where", "boolean mask", "int64"]),
    "masked_fill mask": (lambda: F.masked_fill(f32(3), ids, 0), TypeError, ["masked_fill", "boolean mask", "int64"]),
    "attention additive mask": (
        lambda: attention(f32(2, 3), f32(2, 3), f32(2, 3), mask=np.zeros((2, 2))),
        TypeError,
        ["scaled_dot_product_attention", "boolean mask", "float64"],
    ),
    "ids": (lambda: F.embedding(np.array([0.0]), f32(3, 2)), TypeError, ["Embedding", "integer dtype", "(1,) float64"]),
    "target dtype": (
        lambda: F.cross_entropy(f32(1, 5), np.array([1.0])),
        TypeError,
        ["CrossEntropy", "integer dtype", "(1,) float64"],
    ),
    "one-hot targets": (
        lambda: F.cross_entropy(f32(1, 5), np.eye(5)[:1]),
        ValueError,
        ["CrossEntropy", "(1, 5) float64"],
    ),
    "strings": (lambda: mg.Tensor(["a", "b"]), TypeError, ["<U1"]),
    "array of strings": (lambda: mg.Tensor(np.array(["a", "b"])), TypeError, ["<U1"]),
    "objects": (lambda: mg.Tensor(np.array([None])), TypeError, ["object"]),
    "None": (lambda: mg.Tensor(None), TypeError, ["NoneType"]),
    "complex": (lambda: mg.Tensor(np.array([1j])), TypeError, ["complex128"]),
    "ragged lists": (lambda: mg.Tensor([[1.0], [1.0, 2.0]]), ValueError, ["inhomogeneous"]),
    # values
    "id too large": (
        lambda: F.embedding([0, 5], f32(5, 2)),
        IndexError,
        ["Embedding", "from 0 to 4", "0 to 5", "(5, 2)"],
    ),
    "id below zero": (lambda: F.embedding([-1], f32(5, 2)), IndexError, ["Embedding", "from 0 to 4", "-1 to -1"]),
    "target too large": (
        lambda: F.cross_entropy(f32(3, 2), ids),
        IndexError,
        ["CrossEntropy", "from 0 to 1", "0 to 2"],
    ),
    "target below zero": (lambda: F.cross_entropy(f32(1, 2), [-1]), IndexError, ["CrossEntropy", "0 to 1", "-1 to -1"]),
    "reduction": (lambda: F.cross_entropy(f32(3, 3), ids, reduction="max"), ValueError, ["cross_entropy", "'max'"]),
    "approximate": (lambda: F.gelu(f32(2), approximate="erf"), ValueError, ["gelu", "'erf'"]),
    "dropout": (lambda: F.dropout(f32(2), 1.5), ValueError, ["dropout", "from 0 to 1", "1.5"]),
    "dropout layer": (lambda: nn.Dropout(-0.1), ValueError, ["Dropout", "from 0 to 1", "-0.1"]),
    "attention dropout": (
        lambda: attention(f32(2, 3), f32(2, 3), f32(2, 3), dropout_p=2),
        ValueError,
        ["scaled_dot_product_attention", "from 0 to 1", "2"],
    ),
    # tensors
    "item": (lambda: f32(2).item(), ValueError, ["item", "one element", "(2,)"]),
    "bool": (lambda: bool(f32(2)), ValueError, ["one element", "(2,)"]),
    "iteration": (lambda: list(f32()), TypeError, ["0-d"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_was_wrong(name):
    call, error, fragments = BAD[name]
    with pytest.raises(error) as raised:
        call()
    for fragment in fragments:
        assert fragment in str(raised.value)


def test_the_original_error_is_the_cause():
    with pytest.raises(ValueError, match="^Add: ") as raised:
        f32(2) + f32(3)
    assert isinstance(raised.value.__cause__, ValueError)


# Devices


@pytest.fixture
def without_cupy(monkeypatch):
    """As on a machine where CuPy is not installed, whether it is or not."""
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.mark.parametrize(
    "ask",
    [
        lambda device: mg.Tensor([1.0], device=device),
        lambda device: mg.Tensor([1.0]).to(device),
        lambda device: nn.Linear(2, 2).to(device),
        mg.random.generator,
    ],
    ids=["Tensor", "to", "Module.to", "generator"],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.usefixtures("without_cupy")
def test_asking_for_a_gpu_without_cupy_says_what_to_install(ask, device):
    with pytest.raises(mg.DeviceError) as raised:
        ask(device)
    assert f'device "{device}" needs CuPy, which is not installed' in str(raised.value)
    assert 'pip install "cupy-cuda12x[ctk]"' in str(raised.value)


@pytest.mark.usefixtures("without_cupy")
def test_without_cupy_there_is_no_gpu_and_the_cpu_works():
    assert mg.cuda_is_available() is False
    x = mg.Tensor([1.0], device="cpu", requires_grad=True)
    (x.to("cpu") * 2).backward()
    assert x.grad == [2]


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:one", "cuda:-1", "", "CUDA", np.dtype("float64")])
def test_an_unknown_device_is_refused_with_the_known_ones(device):
    for ask in (check_device, lambda device: mg.Tensor([1.0]).to(device)):
        with pytest.raises(mg.DeviceError, match=f'unknown device "{device}"; expected "cpu", "cuda" or "cuda:N"'):
            ask(device)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MINIGRAD_KERNELS", "referrence", "reference, cuda, or nothing"),
        ("MINIGRAD_BLAS", "MKL", "mkl or numpy"),
        ("MINIGRAD_NUM_THREADS", "0", "a whole number of at least 1"),
    ],
)
def test_environment_variables_without_meaning_are_not_ignored(name, value, expected):
    environment, program = {**os.environ, name: value}, "import minigrad; minigrad.get_num_threads()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr.rstrip().endswith(f"ValueError: {name} is {value!r}; expected {expected}")


# What reaches a terminal


def message(error):
    """What a program prints when its `main` raises this error."""

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    return ended.value.code


@pytest.mark.parametrize("program", ["examples/sample.py --checkpoint nowhere", "-m minigrad.gradcheck Softplus"])
def test_zero_threads_are_one_line_in_a_program(program):
    environment = {**os.environ, "MINIGRAD_NUM_THREADS": "0", "PYTHONPATH": "."}
    command = [sys.executable, *program.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.endswith("error: MINIGRAD_NUM_THREADS is '0'; expected a whole number of at least 1\n")
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


def test_names_from_files_are_escaped_and_cut(tmp_path):
    name = "\x1b]0;owned\x07\r\x9b31m\u202e" + "x" * 100_000
    mg.save({name: np.ones(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="unexpected") as raised:
        nn.Linear(2, 2).load_state_dict(mg.load(tmp_path / "odd.safetensors"))
    said = message(GPTError(str(raised.value)))
    assert r"unexpected \x1b]0;owned\x07\r\x9b31m\u202exxx" in said
    assert said.isprintable()
    assert len(said) < 1100
    assert len(message(GPTError("\n".join(["x" * 2000] * 500)))) < 11_000
    assert message(GPTError("two\n\tlines")) == "error: two\n\tlines"


def test_a_report_of_memory_that_runs_out_of_memory_is_still_one_line(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(memory, "memory_use", full)
    assert message(MemoryError("Unable to allocate")) == "error: out of memory"
    with pytest.raises(OutOfMemoryError, match="^out of memory; buy more$"), memory_advice("buy more"):
        raise MemoryError
