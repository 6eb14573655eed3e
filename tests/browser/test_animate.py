"""`viz.animate`'s page in Chromium: every control works, and what is shown is what Python computed."""

import re

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import functional as F
from minigrad import nn, viz

pytestmark = pytest.mark.browser


def leaf(value):
    return mg.Tensor(np.array(value), requires_grad=True)


@pytest.fixture(scope="module")
def diamond(tmp_path_factory):
    """c is used twice. The file of its steps, and the leaves with their gradients."""
    a, b = leaf(2.0), leaf(-0.5)
    c = a * b
    loss = F.tanh(c) + c
    path = tmp_path_factory.mktemp("diamond") / "steps.html"
    viz.animate(loss, path)
    return path, a, b


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    mg.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3))
    x, targets = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), np.arange(50) % 3
    path = tmp_path_factory.mktemp("mlp") / "steps.html"
    viz.animate(F.cross_entropy(model(x), targets), path)
    return path, model


def step(page):
    return int(page.text_content("#count").split()[0])


def test_every_button_and_key_moves_as_it_says(page, diamond):
    shown = page(diamond[0])
    assert step(shown) == 0
    assert shown.is_disabled("#back")
    moves = [("#next", 1), ("#next", 2), ("#back", 1), ("#last", 4), ("#first", 0)]
    for button, expected in moves:
        shown.click(button)
        assert step(shown) == expected
    for key, expected in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4), ("Home", 0)]:
        shown.keyboard.press(key)
        assert step(shown) == expected
    shown.keyboard.press("ArrowLeft")
    assert step(shown) == 0
    shown.focus("#slider")
    for key, expected in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4), ("Home", 0)]:
        shown.keyboard.press(key)
        assert step(shown) == expected
    shown.fill("#slider", "3")
    assert step(shown) == 3
    assert shown.get_attribute("#slider", "aria-valuetext") == "step 3 of 4"


def test_it_plays_pauses_and_stops_at_the_end(page, diamond):
    shown = page(diamond[0])
    shown.clock.install()
    shown.keyboard.press("Space")
    assert (step(shown), shown.get_attribute("#play", "aria-label")) == (1, "Pause")
    shown.clock.run_for(2100)
    assert step(shown) == 2
    shown.keyboard.press("Space")
    shown.clock.run_for(9000)
    assert (step(shown), shown.get_attribute("#play", "aria-label")) == (2, "Play")
    shown.click("#play")
    shown.clock.run_for(30_000)
    assert (step(shown), shown.get_attribute("#play", "aria-label")) == (4, "Play")
    shown.click("#play")
    assert step(shown) == 0  # from the start again


def test_what_happens_is_said_in_words_and_in_numbers(page, diamond):
    path, a, b = diamond
    shown = page(path)
    shown.click("#next")
    assert "Add, which made loss, runs: it received g = dL/dy = 1" in shown.text_content("#words")
    assert "c waits for another gradient." in shown.text_content("#words")
    shown.click("#next")
    slope = 1 - np.tanh(-1.0) ** 2
    words = shown.text_content("#words")
    assert f"Tanh runs: it received g = dL/dy = 1 and sends dL/dx = g (1 − y2) = {slope:.4g} to c." in words
    assert f"c is reached a second time: {slope:.4g} is added to 1." in words
    assert f"there already1+={slope:.4g}→{1 + slope:.4g}" in shown.text_content("#panel .sum")
    assert "y = −0.7616" in shown.text_content("#panel")
    assert "After this step y is freed." in shown.text_content("#panel")
    shown.click("#last")
    grads = shown.locator("#panel .value").all_text_contents()
    assert grads == [f"{name}.grad = {x.grad:.4g}".replace("-", "−") for name, x in (("a", a), ("b", b))]


def test_the_graph_shows_where_the_walk_is(page, diamond):
    shown = page(diamond[0])
    box = {
        name: shown.locator("g.box", has_text=re.compile(f"^{name}"))
        for name in ("a = 2", "Tanh", "c = Multiply", "loss = Add")
    }
    shown.click("#next")
    assert "active" in box["loss = Add"].get_attribute("class")
    assert shown.locator(".edge.flow").count() == 2
    assert box["c = Multiply"].locator(".badge").text_content() == "1 of 2"
    shown.click("#next")
    assert "active" in box["Tanh"].get_attribute("class")
    assert "done" in box["loss = Add"].get_attribute("class")
    assert "reached" in box["c = Multiply"].get_attribute("class")
    assert "later" in box["a = 2"].get_attribute("class")
    shown.click("#back")
    assert "later" not in box["Tanh"].get_attribute("class")
    assert "active" not in box["Tanh"].get_attribute("class")
    box["c = Multiply"].click()
    assert step(shown) == 3  # where it runs
    box["a = 2"].click()
    assert step(shown) == 3  # where it is reached
    box["Tanh"].focus()
    shown.keyboard.press("Enter")
    assert shown.text_content("#panel h2") == "Tanh"


