"""The pages: chapters of operations, and around them the tape, the layers, the kernels and how to add an operation."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

import minigrad

from .. import autograd, functional, kernels, ops
from ..autograd import Context, Function, Variable
from ..gradcheck import gradcheck, largest_error
from ..gradcheck.cases import operations
from . import docstrings, listing
from .formulas import sentence
from .layout import Chapter, Section, chapter_html, contents, link, page, plural, table, text, turn
from .survey import Check, Layer, functions_of_operations, tolerance

# The order to read the chapters in, and their titles. Modules that are not named here come last.
TITLES = {
    "elementwise": "Elementwise operations",
    "reduce": "Reductions",
    "shape": "Shapes",
    "indexing": "Indexing",
    "matmul": "Matrix products",
    "activation": "Activations",
    "softmax": "Softmax",
    "normalization": "Normalisation",
    "embedding": "Embedding",
    "rotary": "Rotary positions",
    "dropout": "Dropout",
    "attention": "Attention",
    "loss": "Losses",
}
WALK = """\
x = mg.Tensor([1.0, 2.0], requires_grad=True)
w = mg.Tensor([3.0, 4.0], requires_grad=True)
loss = (x * w + x).sum()
"""


def path_of(thing: Any) -> str:
    """Where a class, function or module is defined, as minigrad/ops/loss.py."""
    module = thing if isinstance(thing, ModuleType) else inspect.getmodule(thing)
    assert module is not None
    package = "/__init__.py" if hasattr(module, "__path__") else ".py"
    return module.__name__.replace(".", "/") + package


def chapters_of_operations() -> list[tuple[ModuleType, list[type[Function]]]]:
    """The modules of minigrad/ops in the order of reading, with their operations in the order of the source."""
    every, order = set(operations()), list(TITLES)

    def place(name: str) -> tuple[int, str]:
        short = name.rpartition(".")[2]
        return order.index(short) if short in order else len(order), short

    names = sorted({operation.__module__ for operation in every}, key=place)
    modules = [importlib.import_module(name) for name in names]
    return [
        (module, [each for each in vars(module).values() if is_of(each, module) and each in every])
        for module in modules
    ]


def is_of(thing: Any, module: ModuleType) -> bool:
    """Is it defined in the module, and not only imported?"""
    return getattr(thing, "__module__", None) == module.__name__


def helpers_of(module: ModuleType) -> list[Any]:
    """The functions that a module defines beside its operations."""
    return [
        thing
        for thing in vars(module).values()
        if inspect.isfunction(function := inspect.unwrap(thing) if callable(thing) else None)
        and is_of(function, module)
        and thing.__name__ == function.__name__
    ]


def kernels_of(operation: type[Function]) -> dict[str, Any]:
    """The operation's kernels by the kind of device. A derived class does not inherit them."""
    return operation.__dict__.get("kernels", {})


