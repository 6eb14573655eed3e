"""Sampling: the cache changes nothing but the speed, rows go their own ways, and the options do what they say."""

import io
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, GPTError
from gpt.loading import save_pretrained
from gpt.sample import Sampling, generate, stream
from gpt.text.tokenizer import END_OF_TEXT, BPETokenizer
from tests.programs import run_program
from tests.shapes import seeds

BLOCK, VOCAB = 12, 17


def new_model(**options):
    mg.manual_seed(1)
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, dropout=0.2, **options))
    for parameter in model.parameters():
        parameter.data *= 5  # far from uniform, so that a wrong position or key would change the choice
    return model


@pytest.fixture
def model():
    return new_model()


PROMPTS = np.random.default_rng(0).integers(0, VOCAB, (3, 20))
RAGGED = [PROMPTS[0, :3].tolist(), PROMPTS[1, :20], PROMPTS[2, :7], PROMPTS[0, :1], PROMPTS[1, :BLOCK]]


@pytest.fixture
def seen_logits(monkeypatch):
    """The logits (B, V) of every step, as they come to be chosen from."""
    seen = []
    choose = Sampling.choose
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, rng: seen.append(logits) or choose(self, logits, rng))
    return seen


# The cache


def test_greedy_is_the_plain_loop(model):
    """What both ways have to come to: the likeliest token after the last block_size tokens, again and again."""
    model.eval()
    ids = PROMPTS[:, :5]
    for _ in range(20):
        ids = np.concatenate([ids, model(ids[:, -BLOCK:])[0].numpy()[:, -1:].argmax(-1)], axis=1)
    for use_cache in (True, False):
        np.testing.assert_array_equal(model.generate(PROMPTS[:, :5], 20, temperature=0, use_cache=use_cache), ids)


@pytest.mark.parametrize("length", [1, 5, 11, 12, 20])
@pytest.mark.parametrize("temperature", [0, 1])
def test_cached_and_uncached_tokens_are_the_same(model, length, temperature):
    """Within the context, up to its edge, and past it, where the window slides."""
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
    cached = model.generate(PROMPTS[:, :length], **options)
    np.testing.assert_array_equal(cached, model.generate(PROMPTS[:, :length], **options, use_cache=False))
    np.testing.assert_array_equal(cached[:, :length], PROMPTS[:, :length])
    assert cached.shape == (3, length + 30)


@pytest.mark.parametrize(
    "prompts",
    [*(PROMPTS[:, :length] for length in range(1, 21)), RAGGED],
    ids=[*map("length {}".format, range(1, 21)), "different lengths"],
)
def test_logits_of_every_step_are_the_same(model, prompts, seen_logits):
    for use_cache in (True, False):
        model.generate(prompts, 16, temperature=0, use_cache=use_cache)
    cached, uncached = np.split(np.array(seen_logits), 2)  # (16, B, V) each
    np.testing.assert_allclose(cached, uncached, rtol=0, atol=1e-5)
    assert np.abs(uncached).max() > 0.1, "logits this small would say nothing"


def test_cached_logits_are_the_uncached_ones(model):
    """Several tokens at a time, as a prompt that comes in parts."""
    model.eval()
    cache = model.new_cache()
    whole = model(PROMPTS[:, :12])[0].numpy()
    with mg.no_grad():
        parts = [model(PROMPTS[:, a:b], cache=cache)[0].numpy() for a, b in ((0, 5), (5, 6), (6, 10), (10, 12))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="a sequence of 13 tokens is longer than block_size 12"):
        model(PROMPTS[:, :1], cache=cache)


def test_a_cache_belongs_to_its_batch(model):
    cache = model.new_cache()
    model(PROMPTS[:, :5], cache=cache)
    with pytest.raises(ConfigError, match="a batch of 2 does not continue a cache of 3"):
        model(PROMPTS[:2, 5:6], cache=cache)


