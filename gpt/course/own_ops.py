"""Your own operations in place of the engine's: load them from a folder, check them, and compare two training runs.

An operation replaces the engine's operation of the same name:

    class LayerNorm(mg.Function):       # in FOLDER/my_layer_norm.py
        @staticmethod
        def forward(ctx, x, gamma, beta, eps): …
        @staticmethod
        def backward(ctx, g): …

`python examples/train_shakespeare.py --ops FOLDER` trains with it. A backward that raises NotImplementedError counts as
not written yet, and the engine's operation is used.
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
TOLERANCE = 1e-4  # nats; in the first hundred steps, rounding changed a float32 loss by less than 1e-6


class OwnOperation(NamedTuple):
    """The engine's operation, the user's class that replaces it, and the file of that class."""

    engine: type[mg.Function]
    own: type[mg.Function]
    file: Path

    @property
    def name(self) -> str:
        return self.engine.__name__


# Loading


def load_operations(path: Path) -> list[OwnOperation]:
    """The operations in a Python file, or in all Python files of a folder that define or import a class.

    In a folder, test_*.py, conftest.py and _*.py are left out.

    Raises `ConfigError` for a file that cannot be imported (with the line, if known), a file without operations, an
    operation that the engine does not have, two operations of the same name, and a folder without operations.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    path = path.resolve()  # the name that tracebacks have, which `where` searches
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    found: dict[str, OwnOperation] = {}
    for file in files:
        if path.is_dir() and file.name.startswith(("test_", "conftest.", "_")):
            continue
        module = load_module(file)
        if path.is_dir() and not any(isinstance(value, type) for value in vars(module).values()):
            continue  # functions alone: a helper, or an exercise without an operation
        for operation in operations_in(module, file):
            if operation.name in found:
                raise ConfigError(f"{file}: {operation.name} is also in {found[operation.name].file}")
            found[operation.name] = operation
    if not found:
        raise ConfigError(f"{path}: expected Python files with classes such as LayerNorm, found no operations")
    return list(found.values())


def operations_in(module: ModuleType, file: Path) -> list[OwnOperation]:
    """The operations that a Python file defines; at least one."""
    engine = {operation.__name__: operation for operation in operations()}
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, mg.Function) and value.__module__ == module.__name__
    ]
    if not own:
        raise ConfigError(f"{file}: expected a class derived from minigrad.Function, found none")
    for each in own:
        if each.__name__ not in engine:
            near = difflib.get_close_matches(each.__name__, engine, n=1)
            hint = f"did you mean {near[0]}?" if near else "see minigrad/ops for the names"
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
        raise ConfigError(f"{file}: not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
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
    """The file, and the line of it that raised the error, if there is one."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"{file}, line {lines[-1]}" if lines else str(file)


# Checking


def check(operation: OwnOperation) -> str:
    """RIGHT if the gradients agree with finite differences of the forward, else WRONG; or NOT_WRITTEN.

    The inputs are those of the engine's own gradient checks of the operation. Raises `ConfigError` if the operation
    cannot train: it raises an error, whose line is then named, or its gradients have the wrong number, shape or dtype.
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
    """Run a function forward and backward in training's dtype, so that the tape rejects gradients of another dtype."""
    tensors = [mg.Tensor(x.astype("float32"), requires_grad=True) if x.dtype.kind == "f" else x for x in inputs]
    result = fn(*tensors)
    for y in result if isinstance(result, tuple) else [result]:
        y.backward(np.ones(y.shape, y.dtype), retain_graph=True)


def operations_of(config: GPTConfig) -> set[str]:
    """The names of the operations in the loss of such a GPT, read from the tape of a small one."""
    n_embd = 2 * config.n_head
    small = dataclasses.replace(config, n_layer=1, n_embd=n_embd, vocab_size=2, block_size=2, checkpoint=False)
    ids = np.zeros((1, 2), int)
    _, loss = GPT(small)(ids, ids)
    assert loss is not None
    return {node.function.__name__ for node in nodes_of(loss)}


# Comparing two runs


class Comparison(NamedTuple):
    """The losses of two runs that differ only in their operations, at the steps that both logged."""

    steps: list[int]
    own: list[float]
    engine: list[float]
    stopped_at: int | None = None  # the first step that the engine's run logged after the last step of the own run

    @classmethod
    def of(cls, own_rows: list[dict[str, Any]], engine_rows: list[dict[str, Any]]) -> Comparison:
        """Compare the rows of the two runs' metrics."""
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
    def separate_at(self) -> int | None:
        """The first step where the losses differ by more than `TOLERANCE` or the own loss is missing; None if none."""
        differ = (step for step, d in zip(self.steps, self.differences, strict=True) if d > TOLERANCE)
        return next(differ, self.stopped_at)

    def table(self, most: int = 12) -> str:
        """The losses side by side, at up to `most` steps, including the first and the last."""
        n = len(self.steps)
        shown = range(n) if n <= most else sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})
        lines = [f"{'step':>6}  {'yours':>8}  {'engine':>8}  difference"]
        for i in shown:
            lines.append(f"{self.steps[i]:>6}  {self.own[i]:8.4f}  {self.engine[i]:8.4f}  {self.differences[i]:10.1e}")
        return "\n".join(lines)

    def verdict(self) -> str:
        """How far apart the two curves are, in one sentence."""
        if not self.steps:
            return "no step was logged by both runs"
        largest = max(self.differences)
        at = self.steps[self.differences.index(largest)]
        if self.separate_at is not None and self.separate_at == self.stopped_at:
            return f"the curves separate: with your operations there is no loss from step {self.stopped_at} on"
        if self.separate_at is None and self.steps == [1]:
            return "the loss of step 1 shows nothing, because no backward has changed the weights yet: train for longer"
        if largest == 0:
            return f"the curves agree: the losses are identical, bit for bit, up to step {self.steps[-1]}"
        if self.separate_at is None:
            return f"the curves agree: the losses differ by at most {largest:.1e} (step {at})"
        return f"the curves separate at step {self.separate_at}: the losses differ by up to {largest:.4f} (step {at})"

    def save(self, out: Path) -> list[Path]:
        """Write ops.csv and, with matplotlib, ops.png to the folder. Returns the paths written."""
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
        axes.plot(self.steps, self.own, label="your operations", linewidth=1)
        axes.grid(alpha=0.3)
        axes.legend()
        return [out / "ops.csv", save_figure(figure, out / "ops.png")]
