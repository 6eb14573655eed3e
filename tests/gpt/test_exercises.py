"""The exercises: they can be solved, every mistake is called by its name, and what is solved trains the GPT."""

import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from gpt import ConfigError
from gpt.course.own_ops import Comparison, check, load_operations
from minigrad import functional as F
from minigrad import kernels
from minigrad.ops.activation import GELUTanh, Tanh
from minigrad.ops.elementwise import Add
from tests.gpt.exercise_solutions import (
    BACKWARD,
    EXERCISES,
    FUNCTIONS,
    SUM_TO,
    handed_out,
    with_backward,
    with_functions,
    write_solutions,
)
from tests.programs import run_program

sys.path.insert(0, str(EXERCISES))
from grading import EXERCISES as ALL  # noqa: E402
from grading import OPERATIONS as TEN  # noqa: E402
from grading import grade, grade_file  # noqa: E402
from grading.diagnosis import diagnose, same  # noqa: E402
from grading.grade import is_floating, numeric_gradient  # noqa: E402

BY_FILE = {exercise.file: exercise for exercise in ALL}


def graded(tmp_path, file, body, sum_to=SUM_TO):
    """The grade of an exercise with this body in its backward."""
    text = with_backward(file, body).replace(SUM_TO, sum_to)
    (tmp_path / file).write_text(text, encoding="utf-8")
    return grade_file(BY_FILE[file], tmp_path)


# The exercises themselves