def test_hovering_and_focusing_show_the_line(page, diamond):
    shown = page(diamond[0])
    assert shown.is_hidden("#tip")
    shown.locator("g.box", has_text=re.compile("^Tanh")).hover()
    assert shown.text_content("#tip").endswith("loss = F.tanh(c) + c")
    assert "test_animate.py:" in shown.text_content("#tip")
    assert shown.text_content("#tip mark") == "F.tanh(c)"
    shown.mouse.move(1, 1)
    assert shown.is_hidden("#tip")
    shown.locator("g.box", has_text="a = 2").focus()
    assert "first used in" in shown.text_content("#tip")
    assert shown.text_content("#tip mark") == "a * b"


def test_large_arrays_are_heat_maps_with_shape_and_range(page, mlp):
    path, model = mlp
    shown = page(path)
    shown.click("#last")
    for name, parameter in model.named_parameters():
        told = shown.locator("#panel .value", has_text=f"{name}.grad").locator(".about").text_content()
        assert told.startswith(f"({', '.join(map(str, parameter.shape))}{',' * (parameter.ndim == 1)}) float32")
        if parameter.size > 64:
            low, high = re.search(r"from (\S+) to (\S+)\.", told.replace("−", "-")).groups()
            low, high = float(low), float(high)
            np.testing.assert_allclose([low, high], [parameter.grad.min(), parameter.grad.max()], rtol=1e-3)
    cells = shown.locator("#panel .value", has_text="0.weight.grad").locator(".heat i")
    assert cells.count() == 15 * 4  # of 30 × 4 numbers
    assert cells.first.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"


def test_fit_shows_the_whole_graph(page, mlp):
    shown = page(mlp[0], height=500)
    height = shown.evaluate("document.querySelector('#graph svg').clientHeight")
    shown.click("#fit")
    assert shown.get_attribute("#fit", "aria-pressed") == "true"
    assert shown.evaluate("document.querySelector('#graph svg').clientHeight") < height
    shown.click("#fit")
    assert shown.evaluate("document.querySelector('#graph svg').clientHeight") == height


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_no_width_scrolls_sideways_and_text_stands_out(page, mlp, width, dark):
    shown = page(mlp[0], width=width, dark=dark)
    for _ in range(6):
        shown.click("#next") if shown.is_enabled("#next") else None
        assert shown.evaluate("document.documentElement.scrollWidth") == width
    luminance = "e => e.match(/[0-9.]+/g).slice(0, 3).reduce((sum, value) => sum + Number(value), 0) / 765"
    colors = (shown.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    paper, ink = (shown.evaluate(luminance, color) for color in colors)
    assert (ink - paper > 0.6) if dark else (paper - ink > 0.6)


def test_nothing_moves_for_a_user_who_wants_no_motion(page, diamond):
    moving = "getComputedStyle(document.querySelector('.edge.flow')).animationName"
    assert page(diamond[0]).evaluate(moving) == "flow"
    assert page(diamond[0], motion=False).evaluate(moving) == "none"


def test_text_of_the_program_is_shown_as_text(page, tmp_path):
    name = "</script><img src=x onerror=alert(1)> \"é\u2028'"
    x = leaf([1.0, 2.0])
    viz.animate((x * 2).sum(), tmp_path / "steps.html", names={name: x})  # </script><b>
    shown = page(tmp_path / "steps.html")
    shown.click("#last")
    assert shown.locator("img").count() == 0
    assert f"{name}.grad" in shown.text_content("#panel")


def test_a_gpt_of_a_hundred_operations(page, tmp_path):
    model = GPT(GPTConfig(block_size=16, vocab_size=65, n_layer=7, n_head=2, n_embd=32))
    ids = np.random.default_rng(0).integers(0, 65, (2, 17))
    _, loss = model(ids[:, :-1], ids[:, 1:])
    viz.animate(loss, tmp_path / "steps.html")
    assert (tmp_path / "steps.html").stat().st_size < 1_000_000
    shown = page(tmp_path / "steps.html", motion=False)
    steps = shown.evaluate("steps.length")
    assert steps > 100
    for i in range(0, steps, 20):
        shown.fill("#slider", str(i))
        assert not shown.locator(".box.active").count() or shown.locator(".box.active").first.is_visible()
    shown.keyboard.press("End")
    assert step(shown) == steps - 1
    told = shown.locator("#panel .value", has_text="wte.weight.grad").text_content().replace("−", "-")
    low, high = re.search(r"from (\S+) to (\S+)\. ", told).groups()
    grad = model.wte.weight.grad
    np.testing.assert_allclose([float(low), float(high)], [grad.min(), grad.max()], rtol=1e-3)
