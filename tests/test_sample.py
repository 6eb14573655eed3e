"""Sampling: the cache changes nothing but the speed, and the options do what they say."""

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig
from gpt.sample import choose


@pytest.fixture
def model():
    mg.manual_seed(1)
    model = GPT(GPTConfig(block_size=12, vocab_size=17, n_layer=2, n_head=2, n_embd=16, dropout=0.2))
    for parameter in model.parameters():
        parameter.data *= 5  # far from uniform, so that a wrong position or key would change the choice
    return model


PROMPTS = np.random.default_rng(0).integers(0, 17, (3, 20))


@pytest.mark.parametrize("length", [1, 5, 11, 12, 20])
@pytest.mark.parametrize("temperature", [0, 1])
def test_cached_and_uncached_tokens_are_the_same(model, length, temperature):
    """Within the context, up to its edge, and past it, where the window slides."""
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    cached = model.generate(PROMPTS[:, :length], **options)
    np.testing.assert_array_equal(cached, model.generate(PROMPTS[:, :length], **options, use_cache=False))
    np.testing.assert_array_equal(cached[:, :length], PROMPTS[:, :length])
    assert cached.shape == (3, length + 30)


def test_cached_logits_are_the_uncached_ones(model):
    model.eval()
    cache = model.new_cache()
    whole = model(PROMPTS[:, :12])[0].numpy()
    with mg.no_grad():
        parts = [model(PROMPTS[:, a:b], cache=cache)[0].numpy() for a, b in ((0, 5), (5, 6), (6, 10), (10, 12))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_greedy_takes_the_likeliest_token(model):
    model.eval()
    ids = model.generate(PROMPTS[:, :4], 5, temperature=0)
    logits = model(ids)[0].numpy()
    np.testing.assert_array_equal(ids[:, 4:], logits.argmax(-1)[:, 3:-1])


@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 1e-9}])
def test_narrowest_choice_is_greedy(model, option):
    greedy = model.generate(PROMPTS[:, :4], 10, temperature=0)
    np.testing.assert_array_equal(model.generate(PROMPTS[:, :4], 10, seed=9, **option), greedy)


def test_same_seed_same_tokens(model):
    one, two, other = (model.generate(PROMPTS[:, :4], 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_model_goes_back_to_training(model):
    model.train()
    model.generate(PROMPTS[:, :4], 2)
    assert model.training
    assert model.h[0].attn.resid_dropout.training


def frequencies(logits, n=20_000, **options):
    options = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    chosen = choose(np.tile(logits, (n, 1)), rng=np.random.default_rng(0), **options)
    return np.bincount(chosen, minlength=len(logits)) / n


LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.2]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.3, 0.2]),
        ({"temperature": 0.5}, np.array([1, 16, 9, 4]) / 30),  # probabilities squared
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_p": 0.41}, [0, 4 / 7, 3 / 7, 0]),  # 0.4 alone is not enough
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0]),
    ],
)
def test_tokens_come_with_their_probabilities(options, expected):
    np.testing.assert_allclose(frequencies(LOGITS, **options), expected, atol=0.015)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; wanted at least 0"),
        ({"temperature": -0.5}, "temperature is -0.5; wanted at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; wanted at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; wanted above 0 and at most 1"),
        ({"ids": np.zeros((1, 0), int)}, r"wanted ids, integers \(B, T\)"),
        ({"ids": np.zeros(3, int)}, r"wanted ids, integers \(B, T\)"),
        ({"ids": np.zeros((1, 3))}, "got .* float64"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(**{"ids": PROMPTS, "max_new_tokens": 1, **options})
