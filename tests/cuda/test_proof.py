"""Kernels of GPUs are checked on the GPU at hand before they run; see minigrad/kernels/cuda/proof.

There is no GPU here. The fake CuPy and the emulator are one (prove_on_emulator.py); where only the bookkeeping is
tested, a few lines of Python say what the process that checks would say.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg
from gpt import precision
from minigrad import functional as F
from minigrad import kernels
from minigrad.kernels import cuda
from minigrad.kernels.cuda import cublaslt, graph, launch, proof
from minigrad.kernels.cuda import optimizer as fused
from minigrad.kernels.cuda.proof import __main__ as command
from minigrad.kernels.cuda.proof import answers, cases, check, run
from tests.cuda import prove_on_emulator
from tests.fakes import cupy as fake_cupy
from tests.fakes.cublaslt import fake_cublaslt
from tests.fakes.emulator import needs_compiler
from tests.gpt.runs import new_gpu_trainer

NAME = "A card that is not there"
UNITS = ["GELU float32", "Softmax float32", "CrossEntropy float32", "Dropout float32", "AdamW float32"]
UNITS.append("ClipGradNorm float32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder, empty; and this process has not asked yet."""
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "kernels"
    forget()


def forget():
    """As in a process that has not asked yet."""
    proof._answers.clear()
    proof._allowed.clear()


@pytest.fixture
def card(cache, monkeypatch):
    """A GPU with a few kernels, and the process that checks them there."""
    prove_on_emulator.few_kernels(monkeypatch)
    check_with(monkeypatch, "-m", "tests.cuda.prove_on_emulator")
    with prove_on_emulator.a_card(monkeypatch):
        yield
        monkeypatch.undo()


def check_with(monkeypatch, *arguments):
    monkeypatch.setattr(run, "COMMAND", [sys.executable, *arguments])


def says(monkeypatch, *messages, then=""):
    """Let the process that checks say this, and then do what the code says. `--skip` leaves messages out."""
    code = f"""
import json, os, sys, time
with open(os.environ["MINIGRAD_CACHE"] + "-asked", "a") as file: file.write("asked ")
for message in json.loads(sys.argv[1]):
    if message.get("unit", message.get("started")) not in sys.argv:
        print(json.dumps(message), flush=True)
{then}
"""
    check_with(monkeypatch, "-c", code, json.dumps(messages))


def result(unit, failure=""):
    return [{"started": unit}, {"unit": unit, "failure": failure, "error": 1e-7, "seconds": 0.1}]


def all_passed(but=(), units=UNITS):
    for unit in units:
        yield from result(unit, "it is wrong" if unit in but else "")
    yield {"finished": True}


def times_asked(cache):
    asked = cache.parent.with_name("cache-asked")
    return len(asked.read_text().split()) if asked.exists() else 0


def kernel_of_gelu(dtype=np.float32):
    """Whose forward and backward run for GELU on the GPU."""
    x = mg.Tensor(np.linspace(-2, 2, 7, dtype=dtype), device="cuda", requires_grad=True)
    return F.gelu(x).origin[0].implementation


# The check, on the emulator


@needs_compiler
def test_the_first_use_of_a_gpu_checks_its_kernels_once(card, cache, monkeypatch, capfd):
    assert kernel_of_gelu() is cuda.GELU
    said = capfd.readouterr().err
    assert said == f"minigrad: checking the CUDA kernels on {NAME}, once for this card: this takes up to 20 seconds\n"
    (path,) = cache.glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["results"] == dict.fromkeys(UNITS, "")
    assert kept["key"]["NVRTC"] == [12, 9]
    forget()
    check_with(monkeypatch, "-c", "raise SystemExit('this must not run')")
    assert kernel_of_gelu() is cuda.GELU
    assert capfd.readouterr().err == ""


