"""Operations of your own in place of the engine's: finding them in a folder, and training a GPT with them beside one
without.

An operation stands for the engine's of the same name:

    class LayerNorm(mg.Function):       # in FOLDER/my_layer_norm.py
        @staticmethod
        def forward(ctx, x, gamma, beta, eps): …
        @staticmethod
        def backward(ctx, g): …

`python examples/train_shakespeare.py --ops FOLDER` then trains with it. A backward that raises NotImplementedError is
not written yet, and the engine's stays in its place.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import importlib
import importlib.util
import io
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad import kernels
from minigrad.autograd import AutogradError
from minigrad.gradcheck.cases import cases, operations
from minigrad.serialization import write_atomically
from minigrad.viz.tape import nodes_of

from ..config import GPTConfig
from ..errors import ConfigError
from ..figures import new_figure, save_figure
from ..model import GPT

RIGHT, WRONG, NOT_WRITTEN = "right", "wrong", "not written yet"
PARTED = 1e-4  # nats: in the first hundred steps rounding moved a float32 loss by less than 1e-6


class OwnOperation(NamedTuple):
    """A class of the user's, the engine's operation that it stands for, and the file that it is in."""

    engine: type[mg.Function]
    own: type[mg.Function]
    file: Path

    @property
    def name(self) -> str:
        return self.engine.__name__


# Finding them


def load_operations(path: Path) -> list[OwnOperation]:
    """The operations in a Python file, or in all Python files of a folder but test_*.py, conftest.py and _*.py.

    Raises `ConfigError` for a file that cannot be imported, naming the line where there is one; for a file that has no
    operation, or has one that the engine does not know; for two of one name; and for a folder without any.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    path = path.resolve()  # as tracebacks name it, in which `where` looks for it
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    found: dict[str, OwnOperation] = {}
    for file in files:
        if path.is_dir() and file.name.startswith(("test_", "conftest.", "_")):
            continue
        for operation in operations_in(file):
            if operation.name in found:
                raise ConfigError(f"{file}: {operation.name} is also in {found[operation.name].file}")
            found[operation.name] = operation
    if not found:
        raise ConfigError(f"{path}: found no operations there; expected Python files with classes such as LayerNorm")
    return list(found.values())


def operations_in(file: Path) -> list[OwnOperation]:
    """The operations that a Python file defines, at least one."""
    module = load_module(file)
    engine = {operation.__name__: operation for operation in operations()}
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, mg.Function) and value.__module__ == module.__name__
    ]
    if not own:
        raise ConfigError(f"{file}: has no operation; expected a class derived from minigrad.Function")
    for each in own:
        if each.__name__ not in engine:
            near = difflib.get_close_matches(each.__name__, engine, n=1)
            hint = f"did you mean {near[0]}?" if near else "see minigrad/ops for their names"
            raise ConfigError(f"{file}: {each.__name__} is not an operation of the engine; {hint}")
        try:
            kernels.replacing({engine[each.__name__]: each})
        except TypeError as error:
            raise ConfigError(f"{file}: {error}") from error
    return [OwnOperation(engine[each.__name__], each, file) for each in own]


