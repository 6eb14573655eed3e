"""The playground in a browser: every control is used, and what is shown is what Python computes.

The tests share a page, since opening one takes longer than most of them.
"""

import time

import numpy as np
import pytest

from gpt.sample import Sampling
from minigrad import functional as F
from tests.gpt.playground_server import ids_of, serving, small_model, wait_until

pytestmark = pytest.mark.browser
PROMPT = "the quick fox\njumps over"  # longer than the model's context


@pytest.fixture(scope="module")
def models():
    return [small_model(), small_model(1, n_layer=3, n_head=4, position="rotary", norm="rms")]


@pytest.fixture(scope="module")
def shown(lasting_page, models):
    """A page with two models."""
    with serving(models) as port:
        page = lasting_page(f"http://127.0.0.1:{port}")
        page.wait_for_selector("article >> nth=1 >> .heads figure")
        yield page


@pytest.fixture(autouse=True)
def _prompt_is_read(shown):
    fill(shown, temperature="1", top_k="13", top_p="1", seed="1337", length="200")
    read(shown, PROMPT)


def fill(page, **values):
    for name, value in values.items():
        page.fill(f"#{name}", value)


def read(page, text):
    """Type a text, and wait until it has been read."""
    page.evaluate("clearTimeout(timer)")
    page.evaluate("async text => { at('prompt').value = text; await attempt(readText); }", text)


def choose(page, key):
    """Press a key in the first model's tokens, and wait for the answers."""
    page.evaluate("views.forEach(view => { view.found = null; })")
    page.focus(".tokens >> nth=0")
    page.keyboard.press(key)
    wait_for(page, "views.every(view => view.found)")


def wait_for(page, condition):
    """Wait until an expression is true. The page's policy forbids playwright's own way, which is to evaluate text."""
    wait_until(lambda: page.evaluate(f"() => {condition}"))


def wait_until_written(page, count):
    wait_for(page, f"!writing && views.every(v => v.tokens.filter(t => t.made).length === {count})")


def values(page, selector, name):
    read = f"found => found.map(x => Number(x.getAttribute('{name}')))"
    return np.array(page.eval_on_selector_all(f"article >> nth=0 >> {selector}", read))


@pytest.mark.parametrize(
    ("sliders", "options"),
    [
        ({"temperature": "0.8"}, {"temperature": 0.8}),
        ({"temperature": "0"}, {"temperature": 0}),
        ({"top_k": "4"}, {"top_k": 5}),
        ({"top_p": "0.75"}, {"top_p": 0.75}),
        ({"temperature": "1.2", "top_k": "6", "top_p": "0.9"}, {"temperature": 1.2, "top_k": 10, "top_p": 0.9}),
    ],
)
def test_the_chances_are_those_that_sampling_draws_with(shown, models, sliders, options):
    fill(shown, **sliders)
    how = Sampling(**options)
    logits = models[0].model.next_logits(np.array(ids_of(PROMPT)[-16:])[None]).numpy()
    expected = F.softmax(how.adjusted(logits)).numpy()[0] if how.temperature else np.eye(28)[logits.argmax()]
    ids = values(shown, ".bars button", "data-id").astype(int)
    assert ids.tolist() == np.argsort(-logits[0]).tolist()[:12]
    np.testing.assert_allclose(values(shown, ".bars button", "data-chance"), expected[ids], atol=1e-6)
    np.testing.assert_allclose(values(shown, ".bars button", "data-own"), F.softmax(logits).numpy()[0][ids], atol=1e-6)


@pytest.mark.parametrize(("key", "count"), [("Home", 1), ("End", 24), ("ArrowLeft", 23)])
def test_the_parts_show_what_the_engine_computes_for_the_chosen_token(shown, models, key, count):
    choose(shown, key)
    assert shown.evaluate("views.map(view => view.position + 1)") == [count, count]
    found = models[0].explain(np.array(ids_of(PROMPT)[:count][-16:]))
    np.testing.assert_allclose(values(shown, ".influence .text > span", "data-value"), found.influence, atol=1e-6)
    np.testing.assert_allclose(values(shown, ".lens tr", "data-target"), found.lens[:, found.target], atol=1e-6)
    tops = -np.sort(-found.lens)[:, :5]
    np.testing.assert_allclose(values(shown, ".guesses .token", "data-p").reshape(3, 5), tops, atol=1e-6)
    for layer in ("0", "1"):
        shown.fill("article >> nth=0 >> .layer", layer)
        weights = values(shown, ".heads .text > span", "data-value").reshape(2, -1)
        np.testing.assert_allclose(weights, found.attention[int(layer)], atol=1e-6)
    assert shown.locator("article >> nth=0 >> .unseen").count() == max(count - 16, 0)


