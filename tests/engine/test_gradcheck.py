"""The gradient check itself: that it covers every operation, and that it catches operations that are wrong."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad.gradcheck import gradcheck_directional, largest_error
from minigrad.gradcheck.cases import Case, cases, operations
from tests.checks import operations_of
from tests.engine.wrong_functions import WRONG, add, matrix, operation, row, softmax

ALL_CASES = list(cases())
SEEN_ALONG_A_DIRECTION = re.compile("is wrong|0 in place|writes to the gradient|linear|promises|gradient$")
program = importlib.import_module("minigrad.gradcheck.__main__")


def test_every_operation_has_a_case():
    assert {case.operation for case in ALL_CASES} == {operation.__name__ for operation in operations()}


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: f"{case.operation} {case.what}".strip())
def test_the_case_runs_its_operation_and_passes(case):
    tensors = [mg.Tensor(x, requires_grad=True) for x in case.inputs]
    result = case.fn(*tensors)
    assert case.operation in operations_of(result[0] if isinstance(result, tuple) else result)
    assert largest_error(case.fn, case.inputs) < 1e-7
    assert gradcheck_directional(case.fn, case.inputs)


# Operations that are wrong


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_caught(name):
    with pytest.raises(mg.GradcheckError, match=WRONG[name].message):
        mg.gradcheck(WRONG[name].fn, WRONG[name].inputs)


@pytest.mark.parametrize(
    "name", [name for name, wrong in WRONG.items() if SEEN_ALONG_A_DIRECTION.search(wrong.message)]
)
def test_the_directional_check_catches_it_too(name):
    with pytest.raises(mg.GradcheckError):
        gradcheck_directional(WRONG[name].fn, WRONG[name].inputs)


def test_a_gradient_of_the_wrong_shape_is_caught():
    with pytest.raises(mg.AutogradError, match=r"gradient \(2, 3\) float64 for argument 1, which is \(3,\)"):
        mg.gradcheck(operation(add, lambda g: (g, g)), [matrix, row])


def test_all_ones_upstream_would_miss_a_wrong_softmax():
    """Under ones the gradient of softmax is zero, right or wrong; gradcheck's random direction is not fooled."""
    half = operation(softmax, lambda g, y: (g * y - y * (g * y).sum()) / 2)
    x = mg.Tensor(row, requires_grad=True)
    half(x).backward(np.ones(3))
    np.testing.assert_allclose(x.grad, 0, atol=1e-15)
    with pytest.raises(mg.GradcheckError):
        mg.gradcheck(half, row)


def test_the_error_shows_both_gradients():
    with pytest.raises(mg.GradcheckError) as error:
        mg.gradcheck(operation(lambda x: (x * 3,), lambda g: g * 0 + 7), np.zeros(1), seed=0)
    numeric = 3 * np.random.default_rng(0).standard_normal()
    assert "input 0, of shape (1,)" in str(error.value)
    assert "backward gives\n[7.]" in str(error.value)
    assert f"finite differences give\n[{str(numeric)[:6]}" in str(error.value)


# How the derivatives are found


def real_only(forward, backward):
    """An operation whose forward cannot take complex numbers, as a compiled kernel."""

    def refuse(*args):
        if any(np.iscomplexobj(x) for x in args):
            raise TypeError("real numbers only")
        return forward(*args)

    return operation(refuse, backward)


def test_where_the_forward_is_analytic_the_derivative_is_exact_up_to_rounding():
    assert largest_error(lambda x, y: F.exp(x) * y / (1 + x * x), [row, row + 4]) < 1e-14


@pytest.mark.parametrize("kind", [operation, real_only])
def test_a_right_square_of_large_inputs_passes(kind):
    """Rounding of the outputs, up to 1e4 each, must not hide the derivatives of those that are small."""
    x = 100 * np.random.default_rng(0).standard_normal(50)
    x[0] = 1e-3
    assert mg.gradcheck(kind(lambda x: (x * x, x), lambda g, x: 2 * g * x), x)
    assert mg.gradcheck(kind(lambda x: (x @ x, x), lambda g, x: 2 * g * x), x)
    with pytest.raises(mg.GradcheckError):
        mg.gradcheck(kind(lambda x: (x @ x, x), lambda g, x: 2.001 * g * x), x)


