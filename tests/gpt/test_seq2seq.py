"""The encoder-decoder Transformer: its masks, its gradients, that it can learn, and beam search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import ConfigError
from gpt.translation.beam import beam_search, normalizer
from gpt.translation.seq2seq import END, PAD, START, Seq2Seq, Seq2SeqConfig, sinusoidal_positions
from minigrad import optim
from minigrad.gradcheck import gradcheck_directional
from tests.shapes import seeds

SHAPE = {"source_vocab_size": 9, "target_vocab_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0}
VARIANTS = [
    {},
    {"norm_first": False},
    {"position": "learned", "block_size": 12},
    {"tie_weights": "none", "bias": False},
    {"tie_weights": "all", "source_vocab_size": 7},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def new_model(dtype="float64", **options):
    return Seq2Seq(Seq2SeqConfig(**{**SHAPE, **options})).to(dtype=dtype)


def random_ids(rows, length, vocab_size=7, seed=0):
    return np.random.default_rng(seed).integers(3, vocab_size, (rows, length))


# Shapes, names and configuration


@every_variant
def test_shapes_and_loss(variant):
    model, source, ids = new_model(**variant), random_ids(3, 5), random_ids(3, 4, seed=1)
    logits, loss = model(source, ids)
    assert logits.shape == (3, 4, 7)
    assert loss is None
    targets = random_ids(3, 4, seed=2)
    targets[1, 2:] = PAD
    for smoothing in (0.0, 0.1):
        loss = model(source, ids, targets, label_smoothing=smoothing)[1]
        expected = mg.functional.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=smoothing)
        assert loss.item() == pytest.approx(expected.item())
    assert model.cross_attention(source, ids).shape == (2, 3, 2, 4, 5)


def test_which_weights_are_shared():
    count = {tie: new_model(tie_weights=tie, source_vocab_size=7).num_parameters() for tie in ("none", "output", "all")}
    assert count["none"] - count["output"] == count["output"] - count["all"] == 7 * 8


def test_the_defaults_are_the_papers_base_model():
    """65 million parameters, "Attention Is All You Need", table 3: with one vocabulary of about 37000 byte pairs."""
    with mg.random.blank():
        model = Seq2Seq(Seq2SeqConfig(tie_weights="all", norm_first=False))
    assert abs(model.num_parameters() / 65e6 - 1) < 0.05


def test_sinusoidal_positions_are_the_papers():
    positions = sinusoidal_positions(3, 9, 8)
    for t, i in itertools.product(range(3, 9), range(4)):
        assert math.isclose(positions[t - 3, 2 * i], math.sin(t / 10000 ** (2 * i / 8)))
        assert math.isclose(positions[t - 3, 2 * i + 1], math.cos(t / 10000 ** (2 * i / 8)))


@pytest.mark.parametrize("norm_first", [True, False])
def test_at_initialization_logits_are_of_order_one_whatever_the_width_and_depth(norm_first):
    for n_layer, n_embd in ((1, 32), (6, 32), (2, 128)):
        model = new_model(n_layer=n_layer, n_embd=n_embd, norm_first=norm_first, target_vocab_size=50)
        logits = model(random_ids(4, 9), random_ids(4, 9, 50))[0].numpy()
        assert 0.5 < logits.std() < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 3}, "n_embd 8 is not divisible by n_head 3"),
        ({"n_embd": 9, "n_head": 1}, "position 'sinusoidal' needs an even n_embd, got 9"),
        ({"source_vocab_size": 3}, "source_vocab_size is 3; expected a whole number of at least 4"),
        ({"position": "rotary"}, "position is 'rotary'; expected 'sinusoidal' or 'learned'"),
        ({"bias": "no"}, "bias is 'no'; expected True or False"),
        ({"norm_first": 3}, "norm_first is 3; expected True or False"),
        ({"tie_weights": "all"}, "tie_weights 'all' needs equal vocabulary sizes, got 9 and 7"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"n_layer": 0}, "n_layer is 0"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Seq2SeqConfig(**{**SHAPE, **options})


def test_arguments_that_cannot_be():
    model, ids = new_model(position="learned", block_size=6), random_ids(2, 5)
    with pytest.raises(ConfigError, match=r"expected source, integers \(B, T\), got \(5,\)"):
        model(ids[0], ids)
    with pytest.raises(ConfigError, match=r"expected ids, integers .* float32"):
        model(ids, [[0.5]])
    with pytest.raises(ConfigError, match="expected one target per source, got 1 targets and 2 sources"):
        model(ids, ids[:1])
    with pytest.raises(ConfigError, match="a source of 7 tokens is longer than block_size 6"):
        model(random_ids(2, 7), ids)
    with pytest.raises(IndexError, match="0 to 8"):
        model(ids + 10, ids)
    for options, message in (
        ({"beam_size": 0}, "beam_size is 0; expected a whole number of at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"max_new_tokens": 7}, "max_new_tokens is 7; expected at most block_size 6"),
        ({"beam_size": True}, "beam_size is True; expected a whole number of at least 1"),
        ({"length_penalty": -1}, "length_penalty is -1"),
        ({"length_penalty": "a"}, "length_penalty is 'a'"),
        ({"length_penalty": 1000}, "length_penalty is 1000; expected a number from 0 to 10"),
        ({"length_penalty": math.inf}, "length_penalty is inf"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.translate(ids, **{"max_new_tokens": 5, **options})


def test_no_sources_have_no_translations():
    assert new_model().translate(random_ids(0, 5)) == []


# Who sees what


@every_variant
def test_no_token_of_the_target_sees_the_future_and_every_one_sees_the_whole_source(variant):
    model, source, ids = new_model(**variant), random_ids(1, 6), random_ids(1, 6, seed=1)
    before = model(source, ids)[0].numpy()
    for place in range(6):
        changed = ids.copy()
        changed[0, place] = 3 + (ids[0, place] - 2) % 4
        differs = np.abs(model(source, changed)[0].numpy() - before).max(axis=-1)[0] > 1e-12
        np.testing.assert_array_equal(differs, np.arange(6) >= place)
        changed = source.copy()
        changed[0, place] = 3 + (source[0, place] - 2) % 4
        assert (np.abs(model(changed, ids)[0].numpy() - before).max(axis=-1) > 1e-12).all()


@every_variant
def test_more_padding_changes_nothing(variant):
    """Neither logits nor gradients, on either side; not even that there is a mask, where before there was none."""
    model = new_model(**variant)
    source, ids, targets = random_ids(2, 5), random_ids(2, 4, seed=1), random_ids(2, 4, seed=2)
    results = []
    for source_columns, target_columns in ((0, 0), (1, 0), (0, 2), (3, 1)):
        extra = [(0, 0), (0, target_columns)]
        logits, loss = model(np.pad(source, [(0, 0), (0, source_columns)]), np.pad(ids, extra), np.pad(targets, extra))
        model.zero_grad()
        loss.backward()
        results.append([logits.numpy()[:, :4], *(p.grad for p in model.parameters())])
    for other in results[1:]:
        for array, first in zip(other, results[0], strict=True):
            if first.shape == array.shape:
                np.testing.assert_allclose(array, first, rtol=1e-9, atol=1e-12)


@every_variant
def test_rows_that_are_entirely_padding_stay_finite_and_leave_the_others_alone(variant):
    """Row 1 has no source, row 2 no target, row 3 neither. Loss and gradients are those of rows 0 and 1."""
    model = new_model(**variant)
    source, ids, targets = random_ids(4, 5), random_ids(4, 4, seed=1), random_ids(4, 4, seed=2)
    source[[1, 3]] = PAD
    ids[[2, 3]] = targets[[2, 3]] = PAD
    with mg.detect_anomaly():
        logits, loss = model(source, ids, targets, label_smoothing=0.1)
        loss.backward()
    assert np.isfinite(logits.numpy()).all()
    gradients = [p.grad for p in model.parameters()]
    assert all(np.isfinite(g).all() for g in gradients)
    assert np.isfinite(model.cross_attention(source, ids)).all()
    assert not model.cross_attention(source, ids)[:, 1].any(), "nothing to look at"

    model.zero_grad()
    few_logits, few_loss = model(source[:2], ids[:2], targets[:2], label_smoothing=0.1)
    few_loss.backward()
    np.testing.assert_allclose(logits.numpy()[:2], few_logits.numpy(), rtol=1e-9)
    assert loss.item() == pytest.approx(few_loss.item(), rel=1e-12)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-13)
    alone = model(source[:1], ids[:1])[0].numpy()
    np.testing.assert_allclose(few_logits.numpy()[:1], alone, rtol=1e-9)


def test_cross_attention_weights_are_those_that_made_the_output():
    """They add up to 1 over the source, leave padding out, and with them the values give what attention gives."""
    model, source, ids = new_model(n_layer=1), random_ids(2, 5), random_ids(2, 3, seed=1)
    source[0, 3:] = PAD
    (weights,) = model.cross_attention(source, ids)
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert not weights[0, :, :, 3:].any()
    attention, memory = model.decoder[0].cross_attn, model.encode(source)
    x = mg.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8)))
    found = []
    y = attention(x, memory.keys_values[0], memory.mask, weights=found)
    heads = found[0] @ memory.keys_values[0][1].data  # (B, nh, T, hs)
    np.testing.assert_allclose(y.data, attention.c_proj(heads.transpose(0, 2, 1, 3).reshape(2, 3, 8)).data)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    model, source, ids = new_model(dropout=0.5), random_ids(1, 5), random_ids(1, 4)
    assert (model(source, ids)[0].numpy() != model(source, ids)[0].numpy()).any()
    model.eval()
    np.testing.assert_array_equal(model(source, ids)[0].numpy(), model(source, ids)[0].numpy())


# Gradients and learning


@every_variant
def test_gradients_of_the_whole_model(variant):
    """All parameters at once along random directions, with padding on both sides and label smoothing."""
    model = new_model(**variant)
    source, ids, targets = random_ids(3, 5), random_ids(3, 4, seed=1), random_ids(3, 4, seed=2)
    source[0, 3:], source[1], ids[2, 2:], targets[2, 2:] = PAD, PAD, PAD, PAD
    parameters = list(model.parameters())
    for seed in range(3):
        gradcheck_directional(lambda *_: model(source, ids, targets, label_smoothing=0.1)[1], parameters, seed=seed)
    assert all(np.abs(p.grad).max() > 0 for p in parameters), "every parameter takes part"


@pytest.mark.parametrize("norm_first", [True, False])
def test_it_learns_a_handful_of_pairs_by_heart(norm_first):
    """Sources of several lengths, to be written backwards."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 9, length) for length in (1, 2, 3, 4, 5, 6, 6, 6)]
    source, ids, targets = (np.full((8, width), PAD) for width in (6, 7, 7))
    for i, row in enumerate(rows):
        source[i, : len(row)] = row
        ids[i, : len(row) + 1] = [START, *row[::-1]]
        targets[i, : len(row) + 1] = [*row[::-1], END]
    model = new_model("float32", target_vocab_size=9, n_layer=1, n_embd=32, norm_first=norm_first)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(200):
        loss = model(source, ids, targets)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    for beam_size in (1, 3):
        found = model.translate(source, beam_size, max_new_tokens=8)
        assert [list(tokens) for tokens in found] == [[*row[::-1], END] for row in rows]


