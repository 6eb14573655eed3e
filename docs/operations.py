"""The pages about the engine: every operation, and around them the tape, layers, kernels and operations of one's own.

The formula and the derivation come from the operation's docstring, and the code from its source. The error of its
backward is measured while the site is built, and the layers that use it are read off the tape of a small model.
Nothing is written twice, so nothing goes out of date: a new operation is in the next build.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import minigrad
from docs import docstrings, listing
from docs.formulas import sentence
from docs.layout import Page, chapter, facts, link, plural, table, text
from docs.survey import Check, Layer, functions_of_operations, tolerance
from minigrad import autograd, kernels, ops
from minigrad.autograd import Context, Function, Variable
from minigrad.gradcheck import gradcheck, largest_error
from minigrad.gradcheck.cases import operations

# The order to read the chapters in, and their titles. Modules that are not named here come last.
TITLES = {
    "elementwise": "Elementwise operations", "reduce": "Reductions", "shape": "Shapes", "indexing": "Indexing",
    "matmul": "Matrix products", "activation": "Activations", "softmax": "Softmax", "normalization": "Normalization",
    "embedding": "Embedding", "rotary": "Rotary positions", "dropout": "Dropout", "attention": "Attention",
    "convolution": "Convolution and pooling", "loss": "Losses",
}  # fmt: skip
WALK = """\
x = mg.Tensor([1.0, 2.0], requires_grad=True)
w = mg.Tensor([3.0, 4.0], requires_grad=True)
loss = (x * w + x).sum()
"""
WALK_FILE, STEPS = "walk.py", "steps.html"  # the name of that code, and the file of its animation in the site


def module_of(thing: Any) -> ModuleType:
    return thing if isinstance(thing, ModuleType) else sys.modules[inspect.unwrap(thing).__module__]


def path_of(thing: Any) -> str:
    """Where a class, function or module is defined, as minigrad/ops/loss.py."""
    module = module_of(thing)
    return module.__name__.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")


def where(thing: Any) -> str:
    return f'<p class="where">{path_of(thing)}</p>'


def short_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def title_of(module: ModuleType) -> str:
    return TITLES.get(short_name(module), short_name(module).capitalize())


def chapters_of_operations() -> list[tuple[ModuleType, list[type[Function]]]]:
    """The modules of minigrad/ops in the order of reading, with their operations in the order of the source."""
    every, order = operations(), list(TITLES)
    modules = {importlib.import_module(operation.__module__) for operation in every}

    def place(module: ModuleType) -> tuple[int, str]:
        name = short_name(module)
        return order.index(name) if name in order else len(order), name

    return [(m, [each for each in defined_in(m) if each in every]) for m in sorted(modules, key=place)]


def defined_in(module: ModuleType) -> list[Any]:
    """The classes and functions that a module defines, without those that it imports."""
    things = [thing for thing in vars(module).values() if inspect.isclass(thing) or inspect.isroutine(thing)]
    return [thing for thing in things if inspect.unwrap(thing).__module__ == module.__name__]


def helpers_of(module: ModuleType) -> list[Any]:
    """The functions that a module defines beside its operations."""
    return [f for f in defined_in(module) if inspect.isfunction(inspect.unwrap(f)) and vars(module)[f.__name__] is f]


def kernels_of(operation: type[Function]) -> dict[Any, str]:
    """The kind of device of each of the operation's kernels. A derived class does not inherit them."""
    by_kind = operation.__dict__.get("kernels", {})
    return {kernel: device for device, several in by_kind.items() for kernel in several}