def test_a_cached_step_computes_one_token_and_one_row_of_logits(model, monkeypatch):
    read, predicted = [], []
    embed, head = model.wte.forward, model.lm_head.forward
    monkeypatch.setattr(model.wte, "forward", lambda ids: read.append(ids.shape) or embed(ids))
    monkeypatch.setattr(model.lm_head, "forward", lambda x: predicted.append(x.shape) or head(x))
    model.generate(PROMPTS[:, :8], 7)
    assert read == [(3, n) for n in (8, 1, 1, 1, 1, 12, 12)], "the prompt, single tokens, and windows that slide"
    assert predicted == [(3, 16)] * 7


def test_the_caches_buffers_are_made_once(model):
    cache = model.new_cache()
    with mg.no_grad():
        model(PROMPTS[:, :3], cache=cache)
        buffers = [buffer for layer in cache.layers for buffer in layer.buffers]
        model(PROMPTS[:, 3:9], cache=cache)
    assert cache.length == 9
    assert all(a is b for a, b in zip(buffers, (b for layer in cache.layers for b in layer.buffers), strict=True))


# Prompts of different lengths


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_different_lengths_continue_as_they_would_alone(model, use_cache, seen_logits):
    """Also while some rows slide past the context and others do not yet."""
    together = model.generate(RAGGED, 16, temperature=0, use_cache=use_cache)
    logits = np.array(seen_logits)  # (16, B, V)
    assert [len(row) for row in together] == [len(prompt) + 16 for prompt in RAGGED]
    for i, prompt in enumerate(RAGGED):
        seen_logits.clear()
        (alone,) = model.generate([prompt], 16, temperature=0, use_cache=False)
        np.testing.assert_array_equal(together[i], alone)
        np.testing.assert_allclose(logits[:, i], np.concatenate(seen_logits), rtol=0, atol=1e-5)


def test_rotary_positions_and_other_options_of_the_model(seen_logits):
    """Where positions are turned into the keys that are kept, padding moves them, and must not matter."""
    options = {"position": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "tie_weights": False}
    model = new_model(**options, logit_softcap=15.0)
    for use_cache in (True, False):
        together = model.generate(RAGGED, 16, temperature=0, use_cache=use_cache)
    cached, uncached = np.split(np.array(seen_logits), 2)
    np.testing.assert_allclose(cached, uncached, rtol=0, atol=1e-5)
    for prompt, row in zip(RAGGED, together, strict=True):
        np.testing.assert_array_equal(row, model.generate([prompt], 16, temperature=0, use_cache=False)[0])


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), seed=seeds)
@settings(max_examples=20)
def test_any_lengths(lengths, seed):
    """In float64: in float32 one token in 100,000 is chosen by less than what rounding makes of another batch."""
    model, rng = new_model().to(dtype="float64"), np.random.default_rng(seed)
    prompts = [rng.integers(0, VOCAB, length) for length in lengths]
    for prompt, row in zip(prompts, model.generate(prompts, 6, temperature=0), strict=True):
        np.testing.assert_array_equal(row, model.generate(prompt[None], 6, temperature=0)[0])


def test_padding_is_not_seen(model):
    """Whatever stands there, a row's logits are those of its tokens alone, and gradients do not see it either."""
    model.eval()
    ids, padding = PROMPTS[:, :8], np.array([0, 4, 7])
    logits = model(ids, padding=padding)[0]
    assert np.isfinite(logits.numpy()).all()
    for row, tokens, empty in zip(logits.numpy(), ids, padding, strict=True):
        np.testing.assert_allclose(row[empty:], model(tokens[None, empty:])[0].numpy()[0], rtol=0, atol=1e-5)

    targets = np.where(np.arange(8) < padding[:, None], -100, PROMPTS[:, 1:9])
    model(ids, targets, padding=padding)[1].backward()
    padded = model.wte.weight.grad.copy()
    model.zero_grad()
    rows = [(row[None, n:], after[None, n:]) for row, after, n in zip(ids, PROMPTS[:, 1:9], padding, strict=True)]
    loss = sum(model(row, after)[1] * row.size for row, after in rows) / sum(row.size for row, _ in rows)
    loss.backward()
    np.testing.assert_allclose(padded, model.wte.weight.grad, rtol=1e-3, atol=1e-5)


