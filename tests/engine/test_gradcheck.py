"""The gradient check itself: that it covers every operation, and that it catches operations that are wrong."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad.gradcheck import gradcheck_directional, largest_error
from minigrad.gradcheck.cases import Case, cases, operations
from tests.checks import operations_of

ALL_CASES = list(cases())
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


def operation(forward, backward):
    """An operation from two functions; `forward` returns the output and what to save."""

    class Operation(mg.Function):
        @staticmethod
        def forward(ctx, *args):
            y, *saved = forward(*args)
            ctx.save(*saved)
            return y

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved)

    return Operation.apply


def in_place(change):
    def forward(x):
        change(x)
        return x * 1, x

    return operation(forward, lambda g, x: g)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum(), e / e.sum()


class RemembersOnTheClass(mg.Function):
    """x^2 that keeps its input on the class instead of on the tape: right when used once, wrong when used twice."""

    @staticmethod
    def forward(ctx, x):
        RemembersOnTheClass.x = x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * RemembersOnTheClass.x * g


class GrowsWithItsUses(mg.Function):
    """The identity, whose gradient carries a factor of how often it was called since the last backward."""

    uses = 0

    @staticmethod
    def forward(ctx, x):
        GrowsWithItsUses.uses += ctx.needs_input_grad[0]
        return x + 0

    @staticmethod
    def backward(ctx, g):
        uses, GrowsWithItsUses.uses = GrowsWithItsUses.uses, 0
        return g * max(uses, 1)


row, matrix = np.array([0.5, -1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
add = lambda x, b: (x + b,)  # noqa: E731
WRONG = {
    "a broadcast axis is not summed": (operation(add, lambda g: (g, g[0])), [matrix, row]),
    "a broadcast axis is averaged": (operation(add, lambda g: (g, g.mean(0))), [matrix, row]),
    "sign": (operation(lambda x: (np.cos(x), x), lambda g, x: g * np.sin(x)), [row]),
    "factor": (operation(lambda x: (x * x, x), lambda g, x: g * x), [row]),
    "forgotten term": (operation(softmax, lambda g, y: g * y), [row]),
    "gradients exchanged": (operation(lambda a, b: (a * b, a, b), lambda g, a, b: (g * a, g * b)), [row, row + 1]),
    "no gradient": (operation(lambda x: (x * x,), lambda g: None), [row]),
    "NaN": (operation(lambda x: (x * x, x), lambda g, x: g * x * np.nan), [row]),
    "infinity": (operation(lambda x: (x * x, x), lambda g, x: np.full_like(x, np.inf)), [row]),
    "wrong in one element": (operation(lambda x: (x * 2,), lambda g: g * [2, 2, 2.001]), [row]),
    "input kept on the class": (lambda x: RemembersOnTheClass.apply(x) * RemembersOnTheClass.apply(x + 1), [row]),
    "factor depends on the fan-out": (lambda x: sum(GrowsWithItsUses.apply(x) for _ in range(3)), [row]),
    "last of repeated places wins": (
        operation(lambda x: (x[[0, 0]],), lambda g: np.array([g[1], 0, 0])),
        [row],
    ),
}
CHANGES_ITS_INPUT = {
    "doubled": in_place(lambda x: np.multiply(x, 2, out=x)),
    "clipped, which a second call does not undo": in_place(lambda x: np.maximum(x, 0, out=x)),
}


@pytest.mark.parametrize("check", [mg.gradcheck, gradcheck_directional])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_is_caught(name, check):
    fn, inputs = WRONG[name]
    with pytest.raises(mg.GradcheckError):
        check(fn, inputs)


@pytest.mark.parametrize("check", [mg.gradcheck, gradcheck_directional])
@pytest.mark.parametrize("name", CHANGES_ITS_INPUT)
def test_a_forward_that_changes_its_input_is_caught(name, check):
    with pytest.raises(mg.GradcheckError, match="changed its input 0 in place"):
        check(CHANGES_ITS_INPUT[name], [row])


def test_a_gradient_of_the_wrong_shape_is_caught():
    with pytest.raises(mg.AutogradError, match=r"gradient \(2, 3\) float64 for argument 1, which is \(3,\)"):
        mg.gradcheck(operation(add, lambda g: (g, g)), [matrix, row])


def test_what_a_single_use_hides_passes():
    """The two operations above are wrong only when used more than once: this is why the tests use them so."""
    assert mg.gradcheck(RemembersOnTheClass.apply, row)
    assert mg.gradcheck(GrowsWithItsUses.apply, row)


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


# What it takes


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
    fn, inputs = WRONG.get(name) or (operation(add, lambda g: (g, g)), [matrix, row])
    monkeypatch.setattr(program, "cases", lambda: [*ALL_CASES, Case("Wrong", name, fn, inputs)])
    assert program.main() == 1
    printed = capsys.readouterr().out
    assert f"{'Wrong':<14} {name:<22} WRONG" in printed
    assert printed.count("WRONG") == 1


def test_the_program_exits_with_1_when_an_operation_has_no_case(monkeypatch, capsys):
    monkeypatch.setattr(program, "cases", lambda: [case for case in ALL_CASES if case.operation != "Exp"])
    assert program.main() == 1
    assert "Exp: has no case" in capsys.readouterr().out