def signature_of(function: Any) -> str:
    """A function's arguments and defaults, without types."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def array(value: Any) -> str:
    """A small array as a student would write it: [4, 5]."""
    return re.sub(r"\.0\b", "", str(np.asarray(value).tolist()))


def layer_name(layer: type) -> str:
    return f"{layer.__module__}.{layer.__name__}"


def layer_order(layer: type) -> tuple[bool, str, int]:
    """The models first, the whole before its parts, then the layers of minigrad.nn."""
    engine, line = layer.__module__.startswith("minigrad."), inspect.getsourcelines(layer)[1]
    return engine, layer.__module__, line if engine else -line


class Operations:
    """All pages about the engine.

    checks: for each operation what its gradient checks found
    models: the name of each example model, and its layers and operations
    """

    def __init__(self, checks: dict[str, list[Check]], models: Mapping[str, dict[type, Layer]]) -> None:
        self.checks, self.models = checks, models
        self.files: dict[str, bytes] = {}  # that pages show in a frame
        self.modules = chapters_of_operations()
        self.operations = [operation for _, members in self.modules for operation in members]
        self.functions = functions_of_operations(self.operations)
        self.layers = sorted({layer for found in models.values() for layer in found}, key=layer_order)
        self.kernels = {kernel: device for op in self.operations for kernel, device in kernels_of(op).items()}
        self.links = self._links()  # where a class or function is explained

    def _links(self) -> dict[Any, str]:
        links: dict[Any, str] = {
            Function: "own.html#Function",
            Context: "tape.html#Context",
            autograd.input_gradients: "tape.html#input_gradients",
            gradcheck: "own.html#gradcheck",
        }
        for module, members in self.modules:
            page = f"{short_name(module)}.html"
            links |= {thing: f"{page}#{thing.__name__}" for thing in [*members, *helpers_of(module)]}
            for function in (function for operation in members for function in self.functions[operation]):
                links.setdefault(function, f"{page}#F.{function.__name__}")
        links |= {layer: f"layers.html#{layer_name(layer)}" for layer in self.layers}
        return links | {kernel: f"kernels.html#{device}.{kernel.__name__}" for kernel, device in self.kernels.items()}

    # Text and code

    def code(self, thing: Any) -> str:
        source = listing.source_without_docstring(inspect.unwrap(thing))
        return listing.to_html(source, vars(module_of(thing)), self.links)

    def doc(self, docstring: str | None, names: Mapping[str, Any]) -> str:
        """A docstring as HTML; `names` in backticks that the site explains become links."""

        def with_link(match: re.Match[str]) -> str:
            thing = names.get(match[1])
            known = getattr(thing, "__hash__", None) is not None and thing in self.links
            return link(self.links[thing], match[0]) if known else match[0]

        html = docstrings.to_html(docstring, lambda source: listing.to_html(source, names, self.links))
        return re.sub(r"<code>(\w+)</code>", with_link, html)

    def doc_of(self, thing: Any) -> str:
        return self.doc(thing.__doc__, vars(module_of(thing)))

    def to(self, *things: Any) -> str:
        """Links to where classes or functions are explained."""
        return ", ".join(link(self.links[thing], f"<code>{thing.__name__}</code>") for thing in things)

    def to_all(self, found: Iterable[Any]) -> str:
        """Links to operations, or layers, in the order in which the site has them."""
        found = set(found)
        return self.to(*(thing for thing in [*self.operations, *self.layers] if thing in found))

    # Gradient checks

    def worst(self, operation: type[Function]) -> Check | None:
        """The check that went worst: one that failed, else the one with the largest error."""
        checks = self.checks.get(operation.__name__, [])
        return max(checks, key=lambda check: (bool(check.problem), check.error), default=None)

    def problems(self) -> list[str]:
        """What is wrong with the operations, in a line each."""
        found = [(name, check) for name, checks in self.checks.items() for check in checks]
        wrong = [f"{name} {check.what}: {check.problem}" for name, check in found if check.problem]
        return wrong + [f"{op.__name__}: has no case" for op in self.operations if op.__name__ not in self.checks]

    def verdict(self, operation: type[Function]) -> str:
        worst = self.worst(operation)
        if worst and not worst.problem:
            return f'<span class="verdict right">{worst.error:.1e}</span>'
        return f'<span class="verdict wrong">{"wrong" if worst else "has no check"}</span>'

    def check(self, operation: type[Function]) -> str:
        checks, worst = self.checks.get(operation.__name__, []), self.worst(operation)
        if worst is None:
            return '<p class="wrong">This operation has no case in <code>minigrad/gradcheck/cases.py</code>.</p>'
        if worst.problem:
            said = f'<p class="wrong">The backward is wrong.</p><pre class="diagram">{text(worst.problem)}</pre>'
        else:
            atol, rtol = tolerance()
            said = (
                f"<p>Largest error <strong>{worst.error:.1e}</strong> in {plural(len(checks), 'case')}, measured in "
                f"float64 against central differences while this page was built. The bound for every element is "
                f"|backward − differences| ≤ {atol:g} + {rtol:g} |differences|.</p>"
            )
        rows = [[text(c.what or "as it is called"), "wrong" if c.problem else f"{c.error:.1e}"] for c in checks]
        return said + (table(["Case", "Largest error"], rows, "cases") if len(rows) > 1 else "")

    def summary(self) -> str:
        if problems := self.problems():
            return f'<p class="wrong">Gradient checks failed: {text("; ".join(problems))}</p>'
        found = [(check.error, name) for name, checks in self.checks.items() for check in checks]
        error, name = max(found)
        return (
            f"<p>{plural(len(found), 'gradient check')} of {plural(len(self.operations), 'operation')} ran while this "
            f'site was built. The largest error is <span class="whole">{error:.1e}</span>, in <code>{name}</code>, in '
            "float64 against central differences.</p>"
        )

    # Pages

    def pages(self) -> list[Page]:
        layers = [self.layers_page()] if self.layers else []
        return [self.overview(), self.tape(), *map(self.module, self.modules), *layers, self.kernels_page(), self.own()]

    def overview(self) -> Page:
        functions = (
            "<p>In the code and the text <code>F</code> is <code>minigrad.functional</code>: what users call.</p>"
        )
        html = [f"<h1>All operations</h1>{self.doc_of(ops)}{functions}{self.summary()}"]
        for module, members in self.modules:
            rows = []
            for operation in members:
                summary, result = docstrings.first_line(operation.__doc__)
                rows.append(
                    [self.to(operation), f'{summary}<div class="result">{result}</div>', self.verdict(operation)]
                )
            head = [link(f"{short_name(module)}.html", title_of(module)), "", "Error"]
            html.append(table(head, rows, "operations"))
        return Page("operations.html", "All operations", "".join(html), [])

    def module(self, module_and_members: tuple[ModuleType, list[type[Function]]]) -> Page:
        module, members = module_and_members
        title, name = title_of(module), short_name(module)
        introduction = "" if module.__doc__ == f"{title}." else self.doc_of(module)
        sections = [*map(self.operation, members), *map(self.helper, helpers_of(module))]
        return chapter(name, title, introduction + where(module), sections)

    def helper(self, function: Any) -> tuple[str, str, str]:
        name = function.__name__
        return (
            name,
            f'<code>{name}</code> <span class="aside">a helper</span>',
            self.doc_of(function) + self.code(function),
        )

    def operation(self, operation: type[Function]) -> tuple[str, str, str]:
        functions = [self.call(function, operation) for function in self.functions[operation]]
        used = {layer for found in self.models.values() for layer in found if operation in found[layer].operations}
        said = [
            ("Call it", "".join(functions) or "<p>No function of its own.</p>"),
            ("Gradient check", self.check(operation)),
            ("Kernels", self.kernels_used(operation)),
            ("Used by", f"<p>{self.to_all(used) or 'None of the layers on this site.'}</p>"),
        ]
        html = self.doc_of(operation) + self.code(operation) + facts(said)
        return operation.__name__, f"{operation.__name__} {self.verdict(operation)}", html

    def call(self, function: Any, operation: type[Function]) -> str:
        name = function.__name__
        first = next(other for other in self.operations if function in self.functions[other])
        anchor = f' id="F.{name}"' if operation is first else ""
        signature = listing.to_html(f"F.{name}{signature_of(function)}\n", {}, {})
        return f'<div{anchor} class="call">{signature}{self.doc_of(function)}</div>'

    def kernels_used(self, operation: type[Function]) -> str:
        said = [
            f"<p>{device.upper()}: {self.to(kernel)} of <code>{path_of(kernel)}</code>, where it fits.</p>"
            f"<blockquote>{self.doc(kernel.__doc__, {})}</blockquote>"
            for kernel, device in kernels_of(operation).items()
        ]
        return "".join(said) or "<p>None: the code above is what runs, on NumPy and CuPy.</p>"

    def layers_page(self) -> Page:
        introduction = (
            "<p>Each model was run once, in training, and the tape of its loss was read: every node of a tape knows "
            "the call of a module that it is part of.</p>"
        )
        for name, found in self.models.items():
            used = [(layer, found[layer]) for layer in self.layers if layer in found]
            rows = [[self.to(layer), self.to_all(what.operations), self.to_all(what.layers)] for layer, what in used]
            introduction += f"<h2>{text(name)}</h2>"
            introduction += table(["Layer", "Operations of its own", "Layers that it calls"], rows, "layers")
        bodies = [where(layer) + self.doc_of(layer) + self.code(layer) for layer in self.layers]
        sections = [(layer_name(layer), layer.__name__, body) for layer, body in zip(self.layers, bodies, strict=True)]
        return chapter("layers", "Layers", introduction, sections)

    def kernels_page(self) -> Page:
        introduction = self.doc(kernels.__doc__, vars(ops.matmul))
        for device in sorted(set(self.kernels.values())):
            package = importlib.import_module(f"{kernels.__name__}.{device}")
            introduction += f"<h2>{device.upper()}</h2>{self.doc(package.__doc__, {})}"
        sections = []
        for kernel, device in self.kernels.items():
            users = [operation for operation in self.operations if kernel in kernels_of(operation)]
            about = self.doc(module_of(kernel).__doc__, {})
            html = where(kernel) + self.doc(kernel.__doc__, {}) + self.code(kernel)
            html += facts([("Used by", f"<p>{self.to(*users)}</p>"), *([("Its file", about)] if about else [])])
            sections.append((f"{device}.{kernel.__name__}", f"{kernel.__name__} ({device.upper()})", html))
        return chapter("kernels", "Kernels", introduction, sections)

    def tape(self) -> Page:
        parts: list[Any] = [Function.apply, Context, autograd.count_uses, autograd.input_gradients, autograd.backward]
        sections = [("walk", "A walk, step by step", self.walk())]
        for part in parts:
            code = self.code(getattr(part, "__func__", part))
            sections.append((part.__name__, f"<code>{part.__qualname__}</code>", self.doc_of(part) + code))
        return chapter("tape", "The tape", self.doc_of(autograd) + where(autograd), sections)

    def walk(self) -> str:
        """A small loss, computed and walked while the page is built, and the page that plays its steps."""
        names: dict[str, Any] = {"mg": minigrad}
        linecache.cache[WALK_FILE] = len(WALK), None, WALK.splitlines(keepends=True), WALK_FILE
        exec(compile(WALK, WALK_FILE, "exec"), names)
        tensors = {name: value for name, value in names.items() if isinstance(value, Variable)}
        with tempfile.TemporaryDirectory() as folder:
            minigrad.viz.animate(tensors["loss"], Path(folder, STEPS), names=tensors)
            self.files[STEPS] = Path(folder, STEPS).read_bytes()
        code, frame = listing.to_html(WALK, names, self.links), f'<iframe src="{STEPS}" title="The steps"></iframe>'
        ends = " and ".join(f"`{name}.grad` is `{array(names[name].grad)}`" for name in ("x", "w"))
        start = (
            f"The loss is `{array(names['loss'].data)}`. Its backward starts with dL/dL = 1 and walks the tape from "
            f'the end. These are its steps, as `viz.animate(loss, "{STEPS}")` shows them:'
        )
        end = f"x reached the loss in two ways, so two gradients arrive there and add up: {ends}."
        alone = f"<p>{link(STEPS, 'The steps on a page of their own')}</p>"
        return f"{code}<p>{sentence(start)}</p>{frame}{alone}<p>{sentence(end)}</p>"

    def own(self) -> Page:
        """How to add an operation, from Function's docstring, whose code is run and checked during the build."""
        (source,) = ["\n".join(b.lines) for b in docstrings.blocks(Function.__doc__) if b.kind == "code"]

        def run(x: Any) -> Any:
            names = {"Function": Function, "x": x}
            exec(source, names)
            return names["y"]

        x = minigrad.Tensor([1.0, -2.0], requires_grad=True)
        y = run(x)
        y.backward(np.ones_like(y.data))
        proof = (
            f"This code ran while this page was built. Where x is `{array(x.data)}`, y is `{array(y.data)}` and, for "
            f"dL/dy = 1, dL/dx is `{array(x.grad)}`. The largest error that `gradcheck` finds is "
            f"{largest_error(run, [x]):.1e}."
        )
        call = listing.to_html(f"mg.gradcheck{signature_of(gradcheck)}\n", {}, {})
        checking = module_of(largest_error)
        function = self.doc_of(Function) + self.doc(proof, vars(checking))
        check = self.doc_of(checking) + call + self.doc_of(gradcheck) + self.code(largest_error)
        parts = [("Function", function), ("gradcheck", check)]
        sections = [(name, f"<code>{name}</code>", html) for name, html in parts]
        steps = (
            "Write the formula down and derive dL/dx for every input x from g = dL/dy. Write `forward` and `backward` "
            "in the letters of the derivation. Check them with `gradcheck`, at inputs that are far from kinks, with "
            "broadcasting and with every option."
        )
        return chapter("own", "Your own operation", self.doc(steps, vars(checking)), sections)
