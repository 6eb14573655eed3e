"""`trace`: a backward pass that records every step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar, TextIO

import numpy as np

from ..autograd import Context, Variable, backward, input_gradients
from ..backend import Array, get_array_module
from ..nn import Module
from .tape import Kept, Tape, norm, short_bytes, short_number

WIDTH = 120
LONGEST_PATH = 18
MOST_MODULES = 20  # lines of the summary by module


@dataclass(frozen=True)
class Row:
    """One step of the backward pass: an operation, what it saved, how long it took."""

    operation: str
    path: str  # of the module that called it, as "h.0.attn.c_attn"
    calls: tuple[str, ...]  # the modules around it, the outermost first, as ("GPT", "h.0 (Block)", …)
    inputs: tuple[tuple[int, ...], ...]  # shapes of the inputs that take a gradient
    outputs: tuple[tuple[int, ...], ...]
    dtype: str  # of the outputs
    saved: tuple[tuple[int, ...], ...]  # shapes of the arrays saved for backward
    saved_bytes: int
    forward_ms: float
    backward_ms: float
    grad_norm: float  # of the gradient that reached it, over all its outputs
    count: ClassVar[int] = 1


@dataclass(frozen=True)
class Total:
    """The sum of several rows."""

    name: str
    count: int
    forward_ms: float
    backward_ms: float
    saved_bytes: int

    @classmethod
    def of(cls, name: str, rows: Sequence[Row | Total]) -> Total:
        return cls(
            name,
            sum(row.count for row in rows),
            sum(row.forward_ms for row in rows),
            sum(row.backward_ms for row in rows),
            sum(row.saved_bytes for row in rows),
        )

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Trace:
    """What `trace` measured: `rows` in the order of the backward pass. str() gives a table and two summaries."""

    rows: tuple[Row, ...]
    unreached: int  # operations that no gradient reached
    on_gpu: bool

    @property
    def total(self) -> Total:
        return Total.of("total", self.rows)

    def by_operation(self) -> list[Total]:
        """The totals of each kind of operation, the slowest first."""
        return sorted(self._grouped(lambda row: row.operation), key=lambda total: -total.ms)

    def by_module(self, depth: int | None = None) -> list[Total]:
        """The totals of each module with all that it calls, in forward order.

        depth: the depth of these modules, 0 for the outermost; by default the greatest that gives at most 20 lines.
        Operations that an outer module runs itself count for that module.
        """
        if depth is None:
            deepest = max((len(row.calls) for row in self.rows), default=1) - 1
            fits = (d for d in range(deepest, 0, -1) if len(self.by_module(d)) <= MOST_MODULES)
            depth = next(fits, 0)

        callers = {call for row in self.rows for call in row.calls[:-1]}

        def module(row: Row) -> str:
            if not row.calls:
                return "outside of modules"
            if len(row.calls) > depth:
                return row.calls[depth]
            return row.calls[-1] + " itself" * (row.calls[-1] in callers)

        return self._grouped(module)

    def _grouped(self, key: Callable[[Row], str]) -> list[Total]:
        groups: dict[str, list[Row]] = {}
        for row in reversed(self.rows):
            groups.setdefault(key(row), []).append(row)
        return [Total.of(name, rows) for name, rows in groups.items()]

    def table(self, limit: int = 60) -> str:
        """As text: the rows (if there are more than `limit`, without the middle), both summaries, the total."""
        total = self.total
        parts = []
        if self.rows:
            parts += [self._steps(limit), self._summary("by operation", self.by_operation())]
        if any(row.calls for row in self.rows):
            parts.append(self._summary("by module", self.by_module()))
        notes = [
            f"{total.count:,} operations: {total.forward_ms:.3f} ms forward, {total.backward_ms:.3f} ms backward, "
            f"{short_bytes(total.saved_bytes)} saved"
            + (f"; no gradient reached {self.unreached:,} more" if self.unreached else ""),
            "inputs: those that take a gradient. saved: bytes, number and shapes of the arrays kept for the backward;",
            "memory counts once, where the forward saved it first, and not at all if a parameter or another leaf holds",
            "it. 1 kB is 1000 bytes.",
            "|grad|: norm of the gradient with respect to the output, as it arrived in the backward.",
        ]
        if self.on_gpu:
            notes.append("On a GPU, forward times are launch times only; backward times include waiting for the GPU.")
        return "\n\n".join([*parts, "\n".join(notes)])

    def _steps(self, limit: int) -> str:
        dtypes = sorted({row.dtype for row in self.rows})
        heads = ["", "operation", "module", "inputs", "output", "saved", "dtype", "fwd ms", "bwd ms", "|grad|"]
        lines = [
            [
                str(i + 1),
                row.operation,
                row.path if len(row.path) <= LONGEST_PATH else "…" + row.path[1 - LONGEST_PATH :],
                _shapes(row.inputs),
                _shapes(row.outputs),
                _saved(row),
                row.dtype,
                f"{row.forward_ms:.3f}",
                f"{row.backward_ms:.3f}",
                short_number(row.grad_norm),
            ]
            for i, row in enumerate(self.rows)
        ]
        left_out = len(lines) - max(limit, 2)
        if left_out > 0:
            start = -(-max(limit, 2) // 2)
            lines[start : start + left_out] = [["", f"… {left_out:,} more …", *[""] * (len(heads) - 2)]]
        if len(dtypes) == 1:  # one dtype is named in the title instead of a column
            for line in [heads, *lines]:
                del line[6]
        title = f"The backward pass, step by step{f', all {dtypes[0]}' if len(dtypes) == 1 else ''}"
        least = {"saved": 22, "inputs": 12, "output": 10}
        return f"{title}\n{_aligned([heads, *lines], texts=range(1, len(heads) - 3), least=least)}"

    def _summary(self, title: str, totals: list[Total]) -> str:
        if len(totals) > MOST_MODULES:
            by_time = sorted(totals, key=lambda total: -total.ms)
            shown = set(by_time[: MOST_MODULES - 1])
            rest = [total for total in totals if total not in shown]
            name = f"{len(rest):,} others"
            totals = [*(total for total in totals if total in shown), Total.of(name, rest)]
        whole = self.total
        lines = [
            [
                total.name,
                f"{total.count:,}",
                f"{total.forward_ms:.3f}",
                f"{total.backward_ms:.3f}",
                f"{100 * total.ms / whole.ms:.1f} %" if whole.ms else "",
                short_bytes(total.saved_bytes),
                f"{100 * total.saved_bytes / whole.saved_bytes:.1f} %" if whole.saved_bytes else "",
            ]
            for total in [*totals, whole]
        ]
        heads = [title, "count", "fwd ms", "bwd ms", "of time", "saved", "of saved"]
        return _aligned([heads, *lines], texts=range(1), least={title: 30})

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        total = self.total
        return f"<Trace of {total.count:,} operations, {total.ms:.3f} ms; str() gives the table>"


def trace(
    loss: Any,
    retain_graph: bool = False,
    file: TextIO | None = None,
    *,
    grad: Any = None,
    limit: int = 60,
    quiet: bool = False,
    model: Module | None = None,
) -> Trace:
    """Run `loss.backward()` step by step. Print each operation's shapes, what it saved, its times and its gradient.

        viz.trace(loss)                         # instead of loss.backward(): the gradients are the same
        steps = viz.trace(loss, quiet=True)     # print nothing
        max(steps.rows, key=lambda row: row.backward_ms)

    grad, retain_graph: as in `Tensor.backward`. file: where to print; default: standard output.
    limit: if there are more steps than this, the table leaves out the middle; the summaries cover all steps.
    model: name modules by their paths in it. Default: in the outermost modules that were called.

    The time for inspecting the gradients is not counted. Raises AutogradError where `backward` does.
    """
    tape = Tape("viz.trace", loss, model)
    kept = tape.kept()
    rows: list[Row] = []

    def run(node: Context, grads: list[Array]) -> list[Array | None]:
        grad_norm = norm(*grads)
        _wait_for(grads)
        started = perf_counter()
        gradients = input_gradients(node, grads)
        _wait_for(grads)
        node.traced = _row(tape, node, kept[node], perf_counter() - started, grad_norm)
        rows.append(node.traced)
        return gradients

    backward(loss, grad, retain_graph, run)
    result = Trace(tuple(rows), len(tape.nodes) - len(rows), any(node.xp is not np for node in tape.nodes))
    if not quiet:
        print(result.table(limit), file=file or sys.stdout)
    return result


def _wait_for(grads: list[Array]) -> None:
    """Wait until the GPU has finished. On the CPU there is nothing to wait for."""
    if get_array_module(*grads) is not np:
        grads[0].device.synchronize()


def _row(tape: Tape, node: Context, kept: Kept, seconds: float, grad_norm: float) -> Row:
    parents = [parent for parent in node.parents if parent is not None]
    return Row(
        operation=node.function.__name__,
        path=tape.path(node.scope),
        calls=tuple(tape.title(scope) for scope in tape.calls(node.scope)),
        inputs=tuple(p.data.shape if isinstance(p, Variable) else p[0].outputs[p[1]][0] for p in parents),
        outputs=tuple(shape for shape, _ in node.outputs),
        dtype=" ".join(dict.fromkeys(str(dtype) for _, dtype in node.outputs)),
        saved=kept.shapes,
        saved_bytes=kept.bytes,
        forward_ms=1000 * node.forward_seconds,
        backward_ms=1000 * seconds,
        grad_norm=grad_norm,
    )


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Shapes as in "(8,64) 2×(64,)": no spaces inside, equal neighbors merged."""
    counted: list[list[Any]] = []
    for shape in shapes:
        if counted and counted[-1][0] == shape:
            counted[-1][1] += 1
        else:
            counted.append([shape, 1])
    return " ".join((f"{n}×" if n > 1 else "") + str(shape).replace(" ", "") for shape, n in counted)


def _saved(row: Row) -> str:
    """The bytes, number and shapes of the saved arrays, as in "262 kB 2: (8,64) (8,1)"."""
    count = short_bytes(row.saved_bytes) if row.saved_bytes else ""
    return f"{count:>7} {len(row.saved)}: {_shapes(row.saved)}" if row.saved else ""


def _aligned(lines: list[list[str]], texts: range, least: dict[str, int]) -> str:
    """A table with two spaces between columns: those in `texts` are aligned left, the others right.

    If the table is wider than `WIDTH`, the columns named in `least` are cut one after the other, at most to the width
    given there.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, width in least.items():
        i = lines[0].index(name)
        too_wide = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        widths[i] = max(widths[i] - max(too_wide, 0), min(width, widths[i]))
    text = []
    for line in lines:
        cells = [cell if len(cell) <= w else cell[: w - 1] + "…" for cell, w in zip(line, widths, strict=True)]
        text.append(
            "  ".join(f"{cell:{'<' if i in texts else '>'}{widths[i]}}" for i, cell in enumerate(cells)).rstrip()
        )
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
