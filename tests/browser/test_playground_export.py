"""The page with the model inside, in a browser: the same tokens as Python with the same rounded weights."""

import numpy as np
import pytest

from gpt import GPT, BPETokenizer, CharTokenizer, GPTConfig
from gpt.sample import Sampling
from minigrad import functional as F
from playground import export
from tests.gpt.gpt2_files import gpt2_tokenizer

pytestmark = pytest.mark.browser
TEXT = "The quick brown fox jumps over the lazy dog; it's 42 times: naïve café → 東京\n\n  the end of the fox\t!"
NEWER = {"position": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "logit_softcap": 15.0}


def small_gpt(tokenizer, **options):
    """A model with weights so large that its tokens vary, and rounded as in the page."""
    shape = {"block_size": 24, "vocab_size": tokenizer.vocab_size, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**(shape | options)))
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        drawn = rng.normal(0, 0.6, parameter.shape) if parameter.ndim > 1 else rng.normal(parameter.data, 0.1)
        parameter.data[...] = drawn.astype(np.float16)
    return model.eval()


@pytest.fixture
def opened(page, tmp_path):
    """Opens the page of a model and a tokenizer."""

    def opened(model, tokenizer):
        export.write_page(tmp_path / "page.html", "small", model, tokenizer)
        return page(tmp_path / "page.html")

    return opened


@pytest.mark.parametrize(
    ("tokenizer", "options"),
    [
        (CharTokenizer.from_text(TEXT), {}),
        (BPETokenizer.train(TEXT * 3, 300), {**NEWER, "vocab_size": 320, "bias": False}),
    ],
)
def test_the_greedy_tokens_are_pythons(opened, tokenizer, options):
    model = small_gpt(tokenizer, **options, tie_weights=False)
    page = opened(model, tokenizer)
    ids = page.evaluate(
        """text => {
            const ids = tokenizer.encode(text);
            for (let i = 0; i < 200; i += 1) {
                const logits = model.nextLogits(ids).slice(0, about.size);
                ids.push(drawToken(probabilities(logits, 0, null, null), Math.random));
            }
            return ids;
        }""",
        TEXT,
    )
    prompt = tokenizer.encode(TEXT)
    expected = model.generate(prompt[None], 200, temperature=0, vocab_size=tokenizer.vocab_size)[0]
    assert ids == expected.tolist()
    assert len(set(ids[len(prompt) :])) > 10


def test_the_chances_are_pythons_and_every_control_acts(opened):
    tokenizer = CharTokenizer.from_text(TEXT)
    model = small_gpt(tokenizer)
    page = opened(model, tokenizer)
    page.fill("#prompt", "the fox")
    for name, value in (("temperature", "1.5"), ("top_k", "6"), ("top_p", "0.9"), ("seed", "3"), ("length", "30")):
        page.fill(f"#{name}", value)
    logits = model.next_logits(tokenizer.encode("the fox")[None]).numpy()
    expected = F.softmax(Sampling(temperature=1.5, top_k=10, top_p=0.9).adjusted(logits)).numpy()[0]
    bars = page.eval_on_selector_all(".bars button", "found => found.map(x => [x.dataset.id, x.dataset.chance])")
    assert len(bars) == 12
    for token, chance in bars:
        assert float(chance) == pytest.approx(expected[int(token)], abs=1e-6)
    page.click(".bars button >> nth=2")
    assert page.evaluate("ids.at(-1)") == int(bars[2][0])
    page.click("#one")
    page.wait_for_selector("#stop[disabled]")
    assert page.evaluate("ids.length") == 9
    assert page.input_value("#seed") == "4"
    texts = []
    for press in (lambda: page.click("#generate"), lambda: page.keyboard.press("Control+Enter")):
        press()
        page.wait_for_selector("#stop[disabled]")
        texts.append(page.text_content("#written"))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 7 + 30
    page.fill("#length", "10000")
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        page.click("#generate")
        page.wait_for_selector("#stop:enabled")
        stop()
        page.wait_for_selector("#stop[disabled]")
        assert page.evaluate("ids.length") < 10_000
    page.fill("#prompt", "Ω")
    assert page.inner_text("#error") == "the character “Ω” is not in the model's vocabulary"
    page.fill("#prompt", "")
    assert page.inner_text("#error") == "type a text, at least one character"
    page.fill("#prompt", "the")
    assert page.is_hidden("#error")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_drawn_tokens_follow_the_chances(opened):
    tokenizer = CharTokenizer("ab")
    page = opened(small_gpt(tokenizer), tokenizer)
    drawn = page.evaluate(
        "() => { const random = randomNumbers(7), p = [0.1, 0, 0.6, 0.3], counts = [0, 0, 0, 0];"
        " for (let i = 0; i < 20000; i += 1) counts[drawToken(p, random)] += 1; return counts; }"
    )
    np.testing.assert_allclose(np.array(drawn) / 20000, [0.1, 0, 0.6, 0.3], atol=0.015)
    assert drawn[1] == 0


def test_gpt2s_tokens_are_the_tokenizers(opened):
    tokenizer = gpt2_tokenizer()
    page = opened(small_gpt(tokenizer, n_embd=4, n_layer=1), tokenizer)
    for text in (TEXT, "don't   stop\u2028 at  ٣٤ \x85 x\n\n\n", "🙂👩‍👩‍👧 ok"):
        assert page.evaluate("text => tokenizer.encode(text)", text) == tokenizer.encode(text).tolist()