def test_there_are_twelve_and_none_is_written():
    assert [exercise.file for exercise in ALL] == sorted(path.name for path in EXERCISES.glob("ex*.py"))
    assert (len(ALL), len(TEN)) == (12, 10)
    for i, exercise in enumerate(ALL):
        assert handed_out(exercise.file).startswith(f'"""Exercise {i} of 11: ')
        assert grade_file(exercise, EXERCISES)[:2] == ("not written yet", f"open {exercise.file}")


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_the_engines_own_operation_passes(exercise):
    assert grade(exercise, exercise.operation).state == "right"


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_what_is_saved_is_enough_to_solve_it(exercise, tmp_path):
    assert graded(tmp_path, exercise.file, BACKWARD[exercise.file])[:2] == ("right", "")


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_the_terms_that_diagnoses_are_made_of_add_up_to_the_gradient(exercise):
    for case in exercise.cases:
        values = list(case.arguments.values())
        g = np.asarray(np.random.default_rng(0).standard_normal(exercise_output(exercise, values).shape))
        terms = exercise.terms(g, **case.arguments)
        for i, name in enumerate(case.arguments):
            if is_floating(values[i]):
                numeric = numeric_gradient(exercise.operation, values, i, g)
                np.testing.assert_allclose(sum(terms[name].values()), numeric, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_no_known_mistake_is_the_right_gradient_in_every_case(exercise):
    told = set()  # the mistakes that some case tells from the right gradient; their numbers differ from case to case
    known = set()
    for case in exercise.cases:
        g = np.asarray(
            np.random.default_rng(0).standard_normal(exercise_output(exercise, list(case.arguments.values())).shape)
        )
        terms = exercise.terms(g, **case.arguments)
        for name, mistakes in exercise.mistakes(g, **case.arguments).items():
            for message, wrong in mistakes.items():
                known.add(re.sub(r"\d+", "N", message))
                if not same(wrong, sum(terms[name].values())):
                    told.add(re.sub(r"\d+", "N", message))
    assert told == known


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_the_gradient_of_every_known_mistake_gets_its_message_in_every_case(exercise):
    for case in exercise.cases:
        g = exercise_output(exercise, list(case.arguments.values()))
        g = np.asarray(np.random.default_rng(1).standard_normal(g.shape))
        terms = exercise.terms(g, **case.arguments)
        for name, mistakes in exercise.mistakes(g, **case.arguments).items():
            right = sum(terms[name].values())
            mistakes = mistakes if is_floating(case.arguments[name]) else {}  # gamma and beta may be None
            for wrong in map(np.asarray, mistakes.values()):
                if not same(wrong, right):  # in this case it is a mistake
                    expected = [message for message, other in mistakes.items() if same(other, wrong)]
                    assert diagnose(exercise, case, name, wrong, right, g) in expected


def exercise_output(exercise, values):
    ctx = mg.autograd.Context(exercise.operation, tuple(map(is_floating, values)))
    return np.asarray(exercise.operation.forward(ctx, *values))


# Every mistake is called by its name

# Pieces of code that a student may write in the exercises of plain functions.
ONE_COPY = """
slopes, now = np.zeros(x.shape), x.copy()
for place in np.ndindex(x.shape):
    above, below = now.copy(), now.copy()
    above[place] += h
    below[place] -= h
    slopes[place] = (f(above) - f(below)) / (2 * h)
    now[place] += {}
return slopes"""
RECURSION = """
listed, seen = [], set()
def visit(node):
    if node not in seen:
        seen.add(node)
        for x in node.inputs:
            visit(x)
        listed.append(node)
visit(root)
return listed[::-1]"""
DEEP_RECURSION = f"""
import sys
sys.setrecursionlimit(10**5){RECURSION}"""
EVERY_PATH = """
last, waiting = {}, [root]
for i, node in enumerate(waiting):
    last[node] = i
    waiting += node.inputs
return sorted(last, key=last.get)"""
IN_A_LIST = """
listed, seen, path = [], [], [(root, iter(root.inputs))]
while path:
    node, rest = path[-1]
    x = next(rest, None)
    if x is None:
        listed.append(node)
        path.pop()
    elif x not in seen:
        seen.append(x)
        path.append((x, iter(x.inputs)))
return listed[::-1]"""
IN_PLACE = """
grads = {root: g}
for node in order(root):
    g = grads.pop(node)
    if not node.inputs:
        node.grad = g.copy() if node.grad is None else node.grad + g
        continue
    for x, new in zip(node.inputs, node.backward(g)):
        if x in grads:
            grads[x] += new
        else:
            grads[x] = new"""
BREADTH_FIRST = """
if not root.inputs:
    root.grad = g.copy() if root.grad is None else root.grad + g
waiting, grads = [root] if root.inputs else [], {root: g}
while waiting:
    node = waiting.pop(0)
    for x, new in zip(node.inputs, node.backward(grads[node])):
        if not x.inputs:
            x.grad = new.copy() if x.grad is None else x.grad + new
        elif x in grads:
            grads[x] = grads[x] + new
        else:
            grads[x] = new
            waiting.append(x)"""


# For each exercise: a piece of its solution (None: all of it), what the student wrote instead, and what is said of it.
MISTAKES = {
    "ex01_add.py": [
        (None, "return g, g", "dL/db has the shape of the result, (3, 4), but b is (4,): sum over the axes"),
        (None, "return -g, g", "dL/da has the wrong sign"),
        (None, "return 2 * g, g", "dL/da is 2 times the right gradient"),
        (None, "return 0 * g, g", "dL/da is zero everywhere"),
        (None, "return None, g", "backward returns None for a; expected dL/da"),
        (None, "return g", "backward returns 1 gradient; expected 2, one for each of a, b"),
        (None, "sum_to(g, a_shape), sum_to(g, b_shape)", "backward returns None; is its `return` missing?"),
        (None, "return mg.Tensor(g), mg.Tensor(g)", "backward returns a Tensor as a gradient; expected a NumPy array"),
        (None, "return [g.tolist(), g.tolist()]", "backward returns a list as a gradient; expected a NumPy array"),
        (
            None,
            "return g.sum(axis=-1) if g.shape != a_shape else g, g.sum(axis=-1) if g.shape != b_shape else g",
            "dL/db has the shape (3,), but b is (4,): the sum runs over the wrong axes; sum over those along which",
        ),
        (None, "return np.ones(g.shape), g", "dL/da does not depend on g: multiply by the gradient"),
        (None, "return g / 0, g", "dL/da has a NaN or an infinity at (0, 0), where a is"),
        (
            None,
            "return sum_to(g, a_shape), sum_to(g, b_shape) * (max(np.prod(b_shape, dtype=int), 1).item() / g.size)",
            "dL/db is the mean over the 3 places that b was copied to; it should be the sum",
        ),
        (
            None,
            "return sum_to(g, a_shape).astype(np.float64), sum_to(g, b_shape)",
            "dL/da is float64 although all inputs are float32",
        ),
        (
            None,
            "g *= 1; return g, g",
            "line 45, g *= 1; return g, g: writes to g, to an argument or to a saved array",
        ),
        (None, "return undefined, g", "NameError: name 'undefined' is not defined; g is (2, 3), a (2, 3)"),
    ],
    "ex02_multiply.py": [
        (None, "return g * b, g * b", "dL/db is g b: dy/db is the other factor, a"),
        (None, "return g * a, g * b", "dL/da is g a: dy/da is the other factor, b"),
        (None, "return g, g", "dL/da is g alone: the factor dy/da is missing"),
        (None, "return g * b, g", "dL/db is g alone: the factor dy/db is missing"),
        (
            "sum_to(g * b, a_shape)",
            "sum_to(g, a_shape) * sum_to(b + 0 * g, a_shape)",
            "dL/da is (sum of g) (sum of b): multiply first, then sum over the axes that were broadcast",
        ),
        (None, "return g @ b, g @ a", "@ is the matrix product; write * to multiply element by element"),
        (None, "return sum_to(g * b, b_shape), g * a", "a is (3, 4): a was not copied, so there is nothing to sum"),
        (None, "return b, a", "dL/da does not depend on g"),
        (None, "return g * b, g * a", "dL/db has the shape of the result, (3, 4), but b is (4,)"),
        (
            None,
            "return sum_to(g, a_shape) * sum_to(b + 0 * g, a_shape), sum_to(g, b_shape) * sum_to(a + 0 * g, b_shape)",
            "dL/db is (sum of g) (sum of a): multiply first, then sum over the axes that were broadcast",
        ),
    ],
    "ex03_gelu.py": [
        ("dt = 1 - t * t", "dt = 1 - t", "dt/du is 1 - t^2, not 1 - t"),
        ("dt = 1 - t * t", "dt = 1 + t * t", "dt/du is 1 - t^2, not 1 + t^2"),
        ("dt = 1 - t * t", "dt = 1", "the factor dt/du is missing"),
        ("du = c * (1 + 3 * a * x * x)", "du = 1", "the factor du/dx is missing"),
        ("du = c * (1 + 3 * a * x * x)", "du = c", "the term x/2 (1 - t^2) c 3 a x^2 is missing"),
        ("(1 + 3 * a", "(1 + a", "the term x/2 (1 - t^2) c 3 a x^2 is 0.3333 times what"),
        ("+ 0.5 * x", "- 0.5 * x", "x/2 (1 - t^2) c has the wrong sign; the term x/2"),
        ("0.5 * (1 + t)", "0.0", "the term (1 + t)/2 is missing: x is also a factor of y"),
        (" + 0.5 * x * dt * du", "", "the term x/2 dt/dx is missing: t also depends on x"),
        ("return g * (", "return (", "dL/dx does not depend on g"),
        (
            "return g * (",
            "return g.T * (lambda y: y.T)(",
            "dL/dx has the shape (4, 3), but x is (3, 4): it is the transpose",
        ),
        (None, "return g.sum(keepdims=True)", "(1, 1), but x is (3, 4): x was not copied, so there is nothing to sum"),
        (None, "return g", "dL/dx is g itself: the factor dy/dx is missing (the chain rule)"),
        (None, "pass", "backward returns None; is its `return` missing?"),
        (None, "return g.astype(object)", "backward returns an array of dtype object as a gradient; expected real"),
        (None, "return 0", "backward returns an int as a gradient; expected a NumPy array"),
        (None, "raise SystemExit", "line 37, raise SystemExit: SystemExit: ; g is (3, 4), x (3, 4)"),
    ],
    "ex04_matmul.py": [
        ("g @ b.swapaxes(-1, -2)", "g @ b", "A transpose is missing, or the factors of a"),
        (
            "b.swapaxes(-1, -2)",
            "b.T",
            ".T reverses all axes, also the leading ones; swapaxes(-1, -2) exchanges the last",
        ),
        ("g @ b.swapaxes(-1, -2)", "g * b.swapaxes(-1, -2)", "* multiplies element by element; write @ for a matrix"),
        (
            "sum_to(g @ b.swapaxes(-1, -2), a.shape)",
            "g @ b.swapaxes(-1, -2)",
            "size 24 into shape (3,4); g is (2, 3, 5), a (3, 4), b (2, 4, 5). There are 2 times as many elements: sum",
        ),
        (
            "da.reshape(a_shape)",
            "da",
            "dL/da has the shape (1, 4), but a is (4,): the numbers are right; drop the axes of",
        ),
        (
            "g @ b.swapaxes(-1, -2)",
            "b @ g.swapaxes(-1, -2)",
            "dL/da is b g^T in another shape: a transpose is in the wrong place; it should be g b^T",
        ),
        (
            "a.swapaxes(-1, -2) @ g",
            "g.swapaxes(-1, -2) @ a",
            "dL/db is g^T a in another shape: a transpose is in the wrong place; it should be a^T g",
        ),
        (
            "sum_to(g @ b.swapaxes(-1, -2), a.shape)",
            "(g @ b.swapaxes(-1, -2)).sum(tuple(i for i in range(a.ndim - 2) if a.shape[i] == 1), keepdims=True)",
            "one matrix and a batch of matrices: line",
        ),
        (
            "sum_to(g @ b.swapaxes(-1, -2), a.shape)",
            "sum_to(g @ b.swapaxes(-1, -2), a.shape if len(a_shape) > 1 else g.shape[:-1] + a_shape)",
            "a vector and a batch of matrices: line",
        ),
    ],
    "ex05_linear.py": [
        (
            "g_rows.T @ rows",
            "g_rows.T @ rows / len(rows)",
            "dL/dweight is the mean over the 3 rows; it should be the sum",
        ),
        ("g_rows.T @ rows", "rows.T @ g_rows", "dL/dweight has the shape (4, 5), but weight is (5, 4): a tr"),
        ("g_rows.sum(axis=0)", "g_rows", "dL/dbias has the shape of the result"),
        (
            "g_rows.sum(axis=0)",
            "g_rows.sum(axis=0, keepdims=True)",
            "dL/dbias has the shape (1, 5), but bias is (5,): the numbers are right; drop the axes of size 1 (no ke",
        ),
        (
            "g_rows.T @ rows",
            "(g_rows.T @ rows).sum(0)",
            "dL/dweight has the shape (4,), but weight is (5, 4): it was summed over an axis that weight has",
        ),
        ("g_rows.T @ rows", "g.T @ x", "after reshape(-1, …) there are only two"),
        (None, "return x @ weight.T, g.T @ x, g.sum(0)", "dL/dx has the shape (3, 5), but x is (3, 4)"),
        ("sum", "mean", "dL/dbias is the mean over the 3 rows; it should be the sum"),
        (
            "g_rows.sum(axis=0)",
            "g_rows.sum(axis=1)",
            "dL/dbias has the shape (3,), but bias is (5,): the sum runs over the wrong axes",
        ),
        (
            "g_rows.T @ rows, g_rows.sum(axis=0)",
            "g_rows.sum(axis=0), g_rows.T @ rows",
            "dL/dweight is what dL/dbias should be: return the gradients in the order of the arguments",
        ),
        (
            "g_rows.T @ rows",
            "g.swapaxes(-1, -2) @ x",
            "(2, 5, 4), but weight is (5, 4): sum over the axes that weight does not have",
        ),
    ],
    "ex06_embedding.py": [
        ("np.add.at(dW, ids, g)", "dW[ids] = g", "keeps only the last of its rows"),
        ("np.add.at(dW, ids, g)", "dW[ids] += g", "keeps only the last of its rows"),
        (
            "return None, dW",
            "n = np.bincount(ids, minlength=len(dW))[:, None].clip(1); return None, dW / n.astype(g.dtype)",
            "an id that occurs several times has the mean of its rows of g; it should be the sum",
        ),
        (None, "return None, g", "dL/dweight has the shape of the result, (3, 3); expected (5, 3)"),
        ("ctx.shape, g.dtype)", "ctx.shape)", "dL/dweight is float64 although all"),
    ],
    "ex07_softmax.py": [
        (None, "return g * y, None", "the term - y sum(g y) is missing"),
        (None, "return g * y * (1 - y), None", "the other y_j are missing, which x_i also affects"),
        ("g -", "g +", "the term - y sum(g y) has the wrong sign"),
        ("(g * y).sum", "g.sum", "the sum is over g; it should be over g y"),
        (".sum", ".mean", "the mean of g y is subtracted; it should be the sum"),
        ("sum(axis=ctx.axis, keepdims=True)", "sum()", "the sum runs over the whole array"),
        ("axis=ctx.axis", "axis=-1", "dL/dx: the sum runs along the wrong axis"),
        ("return y * (", "return (", "dL/dx: the factor y is missing"),
        (
            ", keepdims=True",
            "",
            "of shape (3,) lacks axis 1. If a sum or a mean lost it, keepdims=True keeps it, with size 1",
        ),
        (None, "return y * g - (g * y).sum(axis=ctx.axis, keepdims=True), None", "the y before the sum is missing"),
        (None, "return y * (g - y * g.sum(axis=ctx.axis, keepdims=True)), None", "y is outside the sum"),
        (None, "return g - y * g.sum(axis=ctx.axis, keepdims=True), None", "is the gradient of log-softmax"),
    ],
    "ex08_cross_entropy.py": [
        (
            None,
            "return (p - q).reshape(ctx.shape), *[None] * 4",
            "dL/dx is p - q alone; multiply by g (the chain rule), and",
        ),
        (
            None,
            "return p.reshape(ctx.shape), *[None] * 4",
            "dL/dx is p alone; subtract q, multiply by g (the chain rule)",
        ),
        (
            "g.reshape(-1, 1)",
            "g",
            "shape (4,) lacks axis 1. If a sum or a mean lost it, keepdims=True keeps it, with size 1; to",
        ),
        ("(p - q) *", "p *", "the 1 at the target (q) is not subtracted"),
        ("(p - q)", "(q - p)", "dL/dx has the wrong sign"),
        ("(p - q)", "(p + q)", "the term - g q has the wrong sign"),
        ("/ ctx.n", "/ 1", "not divided by the number of targets, 4"),
        ("/ ctx.n", "/ ctx.n**2", "divided by the number of targets, 4, twice"),
        ("/ ctx.n", "/ len(p)", "divided by 6, the number of rows; the mean is over the 4 not ignored"),
        ("/ ctx.n", "/ p.size", "divided by 20, the number of logits"),
        ("/ ctx.n", "/ p.shape[1]", "divided by 5, the number of classes"),
        ('ctx.reduction == "mean"', "True", 'which is right only for "mean"'),
        (" * counted[:, None]", "", "rows whose target is ignore_index have a"),
        ("dx.reshape(ctx.shape), None", "dx, None", "dL/dx has the shape (6, 5), but x is (2, 3, 5): the numbers are"),
    ],
    "ex09_layer_norm.py": [
        (" - row_mean(g_hat)", "", "the term - r mean(g_hat) is missing"),
        (
            "g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat)",
            "g_hat - row_mean(g_hat)",
            "the term - r x_hat mean(g_hat x_hat) is missing",
        ),
        (
            "g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat)",
            "g_hat",
            "- r mean(g_hat) is missing; the term - r x_hat mean(g_hat x_hat) is missing",
        ),
        ("- x_hat", "+ x_hat", "- r x_hat mean(g_hat x_hat) has the wrong sign"),
        ("- x_hat * row", "- row", "in the term - r x_hat mean(g_hat x_hat), the x_hat"),
        ("row_mean(g_hat * x_hat)", "row_mean(g_hat)", "the mean is of g_hat; it should be of g_hat x_hat"),
        ("row_mean(g_hat * x_hat)", "row_mean(g * x_hat)", "the mean is of g x_hat; it should be of g_hat x_hat"),
        ("row_mean(g_hat) -", "row_mean(g) -", "in the term - r mean(g_hat), the mean is of g; it should be of g_hat"),
        (
            "row_mean(g_hat * x_hat)",
            "(g_hat * x_hat).mean(axis=-1)",
            "shape (3,) lacks axis 1. If a sum or a mean lost",
        ),
        ("g_hat = g * gamma", "g_hat = g", "dL/dx uses g; it should use g_hat = g gamma"),
        ("r * (g_hat -", "(g_hat -", "dL/dx: the factor r is missing"),
        ("r * (", "1 / r * (", "dL/dx is divided by r; it should be multiplied"),
        ("r * (", "r * r * (", "dL/dx: the factor r appears twice"),
        ("- row_mean(g_hat) -", "- row_mean(g_hat) / r -", "in the term - r mean(g_hat), the factor r is missing"),
        ("- x_hat * row", "- x_hat / r * row", "in the term - r x_hat mean(g_hat x_hat), the factor r is missing"),
        ("- x_hat * row", "- x_hat * r * r * row", "has r^3 instead of r: each x - mu in it is x_hat / r"),
        (
            "g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat)",
            "gamma * (g - row_mean(g) - x_hat * row_mean(g * x_hat))",
            "gamma belongs inside the means",
        ),
        ("sum_to(g * x_hat, gamma", "sum_to(g_hat * x_hat, gamma", "dL/dgamma uses g_hat; it should use g"),
        ("row_mean(", "x_hat.shape[-1] * row_mean(", "the sums of g_hat"),
        (
            "row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat)",
            "g_hat.mean() - x_hat * (g_hat * x_hat).mean()",
            "the means run over the whole array",
        ),
        ("sum_to(g * x_hat, gamma", "sum_to(g, gamma", "dL/dgamma is the sum of g; the factor x_hat"),
        ("sum_to(g * x_hat, gamma.shape), sum", "g * x_hat, sum", "dL/dgamma has the shape of the result, (3, 4)"),
        (
            "sum_to(g * x_hat, gamma.shape), sum_to(g, gamma.shape), None",
            "sum_to(g, gamma.shape), sum_to(g * x_hat, gamma.shape), None",
            "dL/dgamma is the sum of g",
        ),
        (
            ", None",
            "",
            "without beta: backward returns 3 gradients; expected 4, one for each of x, gamma, beta, eps, with None",
        ),
    ],
    "ex10_attention.py": [
        (
            "p * (dp - (dp * p).sum(axis=-1, keepdims=True))",
            "p * dp",
            "dL/dq: softmax's term - P sum(dP P) is missing",
        ),
        ("ctx.scale * ds", "ds", "dL/dq: the scale 1/sqrt(D) is missing"),
        ("ctx.scale * ds", "1 / ctx.scale * ds", "multiplied by sqrt(D) instead of"),
        ("ctx.scale * ds", "ctx.scale**2 * ds", "the scale 1/sqrt(D) appears twice"),
        (
            "p * (dp - (dp * p).sum(axis=-1, keepdims=True))",
            "dp",
            "softmax's backward is missing: dP is used as dS",
        ),
        ("(dp * p).sum", "dp.sum", "dL/dq: in softmax's backward the sum is over dP; it should be over dP P"),
        (
            "sum(axis=-1",
            "mean(axis=-1",
            "dL/dq: in softmax's backward the mean of dP P is subtracted; it should be the sum",
        ),
        ("p * (dp -", "(dp -", "dL/dq: in softmax's backward the factor P is missing"),
        (
            ", keepdims=True",
            "",
            "dL/dq: the sum in softmax's backward loses the axis of the keys; with keepdims=True it",
        ),
        ("ds.swapaxes(-1, -2)", "ds.T", ".T reverses all axes"),
        ("axis=-1", "axis=-2", "runs over the queries; it should run over the keys"),
        ("ds @ k", "ds @ q", "dL/dq: dS is multiplied by q; it should be multiplied by k"),
        ("ds.swapaxes(-1, -2) @ q", "ds.swapaxes(-1, -2) @ k", "dL/dk: dS is multiplied by k"),
        ("ds.swapaxes(-1, -2) @ q", "ds @ q", "dL/dk: dS is not transposed"),
        ("drop(p, ctx.dropout).swapaxes(-1, -2) @ g", "drop(p, ctx.dropout) @ g", "dL/dv: A is not transposed"),
        ("dp = drop(da, ctx.dropout)", "dp = da", "dL/dq: dropout is missing in dP = drop(dA)"),
        ("drop(p, ctx.dropout).swap", "p.swap", "dL/dv: dropout is missing: y = A v, and A is drop(P)"),
        (
            "drop(p, ctx.dropout).swap",
            "softmax(ctx.scale * q @ k.swapaxes(-1, -2), -1).swap",
            "dL/dv: the mask is not applied: values get gradients from queries they are masked for",
        ),
        (
            "da =",
            "p = softmax(ctx.scale * q @ k.swapaxes(-1, -2), -1); da =",
            "causal: dL/dq: the causal mask is not applied",
        ),
        (
            "sum_to(dv, v.shape), None",
            "dv, None",
            "dL/dv has the shape of the result, (2, 3, 4), but v is (1, 3, 4): sum over the axes along which v",
        ),
        (
            "sum_to(dq, q.shape)",
            "dq",
            "queries that all heads share: dL/dq has the shape of the result, (2, 3, 4), but q is (3, 4): sum over",
        ),
        (
            "dq = ctx.scale * ds @ k",
            "dq = ctx.scale * ds.swapaxes(-1, -2) @ q",
            "dL/dq is what dL/dk should be: return the",
        ),
    ],
}


def all_mistakes():
    for file, mistakes in MISTAKES.items():
        for right, wrong, message in mistakes:
            assert right is None or right in BACKWARD[file]
            body = f"        {wrong}\n" if right is None else BACKWARD[file].replace(right, wrong)
            yield pytest.param(file, body, message, id=f"{file[2:-3]}: {wrong}")


@pytest.mark.parametrize(("file", "body", "message"), list(all_mistakes()))
def test_a_mistake_is_called_by_its_name(file, body, message, tmp_path):
    result = graded(tmp_path, file, body)
    assert result.state == "wrong"
    assert message in result.message


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_every_mistake_that_an_exercise_knows_is_made_above(exercise):
    def pattern(message):  # the argument, numbers, shapes and the kind of the mask differ from case to case
        message = re.sub(r"\((\d+,? ?)*\)", "(shape)", message.replace("causal ", ""))
        return re.sub(r"dL/d\w+", "dL/d_", re.sub(r"\d+", "N", message))

    known = set()
    for case in exercise.cases:
        g = np.zeros(exercise_output(exercise, list(case.arguments.values())).shape)
        known |= {pattern(message) for about in exercise.mistakes(g, **case.arguments).values() for message in about}
    made = [pattern(message.rpartition("causal: ")[2]) for _, _, message in MISTAKES[exercise.file]]
    assert [message for message in known if not any(one in message for one in made)] == []


def test_a_mistake_that_nobody_has_thought_of_gets_both_numbers(tmp_path):
    result = graded(
        tmp_path,
        "ex07_softmax.py",
        BACKWARD["ex07_softmax.py"].replace("), None", ") + 0.1 * (y > 0.5), None"),
    )
    assert re.search(
        r"dL/dx is wrong in \d of its 12 elements; at \(\d, \d\) backward gives \S+, finite differences give ",
        result.message,
    )


def test_another_forward_is_told_from_a_wrong_backward(tmp_path):
    text = with_backward("ex02_multiply.py", BACKWARD["ex02_multiply.py"]).replace("return a * b", "return 2 * a * b")
    (tmp_path / "ex02_multiply.py").write_text(text, encoding="utf-8")
    result = grade_file(BY_FILE["ex02_multiply.py"], tmp_path)
    assert result[:2] == (
        "wrong",
        "a and b of one shape: forward gives a different result than the engine's; change only backward",
    )


FORWARDS = {
    "1 / 0": "forward fails; change only backward. line 28, 1 / 0: ZeroDivisionError: division by zero; a (2, 3)",
    "raise NotImplementedError": "forward fails; change only backward. line 28",
    "raise SystemExit": "forward fails; change only backward. line 28",
    "a *= 2": "forward fails; change only backward. line 28, a *= 2: writes to g, to an argument or to a saved array",
    "return None": "forward returns None; expected a NumPy array; change only backward",
    "return 'x'": "forward returns a str; expected a NumPy array; change only backward",
    "return [a, b]": "forward returns a list; expected a NumPy array; change only backward",
}


@pytest.mark.parametrize("line", FORWARDS)
def test_a_forward_that_fails_is_told_from_a_backward_that_is_not_written(line, tmp_path):
    text, count = re.subn(r"(def forward\(.*\n)", rf"\1        {line}\n", handed_out("ex02_multiply.py"))
    assert count == 1
    (tmp_path / "ex02_multiply.py").write_text(text, encoding="utf-8")
    result = grade_file(BY_FILE["ex02_multiply.py"], tmp_path)
    assert result.state == "wrong"
    assert result.message.startswith(f"a and b of one shape: {FORWARDS[line]}")


@pytest.mark.parametrize("exercise", TEN, ids=lambda exercise: exercise.name)
def test_empty_files_zeros_and_programs_that_end_are_graded_too(exercise, tmp_path):
    path = tmp_path / exercise.file
    path.write_text("", encoding="utf-8")
    assert grade_file(exercise, tmp_path)[:2] == (
        "wrong",
        f"{path}: expected a class derived from minigrad.Function, found none",
    )
    path.write_text("raise SystemExit", encoding="utf-8")
    assert grade_file(exercise, tmp_path)[:2] == ("wrong", f"{path}: ends the program when it is imported")
    body = (
        BACKWARD[exercise.file].replace("return", "right =")
        + "        return tuple(0 * x for x in right if x is not None)\n"
    )
    if exercise.name == "GELUTanh":
        body = body.replace("tuple(0 * x for x in right if x is not None)", "0 * right")
    result = graded(tmp_path, exercise.file, body)
    assert result.state == "wrong"
    assert re.search(r"dL/d\w+ is zero everywhere$", result.message)


# The exercises of plain functions, in the same form: a function, a piece of its solution or None, and the mistake
FUNCTION_MISTAKES = {
    "ex00_slopes.py": [
        ("derivative", "f(x - h)) / (2 * h)", "f(x)) / h", "only the step from x to x + h is taken"),
        ("derivative", "(f(x + h) - f(x - h)) / (2 * h)", "(f(x) - f(x - h)) / h", "only the step from x - h to x is"),
        ("derivative", "(2 * h)", "h", "divided by h; from x - h to x + h it is 2h"),
        ("derivative", "f(x + h) - f(x - h)", "f(x - h) - f(x + h)", "wrong sign; it is f(x + h) minus f(x - h)"),
        ("derivative", "(2 * h)", "2 * h", "divided by 2, then multiplied by h; write / (2 * h)"),
        ("derivative", "(2 * h)", "2", "divided by 2; the distance is 2h"),
        ("derivative", " / (2 * h)", "", "not divided by the distance, 2h"),
        ("derivative", "return", "h = 1e-5; return", "another step than h is used"),
        ("derivative", None, "return 0", "derivative of x^3 at 2, with h = 0.5: the result is zero everywhere"),
        ("derivative", None, "f(x)", "derivative returns None; is its `return` missing?"),
        ("derivative", None, "return f", "derivative returns function <function"),
        ("derivative", None, "return f(x)", "with h = 0.5: got 8; expected 12.25"),
        ("derivative", None, "return 1 / 0", "line 14, return 1 / 0: ZeroDivisionError: division by zero"),
        ("derivative", None, "raise SystemExit", "line 14, raise SystemExit: SystemExit: "),
        ("gradient", "f(below)) / (2 * h)", "f(x)) / h", "of an array (3,): only the step from x to x + h"),
        ("gradient", "(2 * h)", "h", "of an array (3,): divided by h; from x - h to x + h it is 2h"),
        ("gradient", "x.copy(), x.copy()", "x, x.copy()", "gradient: its argument has changed; work on a copy"),
        (
            "gradient",
            "above[place] += h\n        below[place] -= h",
            "above += h\n        below -= h",
            "of an array (3,): all elements are moved at once; move one, while the others stay",
        ),
        ("gradient", None, ONE_COPY.format("h"), "elements that were moved by h before are still moved"),
        ("gradient", None, ONE_COPY.format("-h"), "elements that were moved by -h before are still moved"),
        ("gradient", "np.ndindex(x.shape)", "range(len(x))", "of an array (2, 3): whole rows are moved"),
        ("gradient", "return slopes", "return slopes.ravel()", "the result has the shape (6,); expected (2, 3)"),
        ("gradient", None, "return np.zeros(x.shape)", "gradient of an array (3,): the result is zero everywhere"),
        ("count_pairs", "counts[a, b]", "counts[b, a]", "rows and columns are exchanged"),
        ("count_pairs", "+= 1", "= 1", "every pair counts once, however often it occurs"),
        ("count_pairs", "ids[:-1], ids[1:]", "ids[:-2], ids[1:]", "the last pair is missing"),
        ("count_pairs", "ids[:-1], ids[1:]", "ids[1:], ids[2:]", "the first pair is missing"),
        (
            "count_pairs",
            "ids[:-1], ids[1:]",
            "ids, ids[1:] + ids[:1]",
            "the last id and the first are counted as a pair",
        ),
        ("count_pairs", "ids[:-1], ids[1:]", "ids, ids", "each id is paired with itself"),
        (
            "count_pairs",
            None,
            "return np.bincount(ids, minlength=V)",
            "single ids are counted; a pair is an id and the",
        ),
        ("count_pairs", None, "return np.zeros((V, V))", "count_pairs of [2, 0, 0, 1]: the result is zero everywhere"),
        ("probabilities", "axis=1", "axis=0", "each column adds up to 1; each row should"),
        ("probabilities", ", keepdims=True", "", "the sum of row i divides column i; keepdims=True keeps the axis"),
        ("probabilities", "axis=1, ", "", "divided by the sum of the whole array; divide each row by its own"),
        ("probabilities", "counts + 1", "counts", "a row without pairs becomes 0/0; add one to each count first"),
        ("probabilities", "/ more.sum(axis=1, keepdims=True)", "/ counts.sum(axis=1, keepdims=True)", "not in the sum"),
        ("probabilities", " / more.sum(axis=1, keepdims=True)", "", "the counts are not divided"),
        ("probabilities", "return more", "return counts", "expected 0.571429"),
        (
            "probabilities",
            "return more / more.sum(axis=1, keepdims=True)",
            "return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)",
            "one is not added to the counts, so that a pair that never occurred is impossible",
        ),
        ("probabilities", None, "return np.zeros((3, 3))", "probabilities: the result is zero everywhere"),
    ],
    "ex11_walk.py": [
        ("order", None, "return None", "a root that is a leaf: order: it returns None; expected a list of nodes"),
        ("order", None, "return []", "a root that is a leaf: order: x is missing"),
        ("order", "return listed", "return listed[::-1]", "a chain of 3 nodes: order: the order is reversed"),
        ("order", "return listed", "return found", "x comes before a, which uses it; a node comes after all its uses"),
        ("order", "return listed", "return listed[:-1] or listed", "a chain of 3 nodes: order: x is missing"),
        (
            "order",
            "return listed",
            "return listed + listed",
            "a root that is a leaf: order: x is listed more than once",
        ),
        ("order", "return listed", "return [*listed, 1]", "something in the list that root was not computed from"),
        ("order", "if uses[x] == 0", "if uses[x] >= 0", "order: x is listed more than once"),
        ("order", None, RECURSION, "a chain of 3,000 nodes: order calls itself, which Python allows only about a"),
        ("order", None, DEEP_RECURSION, "a root that is a leaf: order calls itself, which Python allows only about a"),
        ("order", None, EVERY_PATH, "40 diamonds in a row: order: every path to a node is followed"),
        ("order", None, IN_A_LIST, "nodes are searched for in a list, which compares all of them; use a set"),
        ("order", None, "return root + 1", "a root that is a leaf: order: line 19, return root + 1: TypeError"),
        ("backward", "x in grads", "False", "only the last of 3 gradients; add them, do not overwrite"),
        ("backward", "grads[x] + new if x in grads else new", "grads.get(x, new)", "only the first of 3 gradients"),
        (
            "backward",
            "grads[x] = grads[x] + new if x in grads else new",
            "grads[x] = 0 * new",
            "a chain of 3 nodes: backward: n1",
        ),
        ("backward", None, IN_PLACE, "adds in place to a gradient that is borrowed: another node may hold the same"),
        ("backward", "g.copy()", "g", "x.grad is an array that others hold too; make a copy"),
        ("backward", " if node.grad is None else node.grad + g", "", "for a second time: x.grad is the new gradient"),
        ("backward", None, BREADTH_FIRST, "is visited before all its uses: "),
        ("backward", None, "pass", "a root that is a leaf: backward: x.grad is still None"),
        ("backward", None, "root.grad = 0 * g", "a root that is a leaf: backward: x.grad is zeros"),
        ("backward", None, "root.grad = 1.0", "x.grad is 1.0; expected an array of shape (2,)"),
        ("backward", "if not node.inputs:", "if False:", "backward of x is called, but it is a leaf"),
        ("backward", None, "root.backward(g)", "backward of x is called, but it is a leaf"),
        ("backward", "in order(root)", "in [*order(root), root]", "KeyError"),
        (
            "backward",
            "for x, new in zip(node.inputs, node.backward(g)):",
            "node.backward(g)\n        for x, new in zip(node.inputs, node.backward(g)):",
            "is visited twice; visit it once, when its whole gradient has arrived",
        ),
        ("backward", "node.grad + g", "node.grad + g / 2", "expected"),
        (
            "backward",
            "if not node.inputs:",
            "if len(order(root)) > 6:\n            g = g / 2\n        if not node.inputs:",
            "expected [",
        ),
    ],
}


def all_function_mistakes():
    for file, mistakes in FUNCTION_MISTAKES.items():
        for name, right, wrong, message in mistakes:
            body = FUNCTIONS[file][name]
            assert right is None or right in body
            body = textwrap.indent(wrong, "    ") + "\n" if right is None else body.replace(right, wrong)
            yield pytest.param(file, {**FUNCTIONS[file], name: body}, message, id=f"{file[2:-3]}: {wrong}")


@pytest.mark.parametrize(("file", "bodies", "message"), list(all_function_mistakes()))
def test_a_mistake_in_a_function_is_called_by_its_name(file, bodies, message, tmp_path):
    (tmp_path / file).write_text(with_functions(file, bodies), encoding="utf-8")
    result = grade_file(BY_FILE[file], tmp_path)
    assert result.state == "wrong"
    assert message in result.message


@pytest.mark.parametrize("file", FUNCTIONS)
def test_functions_can_be_written_in_turn_and_are_right_in_the_end(file, tmp_path):
    bodies = {}
    for name in BY_FILE[file].functions:
        (tmp_path / file).write_text(with_functions(file, bodies), encoding="utf-8")
        assert grade_file(BY_FILE[file], tmp_path)[:2] == ("not written yet", f"open {file}")
        bodies[name] = FUNCTIONS[file][name]
    (tmp_path / file).write_text(with_functions(file, bodies), encoding="utf-8")
    assert grade_file(BY_FILE[file], tmp_path)[:2] == ("right", "")


@pytest.mark.parametrize("file", FUNCTIONS)
def test_files_without_the_functions_are_graded_too(file, tmp_path):
    (tmp_path / file).write_text("", encoding="utf-8")
    first = BY_FILE[file].functions[0]
    assert grade_file(BY_FILE[file], tmp_path)[:2] == ("wrong", f"{file} has no function {first}")
    (tmp_path / file).write_text("raise SystemExit", encoding="utf-8")
    assert grade_file(BY_FILE[file], tmp_path)[:2] == (
        "wrong",
        f"{tmp_path / file}: ends the program when it is imported",
    )
    (tmp_path / file).unlink()
    assert grade_file(BY_FILE[file], tmp_path)[:2] == ("wrong", f"there is no {file} in {tmp_path}")


def test_a_missing_file_and_a_missing_class(tmp_path):
    exercise = BY_FILE["ex04_matmul.py"]
    assert grade_file(exercise, tmp_path)[:2] == ("wrong", f"there is no ex04_matmul.py in {tmp_path}")
    shutil.copy(EXERCISES / "ex05_linear.py", tmp_path / "ex04_matmul.py")
    assert grade_file(exercise, tmp_path)[:2] == ("wrong", "ex04_matmul.py has no class MatMul")


# What pytest shows


def show(path, *options):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", path, *options]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=path if path.is_dir() else path.parent
    )
    assert not result.stderr
    return result