def signature_of(function: Any) -> str:
    """A function's arguments and defaults, without types."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


class Book:
    """All pages of the book.

    checks: for each operation what its gradient checks found; None if they were left out
    examples: what each model is called, and its layers and operations
    """

    def __init__(self, checks: dict[str, list[Check]] | None, examples: list[tuple[str, dict[type, Layer]]]) -> None:
        self.checks = checks
        self.examples = examples
        self.modules = chapters_of_operations()
        self.operations = [operation for _, members in self.modules for operation in members]
        self.functions = functions_of_operations()
        self.layers = sorted({layer for _, found in examples for layer in found}, key=layer_order)
        self.kernels = {kernel: device for op in self.operations for device, kernel in kernels_of(op).items()}
        self.links = self._links()

    def _links(self) -> dict[Any, str]:
        """Where in the book a class or function is explained."""
        links: dict[Any, str] = {
            Function: "own.html",
            Context: "tape.html#Context",
            autograd.input_gradients: "tape.html#input_gradients",
            gradcheck: "own.html#gradcheck",
        }
        for module, members in self.modules:
            page = chapter_name(module)
            for thing in [*members, *helpers_of(module)]:
                links[thing] = f"{page}.html#{thing.__name__}"
            for operation in members:
                for function in self.functions.get(operation, []):
                    links.setdefault(function, f"{page}.html#F.{function.__name__}")
        links |= {layer: f"layers.html#{layer_name(layer)}" for layer in self.layers}
        links |= {kernel: f"kernels.html#{device}.{kernel.__name__}" for kernel, device in self.kernels.items()}
        return links

    # Pieces

    def code(self, thing: Any) -> str:
        source = listing.source_without_docstring(inspect.unwrap(thing))
        return listing.to_html(source, vars(inspect.getmodule(inspect.unwrap(thing))), self.links)

    def doc(self, docstring: str | None, names: Mapping[str, Any]) -> str:
        """A docstring as HTML; `names` in backticks that the book explains become links."""
        html = docstrings.to_html(docstring, lambda source: listing.to_html(source, names, self.links))
        return self.with_links(html, names)

    def prose(self, source: str, names: Mapping[str, Any]) -> str:
        """A sentence or two in the manner of a docstring, as HTML."""
        return self.with_links(sentence(source), names)

    def with_links(self, html: str, names: Mapping[str, Any]) -> str:
        def with_link(match: re.Match[str]) -> str:
            thing = names.get(match[1])
            known = getattr(thing, "__hash__", None) is not None and thing in self.links
            return link(self.links[thing], match[0]) if known else match[0]

        return re.sub(r"<code>(\w+)</code>", with_link, html)

    def to(self, thing: Any, label: str = "") -> str:
        """A link to where a class or function is explained."""
        return link(self.links[thing], f"<code>{text(label or thing.__name__)}</code>")

    def all_to(self, things: Iterable[Any]) -> str:
        return ", ".join(self.to(thing) for thing in things)

    def in_order(self, found: Iterable[Any]) -> list[Any]:
        """Operations, or layers, in the order in which the book has them, without those that it does not have."""
        found = set(found)
        return [thing for thing in [*self.operations, *self.layers] if thing in found]

    def call(self, function: Any, operation: type[Function]) -> str:
        name = function.__name__
        first = next(other for other in self.operations if function in self.functions.get(other, []))
        anchor = f' id="F.{name}"' if operation is first else ""
        signature = f"F.{name}{signature_of(function)}"
        code = listing.to_html(signature + "\n", {"F": functional}, {})
        return f'<div{anchor} class="call">{code}{self.doc(function.__doc__, vars(functional))}</div>'

    # Gradient checks

    def worst(self, operation: type[Function]) -> Check | None:
        """The check that went worst: one that failed, else the one with the largest error."""
        checks = (self.checks or {}).get(operation.__name__, [])
        return max(checks, key=lambda check: (bool(check.problem), check.error), default=None)

    def problems(self) -> list[str]:
        """What is wrong with the operations, in a line each."""
        if self.checks is None:
            return []
        wrong = [
            f"{name} {check.what}: {check.problem}"
            for name, found in self.checks.items()
            for check in found
            if check.problem
        ]
        return wrong + [f"{op.__name__}: has no case" for op in self.operations if op.__name__ not in self.checks]

    def verdict(self, operation: type[Function]) -> str:
        if self.checks is None:
            return '<span class="verdict none">not checked</span>'
        worst = self.worst(operation)
        if worst is None:
            return '<span class="verdict wrong">has no check</span>'
        if worst.problem:
            return '<span class="verdict wrong">wrong</span>'
        return f'<span class="verdict right">{worst.error:.1e}</span>'

    def check(self, operation: type[Function]) -> str:
        if self.checks is None:
            return "<p>Not measured: this book was made with <code>--no-check</code>.</p>"
        checks, worst = self.checks.get(operation.__name__, []), self.worst(operation)
        if worst is None:
            return (
                '<p class="wrong">There is no case for this operation in <code>minigrad/gradcheck/cases.py</code>.</p>'
            )
        atol, rtol = tolerance()
        bound = f"|backward − differences| ≤ {atol:g} + {rtol:g} |differences|"
        if worst.problem:
            said = f'<p class="wrong">The backward is wrong.</p><pre class="diagram">{text(worst.problem)}</pre>'
        else:
            said = (
                f"<p>Largest error <strong>{worst.error:.1e}</strong> in {plural(len(checks), 'case')}, measured in "
                f"float64 against central differences while this page was made. Wanted: {bound} in every element.</p>"
            )
        rows = [[text(c.what or "as it is called"), "wrong" if c.problem else f"{c.error:.1e}"] for c in checks]
        return said + (table(["Case", "Largest error"], rows, "cases") if len(rows) > 1 else "")

    # Chapters

    def chapters(self) -> list[Chapter]:
        around = [self.layers_chapter()] if self.layers else []
        return [self.tape(), *map(self.operations_chapter, self.modules), *around, self.kernels_chapter(), self.own()]

    def operations_chapter(self, chapter: tuple[ModuleType, list[type[Function]]]) -> Chapter:
        module, members = chapter
        sections = [*map(self.operation, members), *map(self.helper, helpers_of(module))]
        where = f'<p class="where">{path_of(module)}</p>'
        title, docstring = title_of(module), module.__doc__ or ""
        introduction = "" if docstring == f"{title}." else self.doc(docstring, vars(module))
        return Chapter(chapter_name(module), title, introduction + where, sections)

    def operation(self, operation: type[Function]) -> Section:
        name, module = operation.__name__, inspect.getmodule(operation)
        functions = self.functions.get(operation, [])
        facts = [
            (
                "Call it",
                "".join(self.call(function, operation) for function in functions) or "<p>No function of its own.</p>",
            )
        ]
        facts.append(("Gradient check", self.check(operation)))
        facts.append(("Kernels", self.kernels_used(operation)))
        if self.layers:
            facts.append(("Used by", self.used_by(operation)))
        html = (
            f"{self.doc(operation.__doc__, vars(module))}{self.code(operation)}"
            f'<dl class="facts">{"".join(f"<dt>{what}</dt><dd>{fact}</dd>" for what, fact in facts)}</dl>'
        )
        return Section(name, f"{name} {self.verdict(operation)}", html)

    def helper(self, function: Any) -> Section:
        names = vars(inspect.getmodule(inspect.unwrap(function)))
        title = f'<code>{function.__name__}</code> <span class="aside">a helper</span>'
        return Section(function.__name__, title, self.doc(function.__doc__, names) + self.code(function))

    def kernels_used(self, operation: type[Function]) -> str:
        found = kernels_of(operation)
        if not found:
            return "<p>None: the code above is what runs, on NumPy and CuPy.</p>"
        return "".join(
            f"<p>{device.upper()}: {self.to(kernel)} of <code>{path_of(kernel)}</code>, where it fits.</p>"
            f"<blockquote>{self.doc(kernel.__doc__, {})}</blockquote>"
            for device, kernel in found.items()
        )

    def used_by(self, operation: type[Function]) -> str:
        users = {layer for _, found in self.examples for layer, what in found.items() if operation in what.operations}
        return f"<p>{self.all_to(self.in_order(users)) or 'None of the layers in this book.'}</p>"

    def layers_table(self, found: dict[type, Layer]) -> str:
        rows = [
            [
                self.to(layer),
                self.all_to(self.in_order(found[layer].operations)),
                self.all_to(self.in_order(found[layer].layers)),
            ]
            for layer in self.in_order(found)
        ]
        return table(["Layer", "Operations of its own", "Layers that it calls"], rows, "layers")

    def layers_chapter(self) -> Chapter:
        introduction = (
            "<p>Each model was run once, in training, and the tape of its loss was read: every node of a tape knows "
            "the call of a module that it is part of.</p>"
        )
        for name, found in self.examples:
            introduction += f"<h2>{text(name)}</h2>{self.layers_table(found)}"
        sections = []
        for layer in self.layers:
            lines = []
            for name, found in self.examples:
                if layer in found:
                    uses = self.all_to(self.in_order(found[layer].operations)) or "none of its own"
                    calls = self.all_to(self.in_order(found[layer].layers))
                    lines.append(f"<dt>{text(name)}</dt><dd><p>{uses}{'; calls ' + calls if calls else ''}</p></dd>")
            module = inspect.getmodule(layer)
            html = f'<p class="where">{path_of(layer)}</p>{self.doc(layer.__doc__, vars(module))}'
            html += f'<dl class="facts">{"".join(lines)}</dl>{self.code(layer)}'
            sections.append(Section(layer_name(layer), layer.__name__, html))
        return Chapter("layers", "Layers and their operations", introduction, sections)

    def kernels_chapter(self) -> Chapter:
        introduction = self.doc(kernels.__doc__, vars(ops.matmul))
        sections = []
        for device in sorted(set(self.kernels.values())):
            package = importlib.import_module(f"{kernels.__name__}.{device}")
            introduction += f"<h2>{device.upper()}</h2>{self.doc(package.__doc__, {})}"
        for kernel, device in self.kernels.items():
            module = inspect.getmodule(kernel)
            users = [operation for operation in self.operations if kernel in kernels_of(operation).values()]
            html = f'<p class="where">{path_of(kernel)}</p>{self.doc(kernel.__doc__, {})}{self.code(kernel)}'
            html += f'<dl class="facts"><dt>Used by</dt><dd><p>{self.all_to(users)}</p></dd>'
            html += f"<dt>Its file</dt><dd>{self.doc(module.__doc__, {})}</dd></dl>" if module.__doc__ else "</dl>"
            sections.append(Section(f"{device}.{kernel.__name__}", f"{kernel.__name__} ({device.upper()})", html))
        return Chapter("kernels", "Kernels", introduction, sections)

    def tape(self) -> Chapter:
        parts: list[Any] = [Function.apply, Context, autograd.count_uses, autograd.input_gradients, autograd.backward]
        sections = [Section("walk", "A walk, step by step", self.walk())]
        for part in parts:
            title = f"<code>{part.__qualname__}</code>"
            html = self.doc(part.__doc__, vars(autograd)) + self.code(getattr(part, "__func__", part))
            sections.append(Section(part.__name__, title, html))
        introduction = self.doc(autograd.__doc__, vars(autograd)) + f'<p class="where">{path_of(autograd)}</p>'
        return Chapter("tape", "The tape", introduction, sections)

    def walk(self) -> str:
        """A small loss, computed and walked while the page is made."""
        names: dict[str, Any] = {"mg": minigrad}
        exec(WALK, names)
        leaves = {id(value): name for name, value in names.items() if isinstance(value, Variable)}
        steps: list[list[str]] = []

        def run(node: Context, grads: list[Any]) -> list[Any]:
            gradients = autograd.input_gradients(node, grads)
            sent = []
            for parent, gradient in zip(node.parents, gradients, strict=True):
                if parent is not None and gradient is not None:
                    if isinstance(parent, Variable):
                        to = f"<code>{leaves[id(parent)]}.grad</code>"
                    else:
                        to = self.to(parent[0].function)
                    sent.append(f"<code>{array(gradient)}</code> to {to}")
            steps.append(
                [str(len(steps) + 1), self.to(node.function), f"<code>{array(grads[0])}</code>", "<br />".join(sent)]
            )
            return gradients

        loss = names["loss"]
        autograd.backward(loss, run=run)
        ends = " and ".join(f"`{name}.grad` is `{array(names[name].grad)}`" for name in ("x", "w"))
        start = f"The loss is `{array(loss.data)}`. Its backward starts with dL/dL = 1 and walks the tape from the end:"
        end = f"x reached the loss in two ways, so two gradients arrive there and add up: {ends}."
        head = ["Step", "Operation", "Gradient that arrives", "Gradients that it sends on"]
        return (
            f"{listing.to_html(WALK, names, self.links)}<p>{sentence(start)}</p>{table(head, steps, 'steps')}"
            f"<p>{sentence(end)}</p>"
        )

    def own(self) -> Chapter:
        """How to add an operation, from Function's docstring, whose code is run and checked while the page is made."""
        (source,) = ["\n".join(b.lines) for b in docstrings.blocks(Function.__doc__) if b.kind == "code"]

        def run(x: Any) -> Any:
            names = {"Function": Function, "x": x}
            exec(source, names)
            return names["y"]

        x = minigrad.Tensor([1.0, -2.0], requires_grad=True)
        y = run(x)
        y.backward(np.ones_like(y.data))
        proof = (
            f"This code ran while this page was made. Where x is `{array(x.data)}`, y is `{array(y.data)}` and, for "
            f"dL/dy = 1, dL/dx is `{array(x.grad)}`."
        )
        if self.checks is not None:
            proof += f" `gradcheck` agrees: its largest error is {largest_error(run, [x]):.1e}."
        call = listing.to_html(f"mg.gradcheck{signature_of(gradcheck)}\n", {}, {})
        checking = inspect.getmodule(largest_error)
        names = vars(checking)
        steps = [
            "Write down the formula, and derive dL/dx for every input x from g = dL/dy.",
            "Write `forward` and `backward` in the letters of the derivation; `ctx.save` keeps what backward needs.",
            "Check it with `gradcheck`, at inputs that are far from kinks, with broadcasting and with every option.",
            "To make it a part of minigrad, put the class into a file of `minigrad/ops`, a function for users into "
            "`minigrad/functional.py`, and its checks into `minigrad/gradcheck/cases.py`. This book then has it too.",
        ]
        introduction = "".join(f"<li>{self.prose(step, names)}</li>" for step in steps)
        function = self.doc(Function.__doc__, vars(autograd)) + f"<p>{self.prose(proof, names)}</p>"
        check = self.doc(checking.__doc__, names) + call + self.doc(gradcheck.__doc__, names) + self.code(largest_error)
        sections = [
            Section("Function", "<code>Function</code>", function),
            Section("gradcheck", "<code>gradcheck</code>", check),
        ]
        return Chapter("own", "Your own operation", f"<ol>{introduction}</ol>", sections)

    # Pages

    def index(self, chapters: list[Chapter]) -> str:
        functions = "In the code and the text <code>F</code> is <code>minigrad.functional</code>, which users call."
        html = [f"<h1>The book of operations</h1>{self.doc(ops.__doc__, {})}<p>{functions} {self.summary()}</p>"]
        html.append('<h2 id="operations">Operations</h2>')
        for module, members in self.modules:
            rows = []
            for operation in members:
                summary, result = docstrings.first_line(operation.__doc__)
                formula = f'<div class="result">{result}</div>' if result else ""
                rows.append([self.to(operation), f"{summary}{formula}", self.verdict(operation)])
            head = [link(f"{chapter_name(module)}.html", text(title_of(module))), "", "Error"]
            html.append(table(head, rows, "operations"))
        if self.layers:
            html.append('<h2 id="layers">Layers</h2>')
            html += [f"<h3>{text(name)}</h3>{self.layers_table(found)}" for name, found in self.examples]
        html.append('<h2 id="chapters">Chapters</h2><ol class="chapters">')
        html += [f"<li>{link(chapter.name + '.html', text(chapter.title))}</li>" for chapter in chapters]
        return "".join([*html, "</ol>"])

    def summary(self) -> str:
        if self.checks is None:
            return "The gradient checks were left out of this copy."
        count = sum(map(len, self.checks.values()))
        if problems := self.problems():
            return f'<span class="wrong">Gradient checks failed: {text("; ".join(problems))}</span>'
        error, name = max((check.error, name) for name, found in self.checks.items() for check in found)
        largest = f'<span class="whole">{error:.1e}</span>'
        return (
            f"{plural(count, 'gradient check')} of {plural(len(self.operations), 'operation')} ran while this book was "
            f"made: the largest error is {largest}, in <code>{name}</code>, in float64 against central differences."
        )

    def pages(self) -> dict[str, str]:
        """The text of every page by the name of its file."""
        chapters = self.chapters()
        places = [("index", "The book of operations"), *((chapter.name, chapter.title) for chapter in chapters)]
        bodies = [self.index(chapters), *map(chapter_html, chapters)]
        pages = {}
        for i, ((name, title), body) in enumerate(zip(places, bodies, strict=True)):
            before = places[i - 1] if i else None
            after = places[i + 1] if i + 1 < len(places) else None
            pages[f"{name}.html"] = page(title, body, turn(before, after), contents(chapters, name))
        return pages


def array(value: Any) -> str:
    """A small array as a student would write it: [4, 5]."""
    return re.sub(r"\.0\b", "", str(np.asarray(value).tolist()))


def chapter_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def title_of(module: ModuleType) -> str:
    name = chapter_name(module)
    return TITLES.get(name, name.capitalize())


def layer_name(layer: type) -> str:
    return f"{layer.__module__}.{layer.__name__}"


def layer_order(layer: type) -> tuple[bool, str, int]:
    """The models first, the whole before its parts, then the layers of minigrad.nn."""
    engine, line = layer.__module__.startswith("minigrad."), inspect.getsourcelines(layer)[1]
    return engine, layer.__module__, line if engine else -line