# Greedy and beam search


def peaked_model(seed, sharpness=3, **options):
    """A model whose choices are as sure, and depend as much on source and place, as those of one that has learned."""
    mg.manual_seed(seed)
    model = new_model(tie_weights="none", **options)
    model.lm_head.weight.data *= sharpness
    for block in model.decoder:
        block.attn.c_proj.weight.data *= 4
        block.cross_attn.c_proj.weight.data *= 4
    return model


def greedy(model, source, max_new_tokens):
    """The likeliest token again and again, everything computed anew each time."""
    tokens = []
    for _ in range(max_new_tokens):
        logits = model(source[None], np.array([[START, *tokens]]))[0].numpy()[0, -1]
        logits[[PAD, START]] = -np.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == END:
            break
    return tokens


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", VARIANTS[:3], ids=str)
def test_a_beam_of_one_is_greedy_search(variant, seed):
    """In a batch of sources of several lengths, with what is kept from step to step."""
    model, source = peaked_model(seed, **variant), random_ids(5, 6, seed=seed)
    source[1, 4:], source[3, 1:] = PAD, PAD
    expected = [greedy(model, row[row != PAD], 9) for row in source]
    assert [list(tokens) for tokens in model.translate(source, max_new_tokens=9)] == expected


@pytest.mark.parametrize("beam_size", [2, 3])
def test_the_rows_of_a_batch_do_not_know_of_each_other(beam_size):
    model, source = peaked_model(1), random_ids(5, 6)
    together = model.translate(source, beam_size, max_new_tokens=9)
    for row, tokens in zip(source, together, strict=True):
        np.testing.assert_array_equal(model.translate(row[None], beam_size, max_new_tokens=9)[0], tokens)


