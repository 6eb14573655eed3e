"""What the site says of an operation that is not in its docstring: measured, or read off the code and the tape."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from minigrad import functional, kernels
from minigrad.autograd import AutogradError, Function, Variable
from minigrad.gradcheck import GradcheckError, largest_error
from minigrad.gradcheck.cases import cases
from minigrad.viz.tape import nodes_of


class Check(NamedTuple):
    """One gradient check of an operation."""

    what: str
    error: float  # the largest |analytic - numeric| / max(1, |numeric|)
    problem: str  # empty if the backward agrees with the forward


def tolerance() -> tuple[float, float]:
    """atol and rtol of the gradient check."""
    parameters = inspect.signature(largest_error).parameters
    return parameters["atol"].default, parameters["rtol"].default


def measure() -> dict[str, list[Check]]:
    """Run every case of minigrad/gradcheck/cases.py, without kernels: the code on the page is what is checked."""
    checks: dict[str, list[Check]] = {}
    with kernels.reference():
        for case in cases():
            try:
                check = Check(case.what, largest_error(case.fn, case.inputs), "")
            except (GradcheckError, AutogradError) as error:
                check = Check(case.what, float("nan"), str(error))
            checks.setdefault(case.operation, []).append(check)
    return checks


def functions_of_operations(operations: Iterable[type[Function]]) -> dict[type[Function], list[Any]]:
    """For each operation the functions in minigrad/functional.py whose code names it, in the order of that file."""
    own = [f for f in vars(functional).values() if getattr(f, "__module__", "") == functional.__name__]
    functions = [f for f in own if inspect.isfunction(f) and not f.__name__.startswith("_")]
    return {op: [f for f in functions if op.__name__ in inspect.unwrap(f).__code__.co_names] for op in operations}


class Layer(NamedTuple):
    """What the calls of one class of modules did."""

    operations: set[type[Function]]  # of its own forward
    layers: set[type]  # the modules that its forward called


def layers_and_operations(loss: Variable) -> dict[type, Layer]:
    """For each class of modules that took part in computing `loss`: what its forward used.

    Read off the tape while the model is alive: nodes refer to modules weakly. ValueError if the model is gone.
    """
    found: dict[type, Layer] = {}

    def layer_of(scope: Any) -> Layer:
        module = scope.module()
        if module is None:
            raise ValueError(f"the {scope.kind} that made this tensor is gone; keep the model while its tape is read")
        return found.setdefault(type(module), Layer(set(), set()))

    for node in nodes_of(loss):
        scope = node.scope
        if scope is None:
            continue
        layer_of(scope).operations.add(node.function)
        while scope.outer is not None:
            layer_of(scope.outer).layers.add(type(scope.module()))
            scope = scope.outer
    return found