def test_a_forward_that_is_not_analytic_is_checked_by_differences():
    right = operation(lambda x: (x * np.abs(x), x), lambda g, x: 2 * g * np.abs(x))
    assert 1e-14 < largest_error(right, row) < 1e-8


@pytest.mark.parametrize("distance", [0, 5e-7])
@pytest.mark.parametrize("fn", [F.relu, F.abs, lambda x: F.maximum(x, 0.0), lambda x: F.clip(x, low=0)])
def test_a_kink_is_named(fn, distance):
    with pytest.raises(mg.GradcheckError, match=r"not smooth at input 0, element \(1,\)"):
        mg.gradcheck(fn, np.array([1.0, distance, -1.0]))


def test_a_smooth_function_is_not_taken_for_a_kink():
    assert mg.gradcheck(lambda x: F.exp(x) + 1e4 * x * x + x**4, np.array([0.0, 3.0, -7.0]))
    assert mg.gradcheck(F.relu, np.array([1.0, 1e-5, -1e-5]))


def test_a_step_that_is_lost_to_rounding_is_an_error_and_a_larger_one_passes():
    x = np.array([1.0, 1e17])
    with pytest.raises(mg.GradcheckError, match=r"input 0 at \(1,\) is 1e\+17: the step eps = 1e-06 is lost"):
        mg.gradcheck(lambda x: x * 3.0, x)
    assert mg.gradcheck(lambda x: x * 3.0, x, eps=1e3)


def test_infinite_outputs_that_do_not_change_are_allowed():
    assert mg.gradcheck(lambda x: F.masked_fill(x, np.eye(3) > 0, -np.inf), np.ones((3, 3)))


# What it takes