def all_sequences(vocab_size, max_new_tokens):
    """Every sequence of tokens with END as its last."""
    words = range(END + 1, vocab_size)
    for length in range(max_new_tokens):
        for tokens in itertools.product(words, repeat=length):
            yield [*tokens, END]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_beam_that_is_large_enough_finds_the_best_of_all_sequences(seed, length_penalty):
    """Brute force: the model judges each of the 40 sequences of at most 4 tokens by itself."""
    model, source = peaked_model(seed, sharpness=2, target_vocab_size=6), random_ids(3, 4, seed=seed)
    for row, found in zip(source, model.translate(source, 100, 4, length_penalty), strict=True):
        scores = {}
        for tokens in all_sequences(6, 4):
            log_p = mg.functional.log_softmax(model(row[None], np.array([[START, *tokens[:-1]]]))[0]).numpy()[0]
            total = log_p[np.arange(len(tokens)), tokens].sum()
            scores[tuple(tokens)] = total / ((5 + len(tokens)) / 6) ** length_penalty
        assert tuple(found) == max(scores, key=scores.__getitem__)


def table_search(table, beam_size, max_new_tokens, length_penalty=0.0):
    """Beam search where the next token depends on the last: `table` (V, V) has the log-probabilities."""

    def next_log_probabilities(tokens, rows):
        return table[tokens]

    return beam_search(next_log_probabilities, 1, beam_size, max_new_tokens, length_penalty)[0]