@needs_compiler
def test_kernels_that_are_broken_stay_off_and_the_others_are_on(card, monkeypatch, capfd):
    """Errors of five kinds: the wrong sign, a write out of bounds, a race, a crash, and one that never ends."""
    broken = [argument for name in prove_on_emulator.BREAKS for argument in ("--break", name)]
    check_with(monkeypatch, "-m", "tests.cuda.prove_on_emulator", *broken)
    monkeypatch.setattr(run, "SILENCE", 6.0)
    results = answers.answer(0)
    assert results["CrossEntropy float32"] == ""
    assert "off by 5.3e-01 of its largest number" in results["GELU float32"]
    assert "wrote outside of an array" in results["Dropout float32"]
    assert "two runs gave different bits" in results["Softmax float32"]
    assert results["AdamW float32"] == "ended its process (SIGSEGV)"
    assert results["ClipGradNorm float32"] == "did not end within 6 seconds"
    said = capfd.readouterr().err.splitlines()[1:]
    assert len(said) == 5
    assert said[0].startswith(
        f"minigrad: the CUDA kernel GELU float32 failed its check on {NAME} and stays off (((1, 33)) packed: result"
    )
    assert all("please report this with what `python -m minigrad.kernels.cuda.proof` prints" in line for line in said)
    assert issubclass(kernel_of_gelu(), mg.Function)  # the operation itself
    x = mg.Tensor(np.ones((2, 3), np.float32), device="cuda", requires_grad=True)
    loss = F.cross_entropy(x, mg.Tensor(np.array([0, 1]), device="cuda"))
    assert loss.origin[0].implementation is cuda.CrossEntropy


@needs_compiler
@pytest.mark.slow
def test_all_kernels_pass(monkeypatch):
    messages = []
    with prove_on_emulator.a_card(monkeypatch):
        run.check_all(0, [], messages.append)
        units = [f"{subject.name} {dtype}" for subject, dtype in cases.units()]
        monkeypatch.undo()
    results = {message["unit"]: message["failure"] for message in messages if "unit" in message}
    assert results == dict.fromkeys(units, "")
    assert len(units) == 41
    assert messages[-1] == {"finished": True}


@pytest.mark.parametrize("bytes_beyond", [-1, 0])
def test_a_write_beyond_an_array_is_noticed(monkeypatch, bytes_beyond):
    """The emulator has zones of its own; a card has these."""
    fake_cupy.install(monkeypatch)
    guards = check.Guards()
    with guards:
        x = fake_cupy.cupy.empty((3, 5), "float16")
        y = fake_cupy.cupy.empty_like(x)
    assert not np.array_equal(x.get().view("uint16"), y.get().view("uint16"))  # what is copied from zone to zone shows
    x[...] = 1.0
    guards.check()
    ctypes.memset(x.data.ptr + (x.nbytes if bytes_beyond == 0 else -1), 7, 1)
    with pytest.raises(check.Failure, match="it wrote outside of an array of 30 bytes"):
        guards.check()


def subject_of(kernel):
    return cases.SUBJECTS[kernel]


class Gelu:
    """A kernel of NumPy functions that is right but for what a class derived from it does."""

    fits = staticmethod(lambda *arguments: True)

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        reference = subject_of(cuda.GELU).operation
        return reference.forward(ctx, x)

    @staticmethod
    def backward(ctx, g):
        return subject_of(cuda.GELU).operation.backward(ctx, g)


class ChangesItsInput(Gelu):
    @staticmethod
    def backward(ctx, g):
        dx = Gelu.backward(ctx, g)
        g[...] = 0
        ctx.x[...] = 0
        return dx

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return Gelu.forward(ctx, x)


class LosesANaN(Gelu):
    @staticmethod
    def forward(ctx, x):
        y = Gelu.forward(ctx, x)
        y[..., -1] = np.nan
        return y


class HasAnotherShape(Gelu):
    @staticmethod
    def forward(ctx, x):
        return Gelu.forward(ctx, x).reshape(-1)


class DoesNotFit(Gelu):
    fits = staticmethod(lambda *arguments: False)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (ChangesItsInput, "it changed an array that was given to it"),
        (LosesANaN, "is off by nan of its largest number"),
        (HasAnotherShape, r"a result has shape \(32,\); expected \(4, 8\)"),
        (DoesNotFit, "it does not take these arrays"),
    ],
)
def test_what_a_kernel_may_not_do(monkeypatch, kernel, message):
    fake_cupy.install(monkeypatch)
    numbers = cases.Numbers(np.dtype("float32"))
    case = cases.Case((numbers(4, 8),), numbers(4, 8))
    check.check_case(subject_of(cuda.GELU)._replace(kernel=Gelu), case)
    with pytest.raises(check.Failure, match=message):
        check.check_case(subject_of(cuda.GELU)._replace(kernel=kernel), case)