def test_an_array_gives_an_array_and_a_list_a_list(model):
    for ids in (PROMPTS[:, :4], PROMPTS[:, :4].astype(np.uint8), mg.Tensor(PROMPTS[:, :4])):
        rows = model.generate(ids, 5, temperature=0)
        assert rows.shape == (3, 9)
        assert rows.dtype == np.int64
    listed = model.generate(PROMPTS[:, :4].tolist(), 5, temperature=0)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(listed, rows)
    np.testing.assert_array_equal(model.generate(PROMPTS, 0), PROMPTS)


# Stop tokens


def until(stop, row):
    """The row up to its first stop token, with it."""
    ends = [i + 1 for i, token in enumerate(row) if token in stop]
    return list(row[: ends[0]] if ends else row)


@pytest.mark.parametrize("stop", [5, [5], (3, 5), {3, 5}, np.array([3, 5])], ids=repr)
def test_a_row_ends_with_its_first_stop_token(model, stop):
    """In a list rows are as long as they came out, and what the others say does not depend on it."""
    options = {"max_new_tokens": 16, "seed": 4}
    free = [row[len(prompt) :] for prompt, row in zip(RAGGED, model.generate(RAGGED, **options), strict=True)]
    expected = [until(np.atleast_1d(list(stop) if isinstance(stop, set) else stop), row) for row in free]
    assert len({len(row) for row in expected}) > 1, "some rows should end before others"
    rows = model.generate(RAGGED, **options, stop_tokens=stop)
    for prompt, row, new in zip(RAGGED, rows, expected, strict=True):
        assert list(row) == [*prompt, *new]


def test_an_array_is_filled_up_with_the_stop_token(model):
    options = {"max_new_tokens": 12, "seed": 2}
    free = model.generate(PROMPTS, **options)[:, 20:]
    stop = [int(row[i]) for row, i in zip(free, (2, 5, 9), strict=True)]
    expected = [until(stop, row) for row in free]
    longest = max(map(len, expected))
    rows = model.generate(PROMPTS, **options, stop_tokens=stop)
    np.testing.assert_array_equal(rows[:, 20:], [row + row[-1:] * (longest - len(row)) for row in expected])
    assert longest < 12, "when all rows have ended nothing more is computed"
    streamed = list(stream(model, PROMPTS, **options, stop_tokens=stop))
    np.testing.assert_array_equal(np.stack(streamed, axis=1), rows[:, 20:])


def test_a_stop_token_in_the_prompt_stops_nothing(model):
    free = model.generate(PROMPTS[:1, :4], 8, temperature=0)
    unseen = next(token for token in PROMPTS[0, :4] if token not in free[0, 4:])
    np.testing.assert_array_equal(model.generate(PROMPTS[:1, :4], 8, temperature=0, stop_tokens=unseen), free)


# The choice of a token


def test_greedy_takes_the_likeliest_token(model):
    model.eval()
    ids = model.generate(PROMPTS[:, :4], 5, temperature=0)
    logits = model(ids)[0].numpy()
    np.testing.assert_array_equal(ids[:, 4:], logits.argmax(-1)[:, 3:-1])


@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}, {"temperature": 5e-324}])
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
    tokens = stream(model, PROMPTS[:, :4], 2)
    next(tokens)  # a stream that nobody reads to its end
    assert model.training


def test_streams_of_one_model_leave_each_other_alone(model):
    """The longer one goes on when the other has ended, and neither minds what mode the model is in between."""
    expected = model.generate(PROMPTS[:, :4], 8, temperature=0)[:, 4:]
    short, long = (stream(model, PROMPTS[:, :4], n, temperature=0) for n in (3, 8))
    tokens = []
    for i, token in enumerate(long):
        tokens.append(token)
        next(short, None)
        model.train(i % 2 == 0)
        assert model.h[0].attn.resid_dropout.training == (i % 2 == 0)
    np.testing.assert_array_equal(np.stack(tokens, axis=1), expected)


def test_a_stream_may_be_longer_than_any_memory(model):
    """Nothing is set aside for tokens that a stop token makes unnecessary."""
    expected = model.generate(PROMPTS[:, :4], 30, seed=3)[:, 4:]
    tokens = stream(model, PROMPTS[:, :4], 10**22, seed=3)
    np.testing.assert_array_equal(np.stack([next(tokens) for _ in range(30)], axis=1), expected)