def a_table(seed, vocab_size=5):
    logits = 2 * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@given(seed=seeds, length_penalty=st.sampled_from([0.0, 0.6, 1.0]), max_new_tokens=st.integers(1, 5))
def test_beam_search_of_a_chain_against_brute_force(seed, length_penalty, max_new_tokens):
    table = a_table(seed)
    found = table_search(table, 100, max_new_tokens, length_penalty)
    scores = {
        tuple(tokens): sum(table[pair] for pair in itertools.pairwise([START, *tokens]))
        / normalizer(len(tokens), length_penalty)
        for tokens in all_sequences(5, max_new_tokens)
    }
    assert math.isclose(found.score, max(scores.values()))
    assert math.isclose(scores[tuple(found.tokens)], found.score)


@given(seed=seeds)
def test_a_narrow_beam_finds_a_sequence_and_its_score_but_never_better_than_the_best(seed):
    table = a_table(seed)
    best = table_search(table, 100, 5)
    for beam_size in (1, 2, 3):
        found = table_search(table, beam_size, 5)
        assert not np.isin(found.tokens, [PAD, START]).any()
        assert math.isclose(found.score, sum(table[pair] for pair in itertools.pairwise([START, *found.tokens])))
        if found.tokens[-1] == END:
            assert found.score <= best.score + 1e-12


def test_beam_search_finds_what_greedy_search_misses():
    """To begin with, a is likelier than b, but only b ends with certainty."""
    a, b = 3, 4
    table = np.full((5, 5), -np.inf)
    table[START, [a, b]] = np.log([0.6, 0.4])
    table[a, [a, b, END]] = np.log([0.3, 0.35, 0.35])
    table[b, END] = 0
    assert list(table_search(table, 1, 5).tokens)[0] == a
    found = table_search(table, 2, 5)
    assert list(found.tokens) == [b, END]
    assert math.isclose(found.score, math.log(0.4))


def test_a_beam_is_narrower_by_one_for_each_hypothesis_that_has_ended():
    """Of two, END is one, and so a b, the likelier, pushes a c out, which would have ended with the better score."""
    a, b, c, d = 3, 4, 5, 6
    table = np.full((7, 7), -np.inf)
    table[START, [END, a]] = np.log([0.6, 0.4])
    table[a, [b, c]] = np.log([0.6, 0.4])
    table[b, [END, d]] = np.log([0.6, 0.4])
    table[c, END] = 0
    assert list(table_search(table, 2, 3, length_penalty=10.0).tokens) == [a, b, END]
    assert list(table_search(table, 3, 3, length_penalty=10.0).tokens) == [a, c, END]


def test_the_length_penalty_decides_between_short_and_long():
    """END at once has 0.4; two more tokens and END have 0.6 * 0.8 * 0.8 = 0.384."""
    a, b = 3, 4
    table = np.full((5, 5), -np.inf)
    table[START, [END, a]] = np.log([0.4, 0.6])
    table[a, [b, END]] = np.log([0.8, 0.2])
    table[b, [END, a]] = np.log([0.8, 0.2])
    assert list(table_search(table, 4, 5, length_penalty=0.0).tokens) == [END]
    assert list(table_search(table, 4, 5, length_penalty=1.0).tokens) == [a, b, END]


def test_what_does_not_end_is_cut_off():
    table = np.full((4, 4), -np.inf)
    table[:, 3] = 0
    for beam_size in (1, 3):
        assert list(table_search(table, beam_size, 4).tokens) == [3, 3, 3, 3]


def test_translating_leaves_the_mode_and_the_tape_alone():
    model = new_model(dropout=0.5)
    model.translate(random_ids(1, 4), 2, 3)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("tie_weights", ["none", "output", "all"])
@pytest.mark.parametrize("change", [{}, {"bias": False}, {"position": "learned"}, {"norm_first": False}], ids=str)
def test_the_shapes_that_a_config_implies(tie_weights, change):
    config = Seq2SeqConfig(11, 11, n_layer=2, n_head=2, n_embd=4, tie_weights=tie_weights, **change)
    expected = {name: parameter.shape for name, parameter in Seq2Seq(config).named_parameters()}
    assert list(config.parameter_shapes()) == list(expected.items())
