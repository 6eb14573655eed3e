"""The network that reads digits, and the judge of digits that a model draws, on digits of the test's own."""

import importlib
import sys

import numpy as np
import pytest

import minigrad as mg
from tests.programs import EXAMPLES, run_program


@pytest.fixture
def digits(monkeypatch):
    """The module examples/digits/digits.py, found as the programs beside it find it."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "digits"))
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    return importlib.import_module("digits")


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """A file of 300 images of 6 × 6 pixels: a bright row, column or diagonal on noise, for three digits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    images = rng.integers(0, 60, (300, 6, 6))
    for image, label, at in zip(images, labels, rng.integers(0, 6, 300), strict=True):
        rows, columns = [(np.full(6, at), np.arange(6)), (np.arange(6), np.full(6, at)), (np.arange(6), np.arange(6))][
            label
        ]
        image[rows, columns] = 255
    path = tmp_path_factory.mktemp("digits") / "bars.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def test_the_program_learns_and_its_weights_are_the_judge_s(digits, bars, tmp_path, capsys):
    assert run_program("digits/classifier", "--data", bars, "--epochs", 8, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "240 to learn from, 60 held out" in printed
    assert (tmp_path / "out" / "classifier.png").is_file()
    rest, held_out = digits.load_digits(bars)
    judge = digits.load_classifier(tmp_path / "out" / "classifier.safetensors", held_out)
    real = digits.judge(judge, held_out.images, held_out, held_out.labels)
    assert f"{real.accuracy:.2%} of held-out digits" in printed
    assert real.accuracy > 0.9
    assert real.coverage == 1
    assert real.distance == pytest.approx(0, abs=1e-3)
    assert digits.judge(judge, rest.images, held_out, np.zeros(len(rest.labels))).accuracy < 0.6
    one = digits.judge(judge, held_out.images[held_out.labels == 1], held_out)
    assert one.coverage < 1
    assert np.isnan(one.accuracy)
    noise = np.random.default_rng(0).random(held_out.images.shape, np.float32)
    distance = digits.judge(judge, rest.images, held_out).distance
    assert 0 < distance < min(one.distance, digits.judge(judge, noise, held_out).distance)


def test_a_fifth_is_held_out_and_always_the_same(digits, bars):
    (rest, held_out), (again, held_out_again) = digits.load_digits(bars), digits.load_digits(bars)
    assert rest.images.dtype == np.float32
    assert (rest.images.shape, held_out.images.shape) == ((240, 1, 6, 6), (60, 1, 6, 6))
    assert (rest.images.min(), rest.images.max()) == (0, 1)
    np.testing.assert_array_equal(held_out.images, held_out_again.images)
    np.testing.assert_array_equal(rest.labels, again.labels)
    everything = np.concatenate([rest.images, held_out.images]).reshape(300, -1)
    assert len(np.unique(everything, axis=0)) == 300


def test_the_digits_of_scikit_learn(digits):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    rest, held_out = digits.load_digits()
    assert (rest.images.shape, held_out.images.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert len(np.unique(held_out.labels)) == 10


@pytest.mark.parametrize(("d", "n"), [(1, 30), (5, 60), (8, 6)])
def test_the_frechet_distance_equals_another_formula(digits, d, n):
    """The root of A B from the eigenvalues of A B itself, which is not symmetric; fewer rows than columns too."""
    rng = np.random.default_rng(d)
    a, b = rng.standard_normal((n, d)) * 2 + 1, rng.standard_normal((n + 7, d)) @ rng.standard_normal((d, d))
    A, B = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(A @ B).real, 0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A + B) - 2 * roots
    assert digits.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert digits.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_shifted_and_of_scaled_numbers(digits):
    """(m1 - m2)^2 + (s1 - s2)^2 in one dimension, and the sum over independent ones."""
    a = np.random.default_rng(0).standard_normal((200, 1))
    a = (a - a.mean()) / a.std(ddof=1)
    assert digits.frechet_distance(a, 3 * a + 5) == pytest.approx(25 + 4)
    assert digits.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((20, 8, 8))}, "expected an .npz file of images and labels"),
        ({"images": np.zeros((20, 8, 8, 3)), "labels": np.zeros(20, int)}, "images of one channel"),
        ({"images": np.zeros((3, 8, 8)), "labels": np.zeros(3, int)}, "expected at least 10 images"),
        ({"images": np.zeros((20, 8, 8)), "labels": np.zeros(19, int)}, "expected 20 labels"),
        ({"images": np.zeros((20, 8, 8)), "labels": np.zeros(20)}, "expected 20 labels .*float64"),
        ({"images": np.full((20, 8, 8), np.nan), "labels": np.zeros(20, int)}, "expected pixels of at least 0"),
    ],
)
def test_files_that_hold_no_digits(digits, tmp_path, arrays, message):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        digits.load_digits(str(tmp_path / "file.npz"))


def test_errors_say_what_to_do(digits, bars, tmp_path):
    _, held_out = digits.load_digits(bars)
    with pytest.raises(ValueError, match=r"is not there; first run: python examples/digits/classifier.py"):
        digits.load_classifier(tmp_path / "none.safetensors", held_out)
    mg.save(digits.Classifier(8, 8, 3).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no classifier of these images: "):
        digits.load_classifier(tmp_path / "other.safetensors", held_out)
    with pytest.raises(ValueError, match="expected an .npz file"):
        digits.load_digits(str(tmp_path / "none.npz"))
