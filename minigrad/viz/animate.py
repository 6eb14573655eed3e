"""`animate`: a page that plays a backward pass step by step. animate.html is what it fills in."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import AutogradError, Context, Variable, backward, input_gradients
from ..backend import Array, is_array, to_device
from ..nn import Module, Parameter
from ..serialization import write_atomically
from .layers import arrange
from .rules import formula_of, letters_of, line_of, rule_of, saved_by
from .tape import Tape

MOST_NUMBERS = 64  # a larger array is a heat map
ROWS, COLUMNS = 20, 40  # the most cells of a heat map
NOT_FINITE = -128  # the code of a cell
LONGEST_FORMULA = 36  # characters, in a sentence


def animate(
    loss: Any,
    path: str | os.PathLike[str],
    retain_graph: bool = False,
    *,
    grad: Any = None,
    limit: int = 500,
    model: Module | None = None,
    names: Mapping[str, Any] | None = None,
) -> None:
    """Run `loss.backward()` and write a page that plays it: one HTML file, which needs no server and no network.

        viz.animate(loss, "steps.html")     # instead of loss.backward(): the gradients are the same

    Each step shows the gradient that arrives at an operation, the rule from its docstring, what the forward saved, the
    gradients that leave, where gradients add up, and the line of your program that called the operation.

    As after `loss.backward()`, each leaf's `grad` has been added to, and what was saved is freed, unless `retain_graph`
    is given. The file is written last, whole or not at all.
    grad, retain_graph: as in `Tensor.backward`.
    limit: the most operations; `viz.draw` summarizes larger tapes.
    model: name parameters by their paths in it. Default: in the outermost modules that were called.
    names: names for other tensors. Default: the variables of the code that calls `animate`.

    Arrays of more than 64 numbers are heat maps of at most 20 × 40 cells. A cell that stands for several numbers shows
    the one that is largest in magnitude.

    Raises AutogradError where `backward` does, and ValueError for a tape with more than `limit` operations.
    """
    tape = Tape("viz.animate", loss, model)
    if len(tape.nodes) > limit:
        raise ValueError(
            f"viz.animate: expected a tape of at most {limit:,} operations, got {len(tape.nodes):,}; give a higher "
            f"limit, or use viz.draw, which summarizes"
        )
    if tape.root.origin is None:
        raise AutogradError("viz.animate: this tensor is a leaf; expected one that an operation made")
    known = tape.names("viz.animate", names)
    if names is None:
        caller = sys._getframe(1)
        for name, value in {**caller.f_globals, **caller.f_locals}.items():
            if isinstance(value, Variable):
                known.setdefault(value.origin or value, name)
    animation = _Animation(tape, known)
    animation.run(grad, retain_graph)
    write_atomically(path, _page(animation).encode())


def _page(animation: _Animation) -> str:
    parts = {kind: Path(__file__).with_name(f"animate.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    parts["title"] = html.escape(animation.boxes[-1]["title"])
    data = json.dumps(animation.data(), allow_nan=False, separators=(",", ":"))
    parts["data"] = data.replace("<", "\\u003c")  # so that no text in it can end the script that holds it
    template = Path(__file__).with_name("animate.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


class _Animation:
    """The boxes and edges of a tape, and the steps of its backward, as they run."""

    def __init__(self, tape: Tape, names: dict[Any, str]) -> None:
        self.tape, self.names = tape, names
        self.boxes: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.rules: dict[str, int] = {}  # each rule of the page once, as JSON, and its number; also the arrays
        self.arrays: dict[str, int] = {}
        self.place: dict[Any, int] = {}  # the box of a leaf or a node
        self.arrived: dict[Any, int] = Counter()  # how many gradients have reached a leaf or an output
        self.sums: dict[Any, Array] = {}  # of the gradients that have reached a leaf or an output
        self.added: dict[Variable, dict[str, Any]] = {}  # for each leaf, what the last step added to its grad
        self.kept = tape.kept()
        self.held = self.saved = sum(kept.bytes for kept in self.kept.values())
        self._draw()

    # The graph

    def _draw(self) -> None:
        tape, root = self.tape, self.tape.root
        kinds = {leaf: "parameter" if isinstance(leaf, Parameter) else "leaf" for leaf in tape.uses}
        unnamed = [kind for leaf, kind in kinds.items() if leaf not in self.names]
        titles = iter(_numbered(unnamed + [node.function.__name__ for node in tape.nodes]))
        for leaf, kind in kinds.items():
            self._box(leaf, self.names.get(leaf) or next(titles), kind, leaf.data)
        for node, title in zip(tape.nodes, titles, strict=True):
            made = [self.names[node, i] for i in range(len(node.outputs)) if (node, i) in self.names]
            box = self._box(node, ", ".join(made) or title, "operation")
            box |= {"title": f"{box['name']} = {title}" if made else title, "operation": title, **line_of(node)}
            box |= {"letters": letters_of(node), "module": tape.title(node.scope) if node.scope else ""}
            box["rule"] = self.rules.setdefault(json.dumps(rule_of(node)), len(self.rules))
            for i, parent in enumerate(node.parents):
                if parent is not None:
                    self._edge(parent, node, i)
        name = self.names.get(root.origin, "loss" if root.data.size == 1 else "y")
        self._box("end", name, "result", root.data)
        self._edge(root.origin, "end", 0)
        widths = [_width(box) for box in self.boxes]
        self.size, places, trunks = arrange(widths, [(edge["from"], edge["to"]) for edge in self.edges])
        for box, width, place, trunk in zip(self.boxes, widths, places, trunks, strict=True):
            box |= {"at": place, "width": width, "trunk": trunk}

    def _box(self, key: Any, name: str, kind: str, array: Array | None = None) -> dict[str, Any]:
        self.place[key] = len(self.boxes)
        outputs = key.outputs if array is None else [(array.shape, array.dtype)]
        small = f"{outputs[0][0] or 'scalar'} {outputs[0][1]}" + f", {len(outputs)} outputs" * (len(outputs) > 1)
        box: dict[str, Any] = {
            "name": name,
            "kind": kind,
            "small": small,
            "shapes": [list(shape) for shape, _ in outputs],
        }
        if array is not None:
            box |= {"title": name + _equals(array), "array": self._array(array)}
        self.boxes.append(box)
        return box

    def _edge(self, start: Any, end: Any, argument: int) -> None:
        maker, output = start if isinstance(start, tuple) else (start, 0)
        self.edges.append({"from": self.place[maker], "to": self.place[end], "argument": argument, "output": output})

    def _array(self, array: Array) -> int:
        return self.arrays.setdefault(json.dumps(_encoded(array), allow_nan=False), len(self.arrays))

    # The walk

    def run(self, grad: Any, retain_graph: bool) -> None:
        self.steps.append({"box": len(self.boxes) - 1, "sent": [], "held": self.held})
        backward(self.tape.root, grad, retain_graph, self._step)
        self._settle()
        self._say_what_waits()
        unreached = len(self.tape.nodes) + 1 - len(self.steps)
        words = "Done. The `grad` of each leaf holds the sum of the gradients of all the ways from it to the end."
        words += " What was saved stays for another backward: `retain_graph=True`." if retain_graph else ""
        words += f" No gradient reached {_count(unreached, 'operation')}." if unreached else ""
        grads = [[self.place[leaf], self._array(leaf.grad)] for leaf in self.tape.uses if leaf.grad is not None]
        self.steps.append({"box": None, "words": words, "grads": grads, "sent": [], "held": self.held})

    def _say_what_waits(self) -> None:
        """Add to the words of each step which operations it reached that more gradients reach later."""
        later: set[int] = set()
        for step in reversed(self.steps[1:]):
            reached = {message["to"] for message in step["sent"] if "array" in message}
            for box in sorted(reached & later):
                if self.boxes[box]["kind"] == "operation":
                    step["words"] += f" `{self.boxes[box]['name']}` waits for another gradient."
            later |= reached

    def _step(self, node: Context, grads: list[Array]) -> list[Array | None]:
        self._settle()
        if len(self.steps) == 1:
            self._start(grads)
        kept = saved_by(node)
        step: dict[str, Any] = {"box": self.place[node]}
        step["arrived"] = [[self._array(g), self.arrived[node, i]] for i, g in enumerate(grads)]
        step["saved"] = [[name, self._array(value)] for name, value in kept if is_array(value)]
        step["kept"] = [f"{name} = {value}" for name, value in kept if not is_array(value)]
        results = input_gradients(node, grads)
        sends, notes = [], []
        step["sent"] = []
        for i, (parent, gradient) in enumerate(zip(node.parents, results, strict=True)):
            if parent is not None:
                message, name = self._message(node, i, parent)
                step["sent"].append(message)
                if gradient is not None:
                    sends.append(f"${_short(message)}{_equals(gradient)}$ to `{name}`")
                    notes += self._add(parent, gradient, message, name)
        for i in range(len(grads)):
            self.sums.pop((node, i), None)
        step["words"] = self._words(step, grads, sends, notes)
        self.steps.append(step)
        self.node = node
        return results

    def _message(self, node: Context, i: int, parent: Any) -> tuple[dict[str, Any], str]:
        """What a node says to one of its inputs, and the input's name."""
        maker = parent[0] if isinstance(parent, tuple) else parent
        letter, to = letters_of(node)[i], self.place[maker]
        return {"argument": i, "letter": letter, "formula": formula_of(node, letter), "to": to}, self.boxes[to]["name"]

    def _words(self, step: dict[str, Any], grads: list[Array], sends: list[str], notes: list[str]) -> str:
        box = self.boxes[step["box"]]
        made = f", which made `{box['name']}`," if box["name"] != box["operation"] else ""
        received = _equals(grads[0]) if len(grads) == 1 else ""
        if len(sends) > 3:
            sends = [*sends[:3], _count(len(sends) - 3, "more gradient")]
        sent = ", ".join(sends[:-1]) + " and " * (len(sends) > 1) + sends[-1] if sends else "nothing"
        runs = f"`{box['operation']}`{made} runs: it received $g = dL/dy{received}$ and sends {sent}."
        return " ".join([runs, *dict.fromkeys(notes[:3])])

    def _start(self, grads: list[Array]) -> None:
        output = self.tape.root.origin
        assert output is not None
        self.arrived[output] = 1
        gradient, end = grads[output[1]], "L" if self.tape.root.data.size == 1 else "y"
        words = (
            f"The backward pass starts at the end with $dL/d{end}{_equals(gradient)}$. From here up, each operation "
        )
        words += "turns the gradient of its output into the gradients of its inputs."
        self.steps[0] |= {"words": words, "arrived": [[self._array(gradient), 0]]}

    def _add(self, to: Any, gradient: Array, message: dict[str, Any], name: str) -> list[str]:
        """Note the gradient that reaches a leaf or an output, and what it is added to. Returns that in words."""
        before = self.sums.get(to, getattr(to, "grad", None))
        self.arrived[to] = times = self.arrived[to] + 1
        self.sums[to] = gradient if before is None else before + gradient
        message["array"] = self._array(gradient)
        if isinstance(to, Variable):
            self.added[to] = message
        if before is None:
            return []
        message |= {"before": self._array(before), "after": self._array(self.sums[to])}
        ordinal = {2: "second", 3: "third"}.get(times, f"{times}th")
        why = f"`{name}` is reached a {ordinal} time" if times > 1 else f"`{name}` had a `grad` before this backward"
        added, there = (_equals(array).removeprefix(" = ") for array in (gradient, before))
        return [f"{why}: " + (f"${added}$ is added to ${there}$." if added else "the gradients are added.")]

    def _settle(self) -> None:
        """Look at what the last step left behind."""
        if len(self.steps) > 1:
            for leaf, message in self.added.items():
                message |= {"after": self._array(leaf.grad)} if "before" in message else {}
                del self.sums[leaf]
            self.added.clear()
            self.held -= self.kept[self.node].bytes if self.node.freed else 0
            self.steps[-1] |= {"freed": self.node.freed, "held": self.held}

    def data(self) -> dict[str, Any]:
        numbers = sum(leaf.data.size for leaf in self.tape.uses)
        about = f"{_count(len(self.tape.nodes), 'operation')}, {_count(len(self.tape.uses), 'leaf')} of "
        data = {"title": self.boxes[-1]["title"], "about": about + _count(numbers, "number"), "size": self.size}
        data |= {"boxes": self.boxes, "edges": self.edges, "steps": self.steps, "saved": self.saved}
        return data | {"rules": list(map(json.loads, self.rules)), "arrays": list(map(json.loads, self.arrays))}