class KeepsAll:
    """Dropout that drops nothing, or the same at every draw."""

    fits = staticmethod(lambda *arguments: True)

    @staticmethod
    def forward(ctx, x, p):
        return x * (1 / (1 - p))

    @staticmethod
    def backward(ctx, g):
        return g * 1.25


class DropsTheSame(KeepsAll):
    @staticmethod
    def forward(ctx, x, p):
        ctx.mask = fake_cupy.cupy.asarray(np.random.default_rng(0).random(x.shape) >= p)
        return x * ctx.mask / (1 - p)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.mask * 1.25


@pytest.mark.parametrize(
    ("kernel", "message"),
    [(KeepsAll, "two draws dropped the same elements"), (DropsTheSame, "two draws dropped the same elements")],
)
def test_dropout_has_to_drop(monkeypatch, kernel, message):
    fake_cupy.install(monkeypatch)
    numbers = cases.Numbers(np.dtype("float32"))
    case = cases.Case((numbers(40, 80), 0.2), numbers(40, 80), drops=True)
    subject = subject_of(cuda.Dropout)._replace(kernel=kernel)
    with pytest.raises(check.Failure, match=message):
        check.check_case(subject, case)
    if kernel is KeepsAll:
        with pytest.raises(check.Failure, match=r"it kept 1\.000 of 3200 elements; expected 0\.800"):
            check.reference(subject, case, check.run(subject, case)[0])


@pytest.mark.parametrize("breaks", ["writes nothing", "writes zeros", "fails"])
def test_random_words_that_are_wrong(monkeypatch, breaks):
    def broken(kernel, grid, threads, arguments, shared_bytes):
        if breaks == "fails":
            raise RuntimeError("no such instruction")
        if breaks == "writes zeros":
            arguments[-1][...] = 0

    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(launch, "emulate", broken)
    (subject,) = (subject for subject in cases.SUBJECTS.values() if subject.name == "RandomWords")
    with pytest.raises((check.Failure, RuntimeError), match=r"is off by .* allowed are 0|two runs|no such instruction"):
        check.largest_error(subject, "uint32", [()])


def test_every_kernel_is_checked(monkeypatch):
    """Every function of the .cu files is launched, and every kernel of an operation is among the subjects."""
    fake_cupy.install(monkeypatch)
    seen = set()
    monkeypatch.setattr(launch, "emulate", lambda kernel, *_: seen.add((kernel.file, kernel.name)))
    with fake_cublaslt(), np.errstate(all="ignore"):  # nothing is computed, and what memory holds is multiplied
        for subject in cases.SUBJECTS.values():
            for text in subject.texts:
                for case in subject.cases(cases.Numbers(np.dtype(subject.dtypes()[0])), *text):
                    check.run(subject, case)
    written = {
        (path.name, name)
        for path in launch.FOLDER.glob("*.cu")
        for name in re.findall(r"__global__ (?:__launch_bounds__\(\w+\) )?void (\w+)\(", path.read_text("utf-8"))
    }
    assert seen == written
    named = {kernel for operation in all_operations() for kernel in vars(operation).get("kernels", {}).get("cuda", ())}
    assert named == {kernel for kernel in cases.SUBJECTS if kernel.__module__ != cases.__name__}


def all_operations():
    waiting = [mg.Function]
    while waiting:
        operation = waiting.pop()
        waiting += operation.__subclasses__()
        if operation.__module__.startswith("minigrad.ops."):
            yield operation