def frequencies(logits, n=20_000, **options):
    chosen = Sampling(**options).choose(np.tile(logits, (n, 1)), np.random.default_rng(0))
    return np.bincount(chosen, minlength=len(logits)) / n


LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.2]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.3, 0.2]),
        ({"temperature": 0.5}, np.array([1, 16, 9, 4]) / 30),  # probabilities squared
        ({"temperature": float("inf")}, [0.25, 0.25, 0.25, 0.25]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_k": 4}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_k": 99}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_p": 0.41}, [0, 4 / 7, 3 / 7, 0]),  # 0.4 alone is not enough
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.3, 0.2]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0]),
    ],
)
def test_tokens_come_with_their_probabilities(options, expected):
    np.testing.assert_allclose(frequencies(LOGITS, **options), expected, atol=0.015)


def test_the_likeliest_of_many_tokens_come():
    """Of so many that sorting a part of them, which is all that top_k needs, does not sort them all by chance."""
    logits = np.random.default_rng(1).permutation(1000)
    chosen = np.flatnonzero(frequencies(logits, n=1000, temperature=100.0, top_k=40))
    assert set(chosen) == set(np.argsort(-logits)[:40])


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.99}], ids=str)
def test_ids_that_no_tokenizer_knows_are_not_sampled(model, options):
    """As many as a model has more than its vocabulary, rounded up; here they would be the likeliest by far."""
    model.lm_head.weight.data[9:] = 30 * model.wte.weight.data[:1]
    free, known = (
        model.generate(PROMPTS[:, :4], 10, seed=1, **options)[:, 4:],
        generate(model, PROMPTS[:, :4], 10, seed=1, vocab_size=9, **options)[:, 4:],
    )
    assert free.max() >= 9
    assert known.max() < 9
    for all_of_them in (VOCAB, VOCAB + 5):
        rows = generate(model, PROMPTS[:, :4], 10, seed=1, vocab_size=all_of_them, **options)[:, 4:]
        np.testing.assert_array_equal(rows, free)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(
    ("row", "largest"), [([0, np.nan, 1], "nan"), ([0, np.inf, 1], "inf"), ([-np.inf] * 3, "-inf")], ids=str
)
def test_logits_that_give_nothing_to_choose_from(row, largest, temperature):
    logits = np.array([[1, 2, -np.inf], row], np.float32)
    sampling, rng = Sampling(temperature), np.random.default_rng(0)
    assert sampling.choose(logits[:1], rng) < 2
    with pytest.raises(GPTError, match=f"the largest logit is {largest}; expected a finite number"):
        sampling.choose(logits, rng)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected a whole number of at least 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a whole number"),
        ({"temperature": -0.5}, "temperature is -0.5; expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "a"}, "temperature is 'a'; expected a number of at least 0"),
        ({"top_k": 0}, "top_k is 0; expected a whole number of at least 1"),
        ({"top_k": True}, "top_k is True; expected a whole number"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a number above 0 and at most 1"),
        ({"top_p": "x"}, "top_p is 'x'; expected a number above 0 and at most 1"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"vocab_size": 0}, "vocab_size is 0; expected a whole number of at least 1"),
        ({"stop_tokens": 17}, "stop_tokens is 17; expected ids from 0 to 16"),
        ({"stop_tokens": [3, -1]}, r"stop_tokens is \[3, -1\]; expected ids from 0 to 16"),
        ({"stop_tokens": "\n"}, r"stop_tokens is '\\n'; expected ids"),
        ({"ids": np.zeros((1, 0), int)}, r"expected ids, integers \(B, T\).* got \(0,\) int64"),
        ({"ids": np.zeros((0, 3), int)}, r"expected ids, integers \(B, T\).* got \(0, 3\) int64"),
        ({"ids": np.zeros(3, int)}, r"expected ids, integers \(B, T\).* got \(3,\) int64"),
        ({"ids": np.zeros((1, 3))}, "got .* float64"),
        ({"ids": []}, r"expected ids, .* got \(0,\)"),
        ({"ids": [[1, 2], []]}, r"a list of nonempty rows, got \(0,\)"),
        ({"ids": [1, 2]}, r"a list of nonempty rows, got \(\) int64"),
        ({"ids": [[1, 17]]}, "expected ids from 0 to 16, got 1 to 17"),
    ],
)
def test_bad_options(model, options, message):
    """Before anything is computed, and by the stream at once, not at its first token."""
    for function in (generate, stream):
        with pytest.raises(ConfigError, match=message):
            function(model, **{"ids": PROMPTS, "max_new_tokens": 1, **options})