def test_a_pressed_bar_is_explained(shown, models):
    bar = shown.locator("article >> nth=0 >> .bars button >> nth=3")
    target = int(bar.get_attribute("data-id"))
    bar.focus()
    shown.keyboard.press("Enter")
    shown.wait_for_selector(f".bars button[data-id='{target}'][aria-pressed=true]:focus")
    found = models[0].explain(np.array(ids_of(PROMPT)[-16:]), target)
    np.testing.assert_allclose(values(shown, ".influence .text > span", "data-value"), found.influence, atol=1e-6)


def test_what_is_written_is_what_python_samples(shown, models):
    fill(shown, temperature="0.8", seed="5", length="12", prompt="the fox")  # typed: read after a moment
    wait_for(shown, "views.every(view => view.seen.length === 7)")
    shown.keyboard.press("Control+Enter")
    wait_until_written(shown, 12)
    ids = np.array(ids_of("the fox"))[None]
    for i, model in enumerate(models):
        new = model.model.generate(ids, 12, temperature=0.8, seed=5)[0]
        assert shown.evaluate(f"views[{i}].ids") == new.tolist()
        assert shown.locator(f"article >> nth={i} >> .made").count() == 12
    shown.click("#one")
    wait_until_written(shown, 13)
    wait_for(shown, "at('seed').value === '6'")
    shown.click("#generate")  # begins again after the prompt
    wait_until_written(shown, 12)


@pytest.mark.parametrize("stop", ["#stop", "Escape"])
def test_writing_stops_when_asked(shown, models, monkeypatch, stop):
    for model in models:
        compute = model.model.next_logits
        monkeypatch.setattr(model.model, "next_logits", lambda *a, c=compute, **k: (time.sleep(0.005), c(*a, **k))[1])
    fill(shown, length="2000")
    shown.click("#generate")
    shown.wait_for_selector(".made")
    shown.click(stop) if stop.startswith("#") else shown.keyboard.press(stop)
    shown.wait_for_selector("#stop[disabled]")
    assert 0 < shown.locator("article >> nth=0 >> .made").count() < 1990
    assert shown.is_hidden("#error")


def test_what_is_wrong_is_one_line(shown):
    for name, value, message in (
        ("seed", "-1", "seed: expected a whole number, 0 or more"),
        ("length", "0", "tokens to write: expected a whole number, 1 or more"),
        ("length", "5000", "length is 5000; expected at most 2000"),
    ):
        before = shown.input_value(f"#{name}")
        shown.fill(f"#{name}", value)
        shown.evaluate("attempt(writeOn)")
        assert shown.inner_text("#error") == message
        shown.fill(f"#{name}", before)
    read(shown, "")
    assert shown.inner_text("#error") == "type a text, at least one character"
    read(shown, "Ω")
    assert shown.inner_text("#error").startswith("the character 'Ω' at position 0 is not in the vocabulary")
    read(shown, "the")
    assert shown.is_hidden("#error")
    assert ["400 (Bad Request)" in problem for problem in shown.problems] == [True] * 4  # noted by Chromium
    shown.problems.clear()


def test_two_models_stand_side_by_side_and_on_a_phone_below_each_other(shown):
    left, right = (shown.locator("article").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    shown.set_viewport_size({"width": 400, "height": 800})
    assert shown.evaluate("document.documentElement.scrollWidth") == 400
    above, below = (shown.locator("article").nth(i).bounding_box() for i in (0, 1))
    assert above["y"] + above["height"] <= below["y"]
    shown.set_viewport_size({"width": 1280, "height": 900})


def test_the_page_follows_the_system_to_dark(shown):
    colors = []
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        colors.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(255, 254, 251)", "rgb(27, 27, 29)"]