def test_every_text_that_runs_has_been_checked(monkeypatch):
    """Kernels are compiled for constants; a call needs none that `text_of` does not tell, or the check has not had."""
    fake_cupy.install(monkeypatch)
    seen = set()
    monkeypatch.setattr(launch, "emulate", lambda kernel, *_: seen.add((kernel.file, kernel.constants)))
    monkeypatch.setattr(launch, "source", lambda *_: "")
    rng = np.random.default_rng(0)

    def call(kernel, g, *arguments):
        on_gpu = [fake_cupy.cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments]
        assert kernel.fits(*on_gpu)
        subject = subject_of(kernel)
        ctx = check.Call(subject.operation, tuple(check.is_floating(x) for x in arguments))
        kernel.forward(ctx, *on_gpu)
        kernel.backward(ctx, fake_cupy.cupy.asarray(g))
        return subject, subject.text_of(*on_gpu)

    def new(*shape):
        return rng.standard_normal(shape).astype(dtype)

    for dtype in ("float32", ml_dtypes.bfloat16):
        for _ in range(12):
            rows, C, V = (int(n) for n in rng.integers(1, 200, 3) * rng.choice([1, 2, 4, 8], 3))
            calls = [
                (cuda.GELU, new(rows, C), new(rows, C)),
                (cuda.Softmax, new(rows, C), new(rows, C), -1),
                (cuda.Dropout, new(rows, C), new(rows, C), 0.3),
                (cuda.LayerNorm, new(rows, C), new(rows, C), new(C), new(C), 1e-5),
                (cuda.Embedding, new(rows, C), rng.integers(0, V, rows), new(V, C)),
                (cuda.CrossEntropy, np.float32(1), new(rows, V), rng.integers(0, V, rows), -100, "mean"),
            ]
            if dtype != "float32":
                heads = [new(1, 2, 5, 16 * (1 + C % 8)) for _ in range(4)]
                calls.append((cuda.FlashAttention, *heads, bool(C % 2), None, 0.1 * (rows % 2)))
            for kernel, *arguments in calls:
                seen.clear()
                subject, text = call(kernel, *arguments)
                needed = set(seen)
                seen.clear()
                numbers = cases.Numbers(np.dtype(dtype))
                for case in subject.cases(numbers, *text):
                    call(kernel, case.g, *case.arguments)
                assert needed <= seen, f"{subject.name} {text}"


# What decides which kernels run


def test_what_says_which_kernels_run(card, monkeypatch):
    says(monkeypatch, *all_passed(but=["Softmax float32", "AdamW float32"]))
    assert kernel_of_gelu() is cuda.GELU
    assert kernels.in_use("cuda:0")
    assert kernels.in_use("cuda")
    assert kernels.in_use("cuda:0", "float32", "GELU", "Dropout")
    assert not kernels.in_use("cuda:0", np.dtype("float32"), "GELU", "Softmax")
    assert not kernels.in_use("cuda:0", "float32")
    assert not kernels.in_use("cuda:0", "bfloat16")  # none of these has been checked
    with kernels.reference():
        assert kernel_of_gelu() is not cuda.GELU
        assert not kernels.in_use("cuda:0", "float32", "GELU")
    with kernels.using("cpu", "cuda"):  # whether or not they have passed
        assert kernels.in_use("cuda:0", "bfloat16")
        x = mg.Tensor(np.ones((2, 3), np.float32), device="cuda", requires_grad=True)
        assert F.softmax(x).origin[0].implementation is cuda.Softmax
    assert F.softmax(x).origin[0].implementation is not cuda.Softmax
    parameter = mg.Tensor(np.ones(3, np.float32), device="cuda").data
    assert not fused.usable([parameter], [parameter])
    with kernels.using("cuda"):
        assert fused.usable([parameter], [parameter])


