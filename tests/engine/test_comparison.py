"""Pictures of wrong gradients: what is drawn, what is marked, and when there is none."""

import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad.viz import figures
from minigrad.viz.figures import NO_FIGURE, draw_comparison


class Tripled(mg.Function):
    """x^2 with a backward that is right only in the first column."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        wrong = 2 * g * x
        wrong[..., 1:] *= 3
        return wrong


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def maps(figure):
    return [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images]


def frames(figure):
    return [patch.get_xy() for axes in figure.axes for patch in axes.patches if patch.get_edgecolor()[0] == 1]


def error_of(*arguments, **options):
    with pytest.raises(mg.GradcheckError) as error:
        mg.gradcheck(*arguments, **options)
    return str(error.value)


def test_gradcheck_draws_both_gradients_and_marks_the_largest_difference(drawn, tmp_path):
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    path = tmp_path / "wrong.png"
    plain = error_of(Tripled.apply, [x])
    assert not drawn
    assert error_of(Tripled.apply, [x], show=path) == f"{plain}\npicture: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    given, right, difference = maps(figure)
    u = np.random.default_rng(0).standard_normal(x.shape)
    np.testing.assert_allclose(right, 2 * u * x)
    np.testing.assert_allclose(given, 2 * u * x * [1, 3, 3])
    np.testing.assert_allclose(difference, given - right)
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert limits[0] == limits[1] == (-np.abs(given).max(), np.abs(given).max())
    assert limits[2] == (-np.abs(difference).max(), np.abs(difference).max())
    row, column = np.unravel_index(np.abs(difference).argmax(), x.shape)
    assert frames(figure) == [(column - 0.5, row - 0.5)] * 3
    assert figure.get_suptitle() == "Tripled: gradient of input 0, of shape (2, 3)"
    assert figure.get_supxlabel().startswith(f"largest difference at ({row}, {column}): yours ")


def test_the_default_is_a_file_here_and_a_right_gradient_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mg.gradcheck(lambda x: x * x, np.ones(3), show=True)
    assert not list(tmp_path.iterdir())
    assert error_of(Tripled.apply, [np.ones(3)], show=True).endswith("\npicture: gradcheck.png")
    assert [path.name for path in tmp_path.iterdir()] == ["gradcheck.png"]


def test_an_input_among_large_ones_is_drawn_whole_and_a_large_one_is_not(drawn, tmp_path):
    def fn(x, y):
        return Tripled.apply(x).sum() + (y * y).sum()

    assert f"picture: {tmp_path / 'p.png'}" in error_of(fn, [np.ones((3, 4)), np.ones(10_001)], show=tmp_path / "p.png")
    assert maps(drawn[0])[1].shape == (3, 4)
    np.testing.assert_allclose(np.divide(*maps(drawn[0])[:2]), np.array([1, 3, 3, 3]) * np.ones((3, 1)), rtol=1e-5)
    assert drawn[0].get_suptitle() == "fn: gradient of input 0, of shape (3, 4)"
    assert "picture: none: input 0 has 10,001 elements, more than 10,000; check a smaller input" in error_of(
        Tripled.apply, [np.ones(10_001)], show=tmp_path / "q.png"
    )


def test_without_matplotlib_or_a_folder_the_error_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    assert "\npicture: none: " in error_of(Tripled.apply, [np.ones(3)], show=tmp_path / "file" / "p.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert error_of(Tripled.apply, [np.ones(3)], show=tmp_path / "p.png").endswith(f"\npicture: {NO_FIGURE}")


def test_arrays_of_other_shapes_have_no_difference(drawn, tmp_path):
    assert draw_comparison("title", np.ones((3, 4)), np.ones(4), tmp_path / "p.png") == tmp_path / "p.png"
    assert [array.shape for array in maps(drawn[0])] == [(3, 4), (1, 4)]
    assert drawn[0].get_supxlabel() == "the shapes differ: (3, 4) and (4,)"


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3), (3, 0)])
def test_any_number_of_axes_is_drawn(shape, drawn, tmp_path):
    right = np.random.default_rng(0).standard_normal(shape)
    wrong = right.copy()
    if right.size:
        wrong.flat[-1] += 10
    draw_comparison("title", wrong, right, tmp_path / "p.png")
    rows, columns = (int(np.prod(shape[:-1])), shape[-1]) if right.ndim and right.size else (1, 1)
    assert [array.shape for array in maps(drawn[0])] == [(rows, columns)] * 3
    assert frames(drawn[0]) == ([(columns - 1.5, rows - 1.5)] * 3 if right.size else [])


def test_what_is_no_number_is_the_largest_difference_and_is_left_gray(drawn, tmp_path):
    wrong = np.array([[1.0, np.inf], [np.nan, -1e9]])
    draw_comparison("title", wrong, np.ones((2, 2)), tmp_path / "p.png")
    assert drawn[0].get_supxlabel() == "largest difference at (0, 1): yours inf, right 1"
    assert np.isnan(maps(drawn[0])[0]).tolist() == [[False, True], [True, False]]


def test_a_window_is_opened_only_if_python_is_interactive(monkeypatch, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.show", lambda figure, warn=True: shown.append(figure))
    draw_comparison("title", np.ones(2), np.zeros(2), tmp_path / "p.png")
    assert not shown
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    draw_comparison("title", np.ones(2), np.zeros(2), tmp_path / "p.png")
    assert len(shown) == 1
    pyplot.close(shown[0])