# The program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes, in Hugging Face's layout, that knows "五🍎!五🍎!…" by heart, and that "no" is the end."""
    mg.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tokenizer = BPETokenizer([])
    model = GPT(GPTConfig(block_size=16, vocab_size=257, n_layer=1, n_head=2, n_embd=32))
    ids = tokenizer.encode(("五🍎!" * 5 + "no" + END_OF_TEXT) * 4, allowed_special="all")
    blocks = np.stack([ids[start : start + 17] for start in range(len(ids) - 16)]).astype(np.int64)
    optimizer = model.configure_optimizer(lr=1e-2)
    for _ in range(60):
        model(blocks[:, :-1], blocks[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_pretrained(model, tokenizer, folder)
    return folder


def greedily(folder, prompt, length, *options):
    return ["--model", folder, "--prompt", prompt, "--temperature", 0, "--max-new-tokens", length, *options]


def test_the_program_prints_whole_characters_as_they_come(folder, monkeypatch):
    """Three or four tokens make a character; nothing is printed but when one is whole."""
    printed = []
    monkeypatch.setattr("builtins.print", lambda text="", **options: printed.append(text))
    assert run_program("sample", *greedily(folder, "五🍎!", 8 + 3 + 2)) == 0
    assert [text for text in printed if text] == ["五🍎!", "五", "🍎", "!", "五", "\N{REPLACEMENT CHARACTER}"]


def test_the_program_stops_where_it_is_told_to(folder, capsys):
    for prompt, options, expected in (
        ("五", [], "五🍎!五🍎"),
        ("五", ["--stop", "!"], "五🍎"),
        ("五", ["--stop", "x", "--stop", "!"], "五🍎"),
        ("n", [], "no"),  # the end of a text is the end in any case
    ):
        assert run_program("sample", *greedily(folder, prompt, 12, *options)) == 0
        assert capsys.readouterr().out == expected + "\n"
    assert (
        run_program("sample", *greedily(folder, "五", 9, "--stop", "🍎"))
        == "error: --stop: expected one token, got '🍎', which is 4 tokens"
    )


def test_the_program_samples_what_the_tokenizer_knows(tmp_path, capsys):
    """A model may have more tokens: the number is often rounded up."""
    mg.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=320, n_layer=1, n_head=1, n_embd=8))
    save_pretrained(model, BPETokenizer([], ()), tmp_path)
    options = ["--model", tmp_path, "--prompt", "hello", "--max-new-tokens", 100]
    assert run_program("sample", *options) == 0
    assert capsys.readouterr().out.startswith("hello")
    assert run_program("sample", *options, "--temperature", 0) == 0


def test_what_the_terminal_cannot_show_becomes_a_question_mark(folder, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert run_program("sample", *greedily(folder, "五", 9, "--stop", "!")) == 0
    terminal.seek(0)
    assert terminal.read() == "??\n"


def test_a_sample_does_not_control_the_terminal(tmp_path, capsys):
    """Of the 256 bytes that this model chooses from, 31 would move the cursor, ring, or begin a command."""
    mg.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=256, n_layer=1, n_head=1, n_embd=8))
    save_pretrained(model, BPETokenizer([], ()), tmp_path)
    assert run_program("sample", "--model", tmp_path, "--prompt", "\x1b[2J\tgo\r\n", "--max-new-tokens", 500) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("\\x1b[2J\tgo\\r\n")
    assert not [c for c in printed if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert "\\x1d" in printed