LAYOUTS = {
    "transposed": lambda x: x.T,
    "every second": lambda x: x[:, ::2],
    "reversed": lambda x: x[::-1, ::-1],
    "float32": lambda x: x.astype(np.float32)[::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_inputs_keep_their_strides(name):
    given, seen = LAYOUTS[name](np.random.default_rng(0).standard_normal((4, 6))), []

    def fn(x):
        seen.append(tuple(s // x.data.itemsize for s in x.data.strides))
        return x * 2.0

    assert mg.gradcheck(fn, given)
    assert seen[0] == tuple(s // given.itemsize for s in given.strides)


def test_broadcast_inputs_are_taken_apart():
    """Elements that share their memory could not be moved one at a time."""
    assert mg.gradcheck(lambda x: x * x, np.broadcast_to(np.array([1.0, 2.0]), (3, 2)))


def test_what_is_not_differentiable_at_other_inputs_is_not_tried_there():
    """The check with broadcast inputs gives all rows the values of the first: here 1 / 0."""
    assert mg.gradcheck(lambda x: 1 / (x - x.mean(0)), matrix)


@pytest.mark.parametrize("result", [None, np.ones(3), [np.ones(3)]])
def test_fn_must_return_tensors(result):
    with pytest.raises(TypeError, match="expected fn to return a tensor or several, got"):
        mg.gradcheck(lambda x: result, row)


def test_fn_must_return_something_that_has_a_gradient():
    with pytest.raises(ValueError, match=r"expected a floating output, got \(3,\) int64"):
        mg.gradcheck(lambda x: mg.Tensor(np.arange(3)), row)


def test_gradcheck_leaves_the_tensors_it_is_given_alone():
    x = mg.Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    assert mg.gradcheck(F.exp, x) is True
    assert x.grad is None
    np.testing.assert_array_equal(x.data, [1, 2])


def test_inputs_that_are_not_floating_are_passed_on():
    assert mg.gradcheck(lambda w, ids: F.embedding(ids, w), [matrix, np.array([0, 1, 1])])


def test_functions_with_several_outputs_are_checked_in_all_of_them():
    both = operation(lambda x: (x * 2,), lambda g: g * 2)
    wrong = operation(lambda x: (x * 2,), lambda g: g)
    assert mg.gradcheck(lambda x: (both(x), both(x)), row)
    with pytest.raises(mg.GradcheckError):
        mg.gradcheck(lambda x: (both(x), wrong(x)), row)


def test_the_directional_check_reaches_parameters_that_the_function_uses_directly():
    """How a whole model is checked: its parameters are the inputs, and fn ignores its arguments."""
    layer = mg.nn.Linear(3, 2).to(dtype=np.float64)
    before = layer.weight.data.copy()
    assert gradcheck_directional(lambda *_: F.tanh(layer(matrix)), list(layer.parameters()))
    np.testing.assert_array_equal(layer.weight.data, before)
    wrong = operation(lambda x: (np.tanh(x), x), lambda g, x: g)
    with pytest.raises(mg.GradcheckError):
        gradcheck_directional(lambda *_: wrong(layer(matrix)), list(layer.parameters()))


# python -m minigrad.gradcheck


def test_the_program_exits_with_0():
    done = subprocess.run([sys.executable, "-m", "minigrad.gradcheck"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("every backward pass agrees with its forward")
    assert done.stdout.count("\n") == len(ALL_CASES) + 2


def test_the_program_checks_what_is_asked_for(capsys):
    assert program.main(["Softmax", "Add"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]} == {"Softmax", "Add"}
    with pytest.raises(SystemExit):
        program.main(["my_op.py"])
    assert "expected operations of the engine, got my_op.py; the engine has Absolute, Add" in capsys.readouterr().err


@pytest.mark.parametrize("check", [mg.gradcheck, gradcheck_directional])
def test_eps_and_the_tolerances_are_those_that_are_given(check):
    """The central difference of x^3 is off by eps^2."""
    cube, x = (lambda x: x * x * x), np.array([1.0])
    with pytest.raises(mg.GradcheckError):
        check(cube, x, eps=0.1)
    assert check(cube, x, eps=0.1, atol=0.1)
    assert check(cube, x, eps=0.1, rtol=0.1)


def test_another_seed_is_another_direction():
    def direction(seed):
        seen = []

        def backward(g):
            seen.append(g.tolist())
            return g

        mg.gradcheck(operation(lambda x: (x + 0,), backward), [np.ones(3)], seed=seed)
        return seen

    assert direction(0) == direction(0) != direction(1)


@pytest.mark.parametrize("inputs", [[], mg.Tensor([1, 2, 3]), [np.arange(3), np.array([True])]])
def test_there_must_be_something_to_check(inputs):
    """Whole numbers have no gradient: True would say that a backward is right which never ran."""
    for check in (mg.gradcheck, gradcheck_directional):
        with pytest.raises(ValueError, match="expected at least one floating input"):
            check(lambda *xs: xs[0], inputs)


@pytest.mark.parametrize("name", ["sign", "NaN", "wrong shape"])
def test_the_program_exits_with_1_when_an_operation_is_wrong(name, monkeypatch, capsys):
    fn, inputs, *_ = WRONG.get(name) or (operation(add, lambda g: (g, g)), [matrix, row])
    monkeypatch.setattr(program, "cases", lambda: [*ALL_CASES, Case("Wrong", name, fn, inputs)])
    assert program.main() == 1
    printed = capsys.readouterr().out
    assert f"{'Wrong':<14} {name:<22} WRONG" in printed
    assert printed.count("WRONG") == 1


def test_the_program_exits_with_1_when_an_operation_has_no_case(monkeypatch, capsys):
    monkeypatch.setattr(program, "cases", lambda: [case for case in ALL_CASES if case.operation != "Exp"])
    assert program.main() == 1
    assert "Exp: has no case" in capsys.readouterr().out
