"""The local rule of an operation, read from its docstring and its code, and the line that called it."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import linecache
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Context, describe
from ..backend import as_array, is_array
from .tape import saved_arrays

BACKWARD = re.compile(r"(?:^|(?<=\. ))Backward[.,:]", re.M)
ENDS = re.compile(r"\s{2,}|\n|, (?=d\w+/d)|(?<=[\w)])[.:;](?=\s|$)")  # between the formulas of a text
REMARK = re.compile(r",? (?:so|which|and|for)\b.*|\.$")  # what follows a formula
WORDS = set("sin cos exp ln log tanh sqrt sign sigmoid softmax mean sum Phi pi".split())  # in formulas
LONGEST_CODE = 24  # characters in a box
LONGEST = 72  # characters of a formula beside a gradient; the derivation has longer ones


def rule_of(node: Context) -> dict[str, Any]:
    """What the operation computes, and its backward: lines of text or of formulas, and the code that runs.

    Without a docstring, the code is that of both passes.
    """
    text = inspect.cleandoc(node.function.__doc__ or "")
    head, _, rest = text.partition("\n\n")
    if start := BACKWARD.search(text):
        forward, backward = text[: start.start()], text[start.start() :]
        backward = re.sub(r"^Backward[.:]\s*?( \w)?", lambda after: (after[1] or "").strip().upper(), backward)
    else:
        forward, _, derivative = head.partition("    ")
        slopes = re.sub(r"^d\S+ = ", r"    \g<0>", derivative.strip()).replace(", dy/d", "    dy/d")
        backward = f"{slopes}\n\n{rest}"
    lines = [line for line in _lines(forward) if isinstance(line, list)]  # without the paragraphs
    first = " ".join(forward.partition("\n\n")[0].split("\n")).rstrip(".")
    methods = ["backward"] if text else ["forward", "backward"]
    code = "\n".join(_source(node.implementation, method) for method in methods)
    return {"forward": [first] * bool(first) + lines, "backward": _lines(backward), "code": code.strip()}


def _lines(text: str) -> list[str | list[str]]:
    """Paragraphs as strings; an indented line, which is of formulas, as a list of them."""
    lines: list[str | list[str]] = []
    joined = False  # does the next line of text continue a paragraph?
    for line in text.splitlines():
        if line.startswith("    "):
            lines.append(re.split(r"\s{2,}", re.sub(r"\s+= ", " = ", line.strip().rstrip("."))))
        elif joined and isinstance(lines[-1], str):
            lines[-1] += " " + line.strip()
        elif line.strip():
            lines.append(line.strip())
        joined = bool(line.strip()) and isinstance(lines[-1], str)
    return lines


def letters_of(node: Context) -> list[str]:
    """The names of the arguments of `forward` as the docstring has them: W for `weight`, if it says W."""
    words = set(re.findall(r"[A-Za-z]+", node.function.__doc__ or ""))
    choices = [[name, name[0].upper(), name[0].lower()] for name in _arguments(node)]
    return [next((choice for choice in letters if choice in words), letters[0]) for letters in choices]


def _arguments(node: Context) -> list[str]:
    parameters = list(inspect.signature(node.function.forward).parameters.values())[1:]
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "x")
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][: len(node.parents)]
    return names + [f"{several}_{i}" for i in range(1, len(node.parents) - len(names) + 1)]


def formula_of(node: Context, letter: str) -> str:
    """The formula of an argument's gradient, as "dL/da = g b^T"; its slope, where that is put in words; "" for none.

    Where the docstring has the slope, "dy/da = b", the gradient is g times that.
    """
    text = re.sub(r"\s+= ", " = ", node.function.__doc__ or "")
    pieces = [piece.strip() for piece in ENDS.split(text)]
    for left in (rf"d{letter}(?:_\w+)?", rf"dL/d{letter}(?:_\w+)?", rf"d(?:y|loss)(?:_\w+)?/d{letter}(?:_\w+)?"):
        for piece in pieces:
            found = re.search(rf"(?<![\w/]){left} = .*", piece)
            formula = REMARK.sub("", found[0]) if found else ""
            if 0 < len(formula) <= LONGEST:
                slopes = formula.split(" = ")[1:]
                if formula.startswith("dy") and WORDS.issuperset(re.findall("[A-Za-z]{2,}", " ".join(slopes))):
                    return f"dL/d{letter} = {_times_g(slopes[-1])}"
                return formula if formula.startswith(("dL", "dy", "dloss")) else f"dL/{formula}"
    return ""


def _times_g(slope: str) -> str:
    """g times a slope, as "-g", "g/x", "2 g r" or "g (1 - y^2)"."""
    if slope.lstrip("-") == "1":
        return slope.replace("1", "g")
    if re.fullmatch(r"1/(\w+|\([^()]*\))", slope):
        return f"g{slope[1:]}"
    if twice := re.fullmatch(r"(\d+) (\w+)", slope):
        return f"{twice[1]} g {twice[2]}"
    outside = re.sub(r"\^-?\w+", "", slope)
    while outside != (inner := re.sub(r"\([^()]*\)", "", outside)):
        outside = inner
    return f"g ({slope})" if re.search("[-+/]", outside) else f"g {slope}"


def saved_by(node: Context) -> list[tuple[str, Any]]:
    """What a node keeps for its backward, by the names that its code gives it: arrays, or anything else as text."""
    letters = dict(zip(_arguments(node), letters_of(node), strict=True))
    names = [letters.get(name, name) for name in _saved_names(node, len(node._saved))]
    kept: list[tuple[str, Any]] = list(zip(names, node._saved, strict=True))
    for name, value in node.__dict__.items():
        arrays = saved_arrays(value)
        kept += [(name if len(arrays) == 1 else f"{name}[{i}]", array) for i, array in enumerate(arrays)]
        kept += [] if arrays else [(name, value)]
    kept = [(name, as_array(value) if isinstance(value, np.generic) else value) for name, value in kept]
    return [(name, value if is_array(value) else describe(value)) for name, value in kept if value is not None]


def _saved_names(node: Context, n: int) -> list[str]:
    """What the code of `forward` passes to `ctx.save`, where that can be read."""
    source = _source(node.implementation, "forward")
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "save":
            names = [ast.unparse(argument) for argument in call.args]
            if len(names) == n and "*" not in "".join(names):
                return names
    return [f"array {i + 1}" for i in range(n)]


@functools.lru_cache(maxsize=200)  # to find a class, inspect parses the whole file
def _source(implementation: Any, name: str) -> str:
    """The code of a method; "" where there is none, as in an interactive session."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(implementation, name))))
        ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        return ""
    return source


def line_of(node: Context) -> dict[str, Any]:
    """The line of the user's program that called an operation, and which part of the line the call is."""
    if node.called_at is None:
        return {}
    code, instruction = node.called_at
    line, last, start, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
    linecache.checkcache(code.co_filename)
    text = linecache.getline(code.co_filename, line or 0).rstrip()
    left = len(text) - len(text.lstrip())
    span = [len(text.encode()[:at].decode(errors="ignore")) - left for at in (start or 0, end or 0)]
    span = [span[0], len(text) - left] if last != line else span
    file = Path(code.co_filename)
    name = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file.name
    found = {"file": f"{name}:{line}", "text": text.strip(), "span": span}
    part = text.strip()[slice(*span)]
    return {**found, "code": part} if 0 < len(part) <= LONGEST_CODE else found