@pytest.mark.parametrize(("value", "runs"), [("cuda", "GELU"), ("reference", "GELUTanh")])
def test_the_environment_variable_trusts_kernels_or_leaves_them_out(value, runs):
    code = (
        "import pytest, numpy as np, minigrad as mg; from minigrad import kernels; from minigrad.ops import activation;"
        "from tests.fakes import cupy; cupy.install(pytest.MonkeyPatch()); x = mg.Tensor([1.0], device='cuda').data;"
        "print(kernels.implementation(activation.GELUTanh, 'cuda:0', [x]).__name__, kernels.in_use('cuda:0'));"
        "import sys; assert 'minigrad.kernels.cuda.proof' not in sys.modules"
    )
    environment = {**os.environ, "MINIGRAD_KERNELS": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [runs, str(value == "cuda")], done.stderr


def test_importing_minigrad_and_using_the_cpu_asks_for_no_gpu():
    code = (
        "import sys, minigrad as mg; from minigrad import functional as F; F.gelu(mg.Tensor([1.0])); "
        "assert 'cupy' not in sys.modules and 'minigrad.kernels.cuda.proof' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernel_of_somebody_elses_operation_is_never_taken_as_checked(card):
    @kernels.accelerated(cuda=type("Mine", (Gelu,), {}))
    class Operation(mg.Function):
        forward, backward = staticmethod(lambda ctx, x: x * 2), staticmethod(lambda ctx, g: g * 2)

    x = mg.Tensor(np.ones(3, np.float32), device="cuda", requires_grad=True)
    assert Operation.apply(x).origin[0].implementation is Operation


@pytest.fixture
def answered(cache, monkeypatch):
    """A GPU of which is known that all kernels pass, but those that are given."""
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(launch, "emulate", lambda *arguments: None)  # which makes it one of compute capability 8.0

    def answer(*but):
        units = [f"{subject.name} {dtype}" for subject, dtype in cases.units()]
        assert set(but) <= set(units)
        says(monkeypatch, *all_passed(but, units))
        forget()
        for path in cache.glob("*.json"):
            path.unlink()

    return answer


def test_bfloat16_is_the_default_where_all_of_its_kernels_have_passed(answered, monkeypatch):
    answered()
    assert precision.choose("auto", "cuda:0") == "bfloat16"
    answered("FlashAttention float16")
    assert precision.choose("auto", "cuda:0") == "bfloat16"
    with pytest.raises(precision.ConfigError, match="not all of them run on cuda:0: .*proof shows; use 'float32'"):
        precision.choose("float16", "cuda:0")
    answered("LayerNorm bfloat16")
    assert precision.choose("auto", "cuda:0") == "float32"
    assert precision.choose("tf32", "cuda:0") == "tf32"
    monkeypatch.setattr("minigrad.cuda.get_device_capability", lambda device: (7, 5))
    answered()
    assert precision.choose("auto", "cuda:0") == "float32"


def test_a_step_is_a_graph_where_the_kernels_that_it_needs_have_passed(answered, tmp_path):
    for but, captured in [((), True), (("GELU float32",), True), (("AdamW float32",), False)]:
        answered(*but)
        assert mg.cuda.can_capture("cuda:0", "float32") is captured
        assert (new_gpu_trainer(tmp_path, dtype="float32").graph is not None) is captured
    assert not mg.cuda.can_capture("cpu", "float32")
    assert set(graph.NEEDED) <= {subject.name for subject in cases.SUBJECTS.values()}


# Numbers that are compiled into a kernel


def layer_norm(channels):
    x, gamma = (mg.Tensor(np.ones(shape, np.float32), device="cuda") for shape in ((2, channels), (channels,)))
    return F.layer_norm(mg.Tensor(x, requires_grad=True), gamma, gamma).origin[0].implementation


def test_a_kernel_for_other_numbers_is_checked_before_it_runs(answered, monkeypatch, capsys):
    answered()
    checked = []

    def largest_error(subject, dtype, texts):
        checked.append((subject.name, dtype, *texts))
        if texts == [(77,)]:
            raise check.Failure("it is wrong")
        return 0.0

    monkeypatch.setattr(proof, "largest_error", largest_error)
    assert layer_norm(768) is cuda.LayerNorm
    assert checked == []
    assert [layer_norm(40), layer_norm(40)] == [cuda.LayerNorm] * 2
    assert checked == [("LayerNorm", "float32", (40,))]
    capsys.readouterr()
    for _ in range(2):
        assert layer_norm(77) is not cuda.LayerNorm
    assert capsys.readouterr().err == (
        "minigrad: the CUDA kernel LayerNorm float32, compiled for (77,), failed its check on cuda:0 and stays off "
        f"(Failure: it is wrong); {answers.REPORT}\n"
    )


def test_memory_that_runs_out_in_this_process(answered, monkeypatch, capsys):
    def largest_error(*arguments):
        raise fake_cupy.OutOfMemoryError(512, 2**30)

    answered()
    monkeypatch.setattr(proof, "largest_error", largest_error)
    assert layer_norm(768) is cuda.LayerNorm
    capsys.readouterr()
    assert layer_norm(40) is not cuda.LayerNorm
    assert "compiled for (40,), could not be checked on cuda:0, so it stays off for now" in capsys.readouterr().err


def test_nothing_is_checked_while_a_step_is_captured(answered, monkeypatch):
    answered()
    checked = []
    monkeypatch.setattr(proof, "largest_error", lambda *arguments: checked.append(arguments))
    monkeypatch.setattr(graph, "is_capturing", lambda: True)
    assert layer_norm(768) is not cuda.LayerNorm  # not even in another process
    monkeypatch.setattr(graph, "is_capturing", lambda: False)
    assert layer_norm(768) is layer_norm(40) is cuda.LayerNorm
    assert len(checked) == 1
    monkeypatch.setattr(graph, "is_capturing", lambda: True)
    assert layer_norm(50) is not cuda.LayerNorm  # nothing runs now that could be compared
    assert layer_norm(40) is cuda.LayerNorm
    assert len(checked) == 1


@needs_compiler
def test_the_check_in_this_process_leaves_random_numbers_alone(card, monkeypatch):
    numbers = mg.random.get_state()
    subject = subject_of(cuda.Dropout)
    assert 0 < check.largest_error(subject, "float32", [()]) < 1e-6
    assert mg.random.get_state() == numbers


# The process that checks


def test_a_process_that_ends_or_says_nothing_is_followed_by_another(cache, monkeypatch):
    says(monkeypatch, *result("A float32"), {"started": "B float32"}, then="os.abort()")
    with pytest.raises(run.Unknown):  # the second ends before it has begun with a kernel
        run.prove(0)
    assert times_asked(cache) == 2
    then = 'if "B float32" in sys.argv: print(\'{"finished": true}\'); sys.exit()\ntime.sleep(60)'
    says(monkeypatch, *result("A float32"), {"started": "B float32"}, then=then)
    monkeypatch.setattr(run, "SILENCE", 0.7)
    results = run.prove(0)
    assert results["A float32"].failure == ""
    assert results["B float32"].failure == "did not end within 0.7 seconds"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_that_is_ended_from_outside_says_nothing_about_a_kernel(cache, monkeypatch, name):
    """As the system does where memory runs out."""
    says(monkeypatch, {"started": "A float32"}, then=f"import signal; os.kill(os.getpid(), signal.{name})")
    with pytest.raises(run.Unknown, match=f"the process that checks them was ended by {name}"):
        run.prove(0)


def test_an_error_that_stays_is_met_by_one_kernel_only(monkeypatch):
    """After it the process gives up, and another goes on."""
    working = iter([None, RuntimeError("cudaErrorIllegalAddress"), None, None])

    def works():
        if problem := next(working):
            raise problem

    def largest_error(subject, dtype, texts):
        if (subject.name, dtype) == ("GELU", "float32"):
            raise RuntimeError("cudaErrorIllegalAddress")
        return 0.0

    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(run, "works", works)
    monkeypatch.setattr(run, "largest_error", largest_error)
    messages = []
    run.check_all(0, [], messages.append)
    assert messages[-1]["unit"] == "GELU float32"
    assert messages[-1]["failure"] == "RuntimeError: cudaErrorIllegalAddress"
    run.check_all(0, ["GELU float32"], messages.append)
    assert messages[-1] == {"finished": True}


UNKNOWN = [
    ({"unknown": "OutOfMemoryError: Out of memory allocating 512 bytes"}, "Out of memory allocating 512 bytes"),
    ({"unknown": 'DeviceError: device "cuda:0" does not work (cudaErrorDevicesUnavailable)'}, "DevicesUnavailable"),
]


@pytest.mark.parametrize(("message", "words"), UNKNOWN)
def test_what_is_not_known_is_off_for_now_and_not_kept(card, cache, monkeypatch, capsys, message, words):
    says(monkeypatch, *result("GELU float32"), message)
    for _ in range(2):
        assert kernel_of_gelu() is not cuda.GELU
    said = capsys.readouterr().err.splitlines()[1:]
    assert len(said) == 1
    assert said[0].startswith("minigrad: the CUDA kernels could not be checked on cuda:0, so they stay off for now (")
    assert words in said[0]
    assert list(cache.glob("*.json")) == []


@pytest.mark.parametrize(
    "error",
    [
        fake_cupy.OutOfMemoryError(512, 2**30),
        fake_cupy.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
        cublaslt.CublasError("cuBLASLt answered with status 3 for its start"),
        OSError(28, "No space left on device"),
    ],
)
def test_errors_that_say_nothing_about_a_kernel(monkeypatch, error):
    def largest_error(*arguments):
        raise error

    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(run, "largest_error", largest_error)
    messages = []
    run.check_all(0, [], messages.append)
    assert list(messages[-1]) == ["unknown"]


@pytest.mark.parametrize("executable", ["/nothing/here", "", None])
def test_without_an_executable_kernels_are_off(card, monkeypatch, capsys, executable):
    monkeypatch.setattr(run, "COMMAND", [executable, "-m", "minigrad.kernels.cuda.proof"])
    assert kernel_of_gelu() is not cuda.GELU
    assert "no process could be started to check them" in capsys.readouterr().err


# What is kept


def test_an_answer_that_is_not_whole_is_asked_for_again(card, cache, monkeypatch):
    says(monkeypatch, *all_passed())
    assert answers.answer(0) == dict.fromkeys(UNITS, "")
    (path,) = cache.glob("*.json")
    whole = path.read_text()
    other = json.loads(whole)
    other["key"]["driver"] = [1, ""]
    fewer = json.loads(whole)
    del fewer["results"]["GELU float32"]
    texts = [whole[:100], "", "[]", "null", whole.replace(': ""', ": null"), json.dumps(other), json.dumps(fewer)]
    for i, text in enumerate(texts):
        path.write_text(text)
        assert answers.answer(0) == dict.fromkeys(UNITS, "")
        assert path.read_text() == whole
        assert times_asked(cache) == i + 2
    assert answers.answer(0)
    assert times_asked(cache) == len(texts) + 1
    assert sorted(p.suffix for p in cache.iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize("what", ["driver", "compute capability", "sources"])
def test_an_answer_is_for_one_card_driver_and_text(card, monkeypatch, what):
    before, _ = answers.describe(0)
    if what == "driver":
        monkeypatch.setattr(fake_cupy.cupy.cuda.runtime, "driverGetVersion", lambda: 13000)
    elif what == "compute capability":
        monkeypatch.setattr(launch, "compute_capability", lambda: 90)
    else:
        monkeypatch.setattr(launch, "FOLDER", launch.FOLDER / "proof")
    after, _ = answers.describe(0)
    assert [name for name in before if before[name] != after[name]] == [what]
    assert answers.path_of(before) != answers.path_of(after)


def test_an_answer_that_cannot_be_kept_is_used_all_the_same(card, cache, monkeypatch, capsys):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the folder would be")
    says(monkeypatch, *all_passed())
    assert kernel_of_gelu() is cuda.GELU
    said = capsys.readouterr().err.splitlines()[1:]
    assert len(said) == 1
    assert said[0].startswith("minigrad: what the check of the CUDA kernels found cannot be kept (")
    assert said[0].endswith("set MINIGRAD_CACHE to a folder that can be written")


def test_of_two_processes_at_once_one_checks_and_both_know(cache, monkeypatch):
    says(monkeypatch, *all_passed(), then="time.sleep(0.5)")
    code = (
        "import json, sys, pytest; from tests.cuda import prove_on_emulator as p; m = pytest.MonkeyPatch();"
        "p.few_kernels(m); p.fake_cupy.install(m); from minigrad.kernels.cuda.proof import answers, run;"
        "run.COMMAND = json.loads(sys.argv[1]);"
        "print(json.dumps(answers.answer(0)))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, json.dumps(run.COMMAND)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        assert json.loads(process.communicate()[0]) == dict.fromkeys(UNITS, "")
    assert times_asked(cache) == 1


def test_of_two_threads_at_once_one_asks(card, cache, monkeypatch):
    says(monkeypatch, *all_passed(), then="time.sleep(0.2)")
    found = []
    ask = lambda: found.append(kernels.in_use("cuda:0", "float32", "GELU"))  # noqa: E731 (the emulator has one thread)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3
    assert times_asked(cache) == 1


# The command


@pytest.mark.parametrize(("failing", "status"), [([], 0), (["GELU float32"], 1)])
def test_the_command_prints_a_table_and_keeps_the_answer(card, cache, monkeypatch, capsys, failing, status):
    says(monkeypatch, *all_passed(failing))
    assert command.main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert f"device: {NAME}" in lines
    assert f"GELU              float32      1.0e-07     0.10  {'it is wrong' if failing else 'passed'}" in lines
    assert lines[-1].startswith(f"{6 - len(failing)} passed, {len(failing)} failed.")
    assert answers.answer(0)["GELU float32"] == ("it is wrong" if failing else "")
    assert times_asked(cache) == 1


def test_the_command_on_a_machine_without_a_gpu():
    done = subprocess.run([sys.executable, "-m", "minigrad.kernels.cuda.proof"], capture_output=True, text=True)
    if not mg.cuda_is_available():
        assert done.returncode == 2
        assert done.stderr.startswith("the kernels could not be checked: ")