def load_module(file: Path) -> ModuleType:
    """Run a Python file. It may import its neighbors."""
    spec = importlib.util.spec_from_file_location(f"own_ops_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()}" if error.text else ""
        raise ConfigError(f"{error.filename or file}{line}: {error.msg}{text}") from error
    except Exception as error:
        raise ConfigError(f"{where(error, file)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def where(error: BaseException, file: Path) -> str:
    """The file, and the line of it at which an error came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"{file}, line {lines[-1]}" if lines else str(file)


# Checking them


def check(operation: OwnOperation) -> str:
    """RIGHT or WRONG: whether the gradients agree with finite differences of the forward; or NOT_WRITTEN.

    It is tried on the engine's own checks of the operation that it stands for. Raises `ConfigError` if it cannot train:
    it raises an error, whose line is then named, or its gradients have the wrong number, shape or dtype.
    """
    verdict = RIGHT
    with kernels.replacing({operation.engine: operation.own}):
        for case in cases():
            if case.operation != operation.name:
                continue
            try:
                backward_in_float32(case.fn, case.inputs)
                mg.gradcheck(case.fn, case.inputs)
            except NotImplementedError:
                return NOT_WRITTEN
            except mg.GradcheckError:
                verdict = WRONG
            except AutogradError as error:
                raise ConfigError(f"{operation.file}: {error}") from error
            except Exception as error:
                raise ConfigError(f"{where(error, operation.file)}: {type(error).__name__}: {error}") from error
    return verdict


def backward_in_float32(fn: Any, inputs: Any) -> None:
    """Run a function forward and backward as training does, so that the tape refuses gradients of another dtype."""
    tensors = [mg.Tensor(x.astype("float32"), requires_grad=True) if x.dtype.kind == "f" else x for x in inputs]
    result = fn(*tensors)
    for y in result if isinstance(result, tuple) else [result]:
        y.backward(np.ones(y.shape, y.dtype), retain_graph=True)


def operations_of(config: GPTConfig) -> set[str]:
    """The names of the operations that the loss of such a GPT is made of, found on the tape of a small one."""
    n_embd = 2 * config.n_head
    small = dataclasses.replace(config, n_layer=1, n_embd=n_embd, vocab_size=2, block_size=2, checkpoint=False)
    ids = np.zeros((1, 2), int)
    _, loss = GPT(small)(ids, ids)
    assert loss is not None
    return {node.function.__name__ for node in nodes_of(loss)}


# Comparing two runs


class Comparison(NamedTuple):
    """The losses of two runs that differ in their operations alone, at the steps that both have logged."""

    steps: list[int]
    own: list[float]
    engine: list[float]
    stopped_at: int | None = None  # the first step at which the engine's has a loss and one's own has none any more

    @classmethod
    def of(cls, own_rows: list[dict[str, Any]], engine_rows: list[dict[str, Any]]) -> Comparison:
        """From the rows of the two runs' metrics."""
        own, engine = (
            {row["iteration"]: row["loss"] for row in rows if "loss" in row} for rows in (own_rows, engine_rows)
        )
        steps = sorted(own.keys() & engine.keys())
        stopped_at = min((step for step in engine if step > max(own, default=0)), default=None)
        return cls(steps, [own[step] for step in steps], [engine[step] for step in steps], stopped_at)

    @property
    def differences(self) -> list[float]:
        return [abs(a - b) for a, b in zip(self.own, self.engine, strict=True)]

    @property
    def parted_at(self) -> int | None:
        """The first step at which the losses differ by more than `PARTED`, or one's own is missing; or None."""
        differ = (step for step, d in zip(self.steps, self.differences, strict=True) if d > PARTED)
        return next(differ, self.stopped_at)

    def table(self, most: int = 12) -> str:
        """The losses side by side, at `most` steps or fewer, the first and the last among them."""
        n = len(self.steps)
        shown = range(n) if n <= most else sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})
        lines = [f"{'step':>6}  {'yours':>8}  {'engine':>8}  difference"]
        for i in shown:
            lines.append(f"{self.steps[i]:>6}  {self.own[i]:8.4f}  {self.engine[i]:8.4f}  {self.differences[i]:10.1e}")
        return "\n".join(lines)

    def verdict(self) -> str:
        """How far the two curves are from each other, in one sentence."""
        if not self.steps:
            return "there is no step that both runs have logged"
        largest = max(self.differences)
        at = self.steps[self.differences.index(largest)]
        if self.parted_at is not None and self.parted_at == self.stopped_at:
            return f"the curves part: with your operations there is no loss at step {self.stopped_at} any more"
        if self.parted_at is None and self.steps == [1]:
            return "the loss of step 1, before the first backward has changed anything, says nothing: train for longer"
        if largest == 0:
            return f"the curves are one: the losses are the same, bit for bit, to step {self.steps[-1]}"
        if self.parted_at is None:
            return f"the curves are one: the losses differ by {largest:.1e} at most (step {at})"
        return f"the curves part at step {self.parted_at}: the losses differ by up to {largest:.4f} (step {at})"

    def save(self, out: Path) -> list[Path]:
        """Write ops.csv and, with matplotlib, ops.png into the folder; the files written."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["iteration", "own", "engine"])
        writer.writerows(zip(self.steps, self.own, self.engine, strict=True))
        write_atomically(out / "ops.csv", text.getvalue().encode())
        figure = new_figure()
        if figure is None:
            return [out / "ops.csv"]
        axes = figure.add_subplot(xlabel="step", ylabel="loss of the training batch (nats per token)")
        axes.plot(self.steps, self.engine, label="the engine's operations", linewidth=3, alpha=0.4)
        axes.plot(self.steps, self.own, label="with yours", linewidth=1)
        axes.grid(alpha=0.3)
        axes.legend()
        return [out / "ops.csv", save_figure(figure, out / "ops.png")]