@pytest.fixture
def copied(tmp_path):
    """A copy of the exercises, in which a test may write."""
    for exercise in ALL:
        handed_out(exercise.file)
    folder = tmp_path / "exercises"
    shutil.copytree(EXERCISES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    walk = folder / "grading" / "walk.py"  # the longest chain is walked once, in a test above
    walk.write_text(walk.read_text(encoding="utf-8").replace("1_000_000", "10_000"), encoding="utf-8")
    return folder


def test_before_the_first_is_written_pytest_says_where_to_begin(copied):
    result = show(copied)
    assert result.returncode == 0
    assert "0 of 12 right; next is ex00_slopes.py" in result.stdout
    assert len(result.stdout.splitlines()) < 27


def test_one_line_for_each_exercise_and_one_for_what_is_wrong(copied):
    (copied / "ex01_add.py").write_text(with_backward("ex01_add.py", BACKWARD["ex01_add.py"]), encoding="utf-8")
    (copied / "ex02_multiply.py").write_text(
        with_backward("ex02_multiply.py", "        return b, a\n"), encoding="utf-8"
    )
    (copied / "ex04_matmul.py").write_text("class MatMul(mg.Function)\n", encoding="utf-8")
    result = show(copied)
    assert result.returncode == 1
    *_, listed = result.stdout.partition("= exercises =")
    assert "ex01_add.py           Add           right\n" in listed
    assert "ex02_multiply.py      Multiply      wrong\n    a and b of one shape: dL/da does not depend on g" in listed
    assert "ex03_gelu.py          GELUTanh      not written yet\n" in listed
    assert f"{copied / 'ex04_matmul.py'}, line 1: expected ':': class MatMul(mg.Function)\n" in listed
    assert "1 of 12 right; fix ex02_multiply.py" in listed
    assert "Traceback" not in result.stdout
    assert "picture" not in result.stdout
    assert len(result.stdout.splitlines()) < 32


def test_a_forward_that_fails_is_not_counted_out(copied):
    write_solutions(copied)
    text = (copied / "ex03_gelu.py").read_text(encoding="utf-8")
    text = re.sub(r"(def forward\(.*\n)", r"\1        raise RuntimeError('oops')\n", text)
    (copied / "ex03_gelu.py").write_text(text, encoding="utf-8")
    result = show(copied)
    assert result.returncode == 1
    assert "11 of 12 right; fix ex03_gelu.py" in result.stdout


def test_one_exercise_can_be_named_by_its_file_and_what_it_prints_is_shown(copied):
    body = "        print('g has the shape', g.shape)\n" + BACKWARD["ex05_linear.py"].replace(
        "g_rows.sum(axis=0)", "g_rows"
    )
    (copied / "ex05_linear.py").write_text(with_backward("ex05_linear.py", body), encoding="utf-8")
    result = show(copied / "ex05_linear.py")
    *_, listed = result.stdout.partition("= exercises =")
    message = (
        "rows: dL/dbias has the shape of the result, (3, 5), but bias is (5,): sum over the axes along which bias was"
    )
    assert f"Linear        wrong\n    {message} copied\n    printed: g has the shape (3, 5)\n0 of 1 right" in listed
    assert listed.count("printed") == 1  # not once more for each finite difference


def test_a_wrong_gradient_is_drawn_if_asked_for(copied):
    (copied / "ex01_add.py").write_text(with_backward("ex01_add.py", "        return g, g\n"), encoding="utf-8")
    assert "\n    picture: ex01_add.png\n" in show(copied / "ex01_add.py", "--show").stdout
    assert (copied / "ex01_add.png").read_bytes().startswith(b"\x89PNG")


def test_when_all_are_right_pytest_says_how_to_train_with_them(copied):
    write_solutions(copied)
    result = show(copied)
    assert result.returncode == 0
    (program,) = re.findall(
        r"12 of 12 right; train with them: python (\S+) --preset cpu --ops \. --max-iters 100", result.stdout
    )
    assert (copied / program).resolve() == EXERCISES.parent / "train_shakespeare.py"  # from where pytest was run


def test_the_readmes_walk_through_shows_what_pytest_shows(tmp_path):
    readme = (EXERCISES / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    shown = re.findall(r"^ex01_add.py +Add +wrong\n    (.*)$", readme, re.M)
    first = graded(tmp_path, "ex01_add.py", blocks[0])
    second = graded(tmp_path, "ex01_add.py", BACKWARD["ex01_add.py"], sum_to=f"\n{blocks[1]}")
    assert [first.message, second.message] == shown


# Replacing operations


class Double(mg.Function):
    """Tanh replaced by something easily told from it."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_inside_replacing_another_class_runs_forward_and_backward():
    x = mg.Tensor([1.0, 2.0], requires_grad=True)
    with kernels.replacing({Tanh: Double}):
        y = F.tanh(x)
    assert y.data.tolist() == [2, 4]
    y.sum().backward()  # what was recorded inside keeps its replacement
    assert x.grad.tolist() == [2, 2]
    assert F.tanh(x).data.tolist() == np.tanh(x.data).tolist()


def test_replacements_nest_and_stand_before_kernels():
    class Triple(Double):
        @staticmethod
        def forward(ctx, x):
            return 3 * x

    x = mg.Tensor(np.ones((512, 512), np.float32))  # large enough for Tanh's kernel
    with kernels.replacing({Tanh: Double}):
        with kernels.replacing({Tanh: Triple, GELUTanh: Double}):
            assert F.tanh(x).data[0, 0] == 3
            assert F.gelu(x).data[0, 0] == 2
        assert F.tanh(x).data[0, 0] == 2
        assert F.gelu(x).data[0, 0] < 1
    assert F.tanh(x).data[0, 0] == np.float32(math.tanh(1))


def test_a_replacement_takes_the_arguments_of_the_operation():
    with pytest.raises(
        TypeError, match=r"Double\.forward: expected the arguments of Add, \(ctx, a, b\), got \(ctx, x\)"
    ):
        kernels.replacing({Add: Double})


def test_the_same_context_can_be_entered_again():
    x = mg.Tensor([1.0, 2.0])
    doubled = kernels.replacing({Tanh: Double})
    with doubled, doubled:
        assert F.tanh(x).data.tolist() == [2, 4]
    assert F.tanh(x).data.tolist() == np.tanh(x.data).tolist()


def test_contexts_may_end_in_any_order():
    x = mg.Tensor([1.0, 2.0])
    first, second = kernels.replacing({Tanh: Double}), kernels.replacing({GELUTanh: Double})
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert F.gelu(x).data.tolist() == [2, 4]
    second.__exit__()
    assert F.tanh(x).data.tolist() == np.tanh(x.data).tolist()
    assert F.gelu(x).data[0] < 1


def test_a_replacement_derives_from_function():
    class Plain:
        def forward(ctx, x):
            return x

    with pytest.raises(TypeError, match="Tanh: expected a class derived from Function, got .*Plain"):
        kernels.replacing({Tanh: Plain})


# Operations from a folder


CUBE = """
import minigrad as mg

class Tanh(mg.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x * x * x
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return 3 * g * x * x
"""


def written(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def test_any_operation_of_the_engine_can_be_a_users_own(tmp_path):
    (own,) = load_operations(written(tmp_path, mine=CUBE, _helpers="", test_mine="", conftest=""))
    assert (own.name, own.engine, own.file.name) == ("Tanh", Tanh, "mine.py")
    assert check(own) == "right"


def test_a_file_may_import_its_neighbor(tmp_path):
    text = CUBE.replace("return 3 * g * x * x", "return slope(g, x)") + "\nfrom _neighbor import slope\n"
    (own,) = load_operations(written(tmp_path, mine=text, _neighbor="def slope(g, x):\n    return 3 * g * x * x\n"))
    assert check(own) == "right"


def test_a_file_may_have_dataclasses(tmp_path):
    """Which look for their module where modules are."""
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + CUBE
    (own,) = load_operations(written(tmp_path, mine=text + "\n@dataclass\nclass Pair:\n    one: int\n    two: int\n"))
    assert check(own) == "right"


def test_a_line_is_named_whatever_way_leads_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    message = r"mine.py, line 12: NameError: name 'h' is not defined"
    for folder in (Path("../inside"), Path("."), tmp_path / "inside"):
        (own,) = load_operations(written(folder, mine=CUBE.replace("return 3 * g", "return 3 * h")))
        with pytest.raises(ConfigError, match=message):
            check(own)


def test_own_operations_are_checked_by_finite_differences(tmp_path):
    (own,) = load_operations(written(tmp_path, mine=CUBE.replace("3 * g", "2 * g")))
    assert check(own) == "wrong"
    (own,) = load_operations(written(tmp_path, mine=CUBE.replace("return 3 * g * x * x", "raise NotImplementedError")))
    assert check(own) == "not written yet"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("import minigrad as mg", "import minigrad as", "mine.py, line 2: "),
        (
            "import minigrad as mg",
            "import minigrad as mg\n1 / 0",
            "mine.py, line 3: ZeroDivisionError: division by zero",
        ),
        ("import minigrad as mg", "\0", "mine.py: "),
        (
            "class Tanh(mg.Function)",
            "class Tanh",
            "mine.py: expected a class derived from minigrad.Function, found none",
        ),
        ("Tanh", "Tanhh", "mine.py: Tanhh is not an operation of the engine; did you mean Tanh?"),
        ("Tanh", "Zzz", "mine.py: Zzz is not an operation of the engine; see minigrad/ops for the names"),
        (
            "forward(ctx, x)",
            "forward(ctx, y)",
            "mine.py: Tanh.forward: expected the arguments of Tanh, (ctx, x), got (ctx, y)",
        ),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_clear_line(before, after, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_operations(written(tmp_path, mine=CUBE.replace(before, after)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "return 3 * g * x * x",
            "return g.sum()",
            "mine.py: Tanh.backward returned a gradient () float32 for argument 0",
        ),
        ("return 3 *", "return mg.random.normal((), 1, 'float64') *", "a gradient (3, 2) float64 for argument 0"),
        ("return 3 * g", "return 3 * h", "mine.py, line 12: NameError: name 'h' is not defined"),
    ],
)
def test_an_operation_that_cannot_train_is_refused(before, after, message, tmp_path):
    (own,) = load_operations(written(tmp_path, mine=CUBE.replace(before, after)))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(own)


def test_attention_that_forgets_that_heads_share_their_queries_cannot_train(tmp_path):
    body = BACKWARD["ex10_attention.py"].replace("sum_to(dq, q.shape)", "dq")
    (own,) = load_operations(written(tmp_path, mine=with_backward("ex10_attention.py", body)))
    with pytest.raises(
        ConfigError, match=re.escape("Attention.backward returned a gradient (2, 3, 4) float32 for argument 0")
    ):
        check(own)


def test_a_file_of_functions_alone_is_no_operation(tmp_path):
    folder = written(tmp_path, mine=CUBE, helper="def double(x):\n    return 2 * x\n")
    assert [own.name for own in load_operations(folder)] == ["Tanh"]
    with pytest.raises(ConfigError, match=r"helper\.py: expected a class derived from minigrad.Function, found none"):
        load_operations(folder / "helper.py")


def test_a_folder_without_operations_and_one_with_two_of_a_name(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: there is no such file or folder"):
        load_operations(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="expected Python files with classes such as LayerNorm, found no operations"):
        load_operations(tmp_path)
    with pytest.raises(ConfigError, match=r"two\.py: Tanh is also in .*one\.py"):
        load_operations(written(tmp_path, one=CUBE, two=CUBE))


# Training with them

SMALL = ["--device", "cpu", "--preset", "cpu", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16]
SMALL += ["--batch-size", 4, "--eval-interval", 100, "--eval-iters", 1, "--max-iters", 40, "--warmup-iters", 5]
BY_THE_ENGINE = """
from {module} import {name} as Engine
import minigrad as mg

class {name}(mg.Function):
    forward = staticmethod(Engine.forward)
    backward = staticmethod(Engine.backward)
"""


@pytest.fixture
def train(tmp_path, capsys):
    """Train a small GPT with the operations of a folder; how it ended, what it printed, and its losses."""
    text = tmp_path / "rhyme.txt"
    text.write_text("the cat sat on the mat.\nthe dog sat on the log.\n" * 60, encoding="utf-8")

    def run(ops, *options):
        out = tmp_path / "out"
        status = run_program("train_shakespeare", *SMALL, "--data", text, "--out", out, "--ops", ops, *options)
        printed = capsys.readouterr().out
        losses = np.loadtxt(out / "ops.csv", delimiter=",", skiprows=1) if (out / "ops.csv").exists() else None
        return status, printed, losses

    return run


def test_the_engines_own_backward_passes_give_its_losses_bit_for_bit(train, tmp_path):
    folder = tmp_path / "solutions"
    folder.mkdir()
    for exercise in TEN:
        engine = {"module": exercise.operation.__module__, "name": exercise.name}
        (folder / exercise.file).write_text(BY_THE_ENGINE.format(**engine), encoding="utf-8")
    status, printed, losses = train(folder, "--dropout", 0.2)
    assert status == 0
    assert "7 of the 12 operations of this model are yours" in printed
    assert losses[:, 0].tolist() == [1, 10, 20, 30, 40]
    assert losses[:, 1].tolist() == losses[:, 2].tolist()
    assert losses[-1, 1] < losses[0, 1] - 0.2
    assert "the curves agree: the losses are identical, bit for bit, up to step 40" in printed


def test_the_exercises_solved_train_as_the_engine_does(train, tmp_path):
    write_solutions(tmp_path / "solved")
    status, printed, losses = train(tmp_path / "solved", "--bias")
    assert status == 0
    np.testing.assert_allclose(losses[:, 1], losses[:, 2], rtol=1e-5)
    assert "the curves agree" in printed
    assert "yours, but not used by this model: MatMul, Multiply, Softmax" in printed


@pytest.mark.usefixtures("blank_pictures")
def test_with_some_written_the_engine_does_the_rest(train, copied):
    (copied / "ex05_linear.py").write_text(
        with_backward("ex05_linear.py", BACKWARD["ex05_linear.py"]), encoding="utf-8"
    )
    status, printed, _ = train(copied, "--max-iters", 2)
    assert status == 0
    assert (
        "1 of the 11 operations of this model are yours\n  yours: Linear\n  the engine's: Add, Attention, " in printed
    )
    assert "not written yet: Add, Attention, CrossEntropy, Embedding, GELUTanh, LayerNorm, MatMul, Multiply" in printed


def test_a_wrong_backward_is_a_curve_that_parts(train, copied):
    body = BACKWARD["ex09_layer_norm.py"].replace(" - x_hat * row_mean(g_hat * x_hat)", "")
    (copied / "ex09_layer_norm.py").write_text(with_backward("ex09_layer_norm.py", body), encoding="utf-8")
    status, printed, losses = train(copied)
    assert status == 0
    assert re.search(r"the curves separate at step \d0: the losses differ by up to 0\.\d+", printed)
    assert printed.count("wrong according to finite differences: LayerNorm") == 2
    assert losses[0, 1] == losses[0, 2]  # the first loss comes before the first backward
    assert np.abs(losses[:, 1] - losses[:, 2]).max() > 1e-3


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_that_diverges_is_compared_as_far_as_it_went(train, copied):
    text = with_backward("ex03_gelu.py", "        return g * math.nan\n")
    (copied / "ex03_gelu.py").write_text(text, encoding="utf-8")
    status, printed, losses = train(copied)
    assert status == 0
    assert "diverged    the norm of the gradients is nan in step 1, with learning rate" in printed
    assert re.search(r"the first NaN or infinity is in the backward of GELUTanh in h\.\d\.mlp", printed)
    assert "wrong according to finite differences: GELUTanh" in printed
    assert losses.tolist() == [1, losses[1], losses[1]]  # one row: the first loss, which is the same in both runs
    assert "the curves separate: with your operations there is no loss from step 10 on" in printed
    assert "may train as well" not in printed


@pytest.mark.filterwarnings("ignore:loadtxt")  # of a file with nothing but column names
def test_a_run_without_a_single_loss_is_compared_too(train, copied, tmp_path):
    """A forward that gives no number: there is no best model to show."""
    text = with_backward("ex03_gelu.py", BACKWARD["ex03_gelu.py"])
    text, count = re.subn(r"(def forward\(.*\n)", r"\1        x = x * math.nan\n", text)
    assert count == 1
    (copied / "ex03_gelu.py").write_text(text, encoding="utf-8")
    status, printed, _ = train(copied)
    assert status == 0
    assert "diverged    the loss is nan after step 0" in printed
    assert "no step was logged by both runs" in printed
    assert "saved in" not in printed
    assert not (tmp_path / "out" / "best.safetensors").exists()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("options", [["--seed", 7], ["--dropout", 0.1]])
def test_a_run_is_not_compared_with_the_engine_s_of_another(train, copied, tmp_path, options):
    """The other one's is moved aside with the rest, and not taken if it is found beside a run that is resumed."""
    write_solutions(copied)
    train(copied, "--max-iters", 10, *options)
    stale = (tmp_path / "out" / "engine").rename(tmp_path / "stale")
    train(copied, "--max-iters", 10)
    engine = tmp_path / "out" / "engine"
    shutil.rmtree(engine)
    stale.rename(engine)
    _, printed, losses = train(copied, "--max-iters", 20, "--resume")
    assert f"the files of an earlier run in {engine} to" in printed
    assert "the curves agree" in printed
    assert losses[:, 0].tolist() == [1, 10, 20]
    train(copied, "--max-iters", 1)
    assert (tmp_path / "out" / "previous-2" / "engine" / "last.safetensors").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_an_interrupted_comparison_goes_on_where_it_was(train, copied, tmp_path):
    write_solutions(copied)
    _, _, whole = train(copied, "--max-iters", 20)
    shutil.rmtree(tmp_path / "out")
    train(copied, "--max-iters", 10)
    _, printed, losses = train(copied, "--max-iters", 20, "--resume")
    assert "from step 10" in printed
    assert losses.tolist() == whole.tolist()


def test_mistakes_with_ops_get_one_clear_line(train, tmp_path):
    for exercise in TEN:
        handed_out(exercise.file)
    assert train(EXERCISES)[0] == f"error: {EXERCISES}: expected a backward pass, but none of the 10 is written yet"
    assert train(tmp_path / "nowhere")[0] == f"error: {tmp_path / 'nowhere'}: there is no such file or folder"


def test_a_long_comparison_is_shown_in_a_dozen_lines():
    steps = list(range(0, 1000, 10))
    comparison = Comparison(steps, [4.0] * len(steps), [4.0 + (step >= 500) for step in steps])
    lines = comparison.table().splitlines()
    assert len(lines) == 13
    assert [lines[1].split()[0], lines[-1].split()[0]] == ["0", "990"]
    assert comparison.separate_at == 500
    assert comparison.verdict() == "the curves separate at step 500: the losses differ by up to 1.0000 (step 500)"
    assert Comparison([], [], []).verdict() == "no step was logged by both runs"
    assert (
        "shows nothing, because no backward has changed the weights yet: train for longer"
        in Comparison([1], [4.0], [4.0]).verdict()
    )