def _numbered(names: list[str]) -> list[str]:
    """Names that occur several times get numbers, as "Add #2"."""
    times, so_far, numbered = Counter(names), Counter[str](), []
    for name in names:
        so_far[name] += 1
        numbered.append(f"{name} #{so_far[name]}" if times[name] > 1 else name)
    return numbered


def _short(message: dict[str, Any]) -> str:
    """The formula of a message for a sentence: without its right side if that is long or in words."""
    formula = message["formula"]
    return formula if formula.startswith("dL") and len(formula) <= LONGEST_FORMULA else f"dL/d{message['letter']}"


def _equals(array: Array) -> str:
    """An array of one number as " = 0.5", to write after its name; others as ""."""
    return f" = {float(array.item()):.4g}".replace("-", "\N{MINUS SIGN}") if array.size == 1 else ""


def _width(box: dict[str, Any]) -> int:
    return round(max(7.8 * len(box["title"]), 6.7 * len(box["small"]), 6.8 * len(box.get("code", "")))) + 24


def _encoded(array: Array) -> dict[str, Any]:
    """A small array as numbers, a large one as cells from -127 to 127, where 127 is the largest magnitude."""
    array = to_device(array, "cpu")
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    found: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if finite.size:
        found["range"] = [_number(finite.min()), _number(finite.max())]
    if array.size <= MOST_NUMBERS:
        return found | {"values": [_number(value) for value in array.reshape(-1)]}
    table = wide.reshape(-1, wide.shape[-1])
    block = [-(-n // most) for n, most in zip(table.shape, (ROWS, COLUMNS), strict=True)]
    padded = np.pad(table, [(0, -n % size) for n, size in zip(table.shape, block, strict=True)])
    grid = [n // size for n, size in zip(padded.shape, block, strict=True)]
    cells = padded.reshape(grid[0], block[0], grid[1], block[1]).swapaxes(1, 2).reshape(*grid, -1)
    strongest = np.where(np.isnan(cells), np.inf, abs(cells)).argmax(axis=-1)[..., None]
    cells = np.take_along_axis(cells, strongest, axis=-1)[..., 0]
    largest = abs(finite).max(initial=0) or 1
    codes, known = np.full(grid, NOT_FINITE, np.int8), np.isfinite(cells)
    codes[known] = np.round(127 * (cells[known] / largest))
    return found | {"cells": base64.b64encode(codes.tobytes()).decode(), "grid": grid, "block": block}


def _number(value: Any) -> float | int | str:
    """A number for JSON: the shortest that gives this one in its dtype; text if it is not finite."""
    if value.dtype.kind in "biu":
        return int(value)
    number = float(str(value))
    return number if np.isfinite(number) else str(number)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else {'leaf': 'leaves'}.get(noun, noun + 's')}"
