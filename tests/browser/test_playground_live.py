"""The page that follows a run, in a browser."""

import numpy as np
import pytest

from tests.gpt.playground_server import serving, wait_until
from tests.gpt.test_playground_live import live, train

pytestmark = pytest.mark.browser


def test_the_page_shows_the_run_and_goes_along(page, tmp_path):
    follower = live.Follower(tmp_path)
    with serving([], follower) as port:
        shown = page(f"http://127.0.0.1:{port}")
        shown.wait_for_selector("#run")
        wait_until(lambda: shown.is_hidden("#writing"))
        train(tmp_path, 5, follower)
        wait_until(lambda: shown.evaluate("estimates.length") == 2)
        wait_until(lambda: shown.is_visible(".heads figure"))
        assert shown.text_content("#step-shown") == "5"
        shown.fill("#step", "0")
        trainer = train(tmp_path, 10, follower)
        wait_until(lambda: shown.evaluate("estimates.length") == 3)
        wait_until(lambda: shown.inner_text(".name").endswith("step 10"))
        assert shown.text_content("#step-shown") == "0"  # the user has chosen it

        last = trainer.rows[-1]
        for column in ("train_loss", "val_loss"):
            text = shown.inner_text(f"[data-column={column}]")
            assert float(text.split()[-1]) == pytest.approx(last[column], rel=5e-3)
        assert shown.evaluate("rows.length") == len(trainer.rows)
        assert shown.locator("#charts polyline").count() == 5

        for i, estimate in enumerate(follower.estimates):
            shown.fill("#step", str(i))
            assert shown.text_content("#step-shown") == str(estimate["step"])
            assert shown.text_content("#sample") == estimate["sample"]
            sent = shown.evaluate("i => [...estimates[i].attention]", i)
            np.testing.assert_allclose(sent, estimate["attention"].ravel(), atol=1e-6)
        for layer in (0, 1):
            shown.fill("#run-layer", str(layer))
            alphas = shown.eval_on_selector_all(
                "#maps canvas",
                "all => all.map(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
                ".map(x => x / 255).filter((_, i) => i % 4 === 3))",
            )
            expected = np.sqrt(follower.estimates[-1]["attention"][layer]).reshape(2, -1)
            np.testing.assert_allclose(alphas, expected, atol=1.01 / 255)

        shown.set_viewport_size({"width": 400, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") == 400
        shown.set_viewport_size({"width": 1280, "height": 800})
        assert shown.problems == []
    wait_until(lambda: shown.is_visible("#waiting"))
    assert shown.inner_text("#waiting") == "The run has ended, or its server has."
    shown.problems.clear()  # the connection was cut
