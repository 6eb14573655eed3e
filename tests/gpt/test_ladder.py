"""The ladder: every rung is what its docstring says, learns, and is trained by one command."""

import contextlib
import csv
import io
import math
import re
import signal
import sys

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS
from gpt.course.ladder import RUNGS, SMALL, Head, MultiHead, WithLayerNorm
from gpt.evaluate import evaluate
from gpt.trainer import Trainer
from minigrad import functional as F
from minigrad import optim
from minigrad.gradcheck import gradcheck_directional
from tests.checks import assert_equal_functions
from tests.programs import load_program, run_program

SMALL_RUNGS = [name for name in RUNGS if name != "gpt"]
T, V, C = 6, 11, 8  # of the models that are tested
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40


@pytest.fixture(params=RUNGS)
def model(request):
    """Each rung, in a small shape."""
    config = GPTConfig(block_size=T, vocab_size=V, n_layer=2, n_head=2, n_embd=C)
    return RUNGS[request.param].model(config)


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape)


# The models


def test_logits_and_loss(model):
    ids, targets = random_ids(3, T), random_ids(3, T, seed=1)
    logits, loss = model(ids)
    assert logits.shape == (3, T, V)
    assert loss is None
    logits, loss = model(ids, targets)
    assert loss.shape == ()
    assert logits.dtype == loss.dtype == np.float32
    probabilities = F.softmax(logits).numpy()
    chosen = np.take_along_axis(probabilities, targets[..., None], axis=-1)
    assert loss.item() == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


def test_no_token_sees_the_future(model):
    ids = random_ids(1, T)
    before = model(ids)[0].numpy()
    ids[0, 3] = (ids[0, 3] + 1) % V
    after = model(ids)[0].numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.abs(before - after)[:, 3].max(axis=-1) > 1e-6)


@pytest.mark.parametrize("name", SMALL_RUNGS)
def test_all_rungs_but_the_bigram_see_the_past(name):
    model = RUNGS[name].model(GPTConfig(vocab_size=V, **SMALL))
    ids = random_ids(1, 8)
    before = model(ids)[0].numpy()
    ids[0, 3] = (ids[0, 3] + 1) % V
    changed = np.abs(model(ids)[0].numpy() - before).max(axis=-1)[0] > 1e-6  # (T,)
    assert changed.tolist() == [False, False, False, True] + 4 * [name != "bigram"]


def test_order_matters_thanks_to_the_positions():
    """The last token reads "ab" and "ba" alike if all positions have one vector, and not otherwise."""
    model = RUNGS["head"].model(GPTConfig(vocab_size=V, **SMALL))
    ids, swapped = np.array([[3, 5, 7]]), np.array([[5, 3, 7]])
    assert not np.allclose(model(ids)[0].numpy()[:, -1], model(swapped)[0].numpy()[:, -1])
    model.wpe.weight.data[...] = 1
    np.testing.assert_allclose(model(ids)[0].numpy()[:, -1], model(swapped)[0].numpy()[:, -1], rtol=1e-5)


def test_gradient_of_every_parameter(model):
    """Central differences along random directions in all parameters at once, in float64."""
    model.to(dtype="float64")
    ids, targets = random_ids(3, T), random_ids(3, T, seed=1)
    for seed in range(5):
        assert gradcheck_directional(lambda *_: model(ids, targets)[1], list(model.parameters()), seed=seed)


def test_gradient_of_a_head_element_by_element():
    head = Head(C, 4).to(dtype="float64")
    weights = [head.query.weight, head.key.weight, head.value.weight]

    def fn(x, *given):
        for layer, weight in zip((head.query, head.key, head.value), given, strict=True):
            vars(layer)["weight"] = weight
        return head(x)

    x = np.random.default_rng(0).standard_normal((2, T, C))
    assert mg.gradcheck(fn, [x, *(weight.numpy().copy() for weight in weights)])


def test_the_bigrams_gradient_is_predicted_minus_counted_frequencies():
    model = RUNGS["bigram"].model(GPTConfig(vocab_size=V, **SMALL)).to(dtype="float64")
    ids, targets = random_ids(4, 50), random_ids(4, 50, seed=1)
    model(ids, targets)[1].backward()
    counts = np.zeros((V, V))
    np.add.at(counts, (ids, targets), 1)
    predicted = F.softmax(model.wte.weight).numpy()
    expected = (counts.sum(axis=1, keepdims=True) * predicted - counts) / ids.size
    np.testing.assert_allclose(model.wte.weight.grad, expected, rtol=1e-9, atol=1e-15)


def test_a_head_is_scaled_dot_product_attention():
    head = Head(C, 4).to(dtype="float64")

    def fused(x):
        return F.scaled_dot_product_attention(head.query(x), head.key(x), head.value(x), causal=True)

    assert_equal_functions(head, fused, np.random.default_rng(0).standard_normal((3, T, C)))


def test_several_heads_are_heads_side_by_side():
    heads, x = MultiHead(2, C), mg.random.normal((3, T, C))
    joined = heads(x).numpy()
    for i, head in enumerate(heads.heads):
        np.testing.assert_array_equal(joined[..., 4 * i : 4 * i + 4], head(x).numpy())


@pytest.mark.parametrize("name", ["residual", "layer-norm"])
def test_residuals_pass_the_input_on_and_norms_even_its_scale(name):
    """A block whose parts add nothing is the identity; what the parts add to x and to 10 x is the same after a norm."""
    block = RUNGS[name].model(GPTConfig(vocab_size=V, **SMALL)).body[0].to(dtype="float64")
    x = mg.Tensor(np.random.default_rng(0).standard_normal((2, 8, SMALL["n_embd"])))
    block.projection.weight.data[...] = block.projection.bias.data[...] = 0
    added, added_to_10x = ((block(scale * x) - scale * x).numpy() for scale in (1, 10))
    assert np.allclose(added, added_to_10x, rtol=1e-3, atol=1e-3) == (name == "layer-norm")
    last = block.feed_forward[2]
    last.weight.data[...] = last.bias.data[...] = 0
    np.testing.assert_array_equal(block(x).numpy(), x.numpy())


def test_parameters_are_those_counted_by_hand():
    """For 65 characters, 8 tokens, 32 channels, and three blocks from the residual connections on."""
    outside = 65 * 32 + 8 * 32 + (32 * 65 + 65)  # wte, wpe, lm_head
    attention = 3 * 32 * 32  # query, key, value: as many in four heads of 8 as in one of 32
    feed_forward = (32 * 128 + 128) + (128 * 32 + 32)
    block = attention + (32 * 32 + 32) + feed_forward
    expected = {
        "bigram": 65 * 65,
        "head": outside + attention,
        "heads": outside + attention,
        "feed-forward": outside + attention + feed_forward,
        "residual": outside + 3 * block,
        "layer-norm": outside + 3 * (block + 2 * 64) + 64,
    }
    config = GPTConfig(vocab_size=65, **SMALL)
    assert {name: RUNGS[name].model(config).num_parameters() for name in SMALL_RUNGS} == expected
    assert expected["bigram"] == 4225
    assert expected["layer-norm"] == 42369


def test_the_last_rung_is_the_gpt():
    assert RUNGS["gpt"].model is GPT
    assert list(RUNGS) == [*SMALL_RUNGS, "gpt"]


@pytest.mark.parametrize("name", SMALL_RUNGS)
def test_learns(name):
    """The loss falls within forty steps on a text of nine tokens."""
    model = RUNGS[name].model(GPTConfig(vocab_size=V, **SMALL))
    ids = random_ids(1, 9)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


# Text from a rung


def test_greedy_text_is_the_plain_loop(model):
    """Past block_size too, where the window slides."""
    ids = random_ids(2, 3)
    expected = ids
    for _ in range(8):
        expected = np.concatenate([expected, model(expected[:, -T:])[0].numpy()[:, -1:].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(model.generate(ids, 8, temperature=0), expected)


@pytest.mark.parametrize("name", SMALL_RUNGS)
def test_the_seed_decides_the_text(name):
    model = RUNGS[name].model(GPTConfig(vocab_size=V, **SMALL))
    one, two, other = (model.generate(random_ids(1, 4), 30, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_bad_input():
    model = WithLayerNorm(GPTConfig(vocab_size=V, **SMALL))
    with pytest.raises(ConfigError, match="a sequence of 9 tokens is longer than block_size 8"):
        model(random_ids(1, 9))
    with pytest.raises(IndexError, match="Embedding: expected ids from 0 to 10, but they range from 3 to 11"):
        model(np.array([[3, 11]]))
    with pytest.raises(ConfigError, match=r"WithLayerNorm.generate: expected prompts of equal length"):
        model.generate([[1, 2], [3]], 2)
    with pytest.raises(ConfigError, match="temperature is -1; expected a number of at least 0"):
        model.generate(random_ids(1, 2), 2, temperature=-1)


# The program


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def read_table(printed):
    """The rows of the table that the program prints, by rung: parameters, steps, loss, the lecture's value."""
    rows = re.findall(r"^([a-z-]+) +([\d,]+) +([\d,]+) +(\d\.\d{4}) +(\d\.\d\d)$", printed, re.M)
    return {
        name: (int(n.replace(",", "")), int(steps), float(loss), float(value)) for name, n, steps, loss, value in rows
    }


@pytest.fixture(scope="module")
def climbed(text, tmp_path_factory):
    """All small rungs, trained for 20 steps: the folder, what was printed, and the progress bars."""
    out, printed, bars = tmp_path_factory.mktemp("climbed"), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(bars):
        assert run_program("ladder", "--all", "--steps", 20, "--data", text, "--out", out) == 0
    return out, printed.getvalue(), bars.getvalue()


def test_all_rungs_are_trained_shown_and_compared(climbed):
    out, printed, bars = climbed
    table = read_table(printed)
    assert list(table) == SMALL_RUNGS
    assert [row[3] for row in table.values()] == [2.5, 2.4, 2.28, 2.24, 2.08, 2.06]
    assert len(re.findall(r"a sample.*:\n    \| ", printed)) == len(SMALL_RUNGS)
    assert bars.count("20/20") == len(SMALL_RUNGS)
    assert "The lecture's values are for Tiny Shakespeare, not for this text." in printed
    with open(out / "ladder.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name, step) for name in SMALL_RUNGS for step in ("0", "20")]
    assert [(row["rung"], row["step"]) for row in rows] == expected
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        parameters, steps, loss, _ = table[after["rung"]]
        assert (parameters, steps) == (int(after["parameters"]), 20)
        assert loss == pytest.approx(float(after["val_loss"]), abs=1e-4)
        assert loss < float(before["val_loss"])


def test_all_curves_are_drawn(climbed):
    pytest.importorskip("matplotlib")
    out, printed, _ = climbed
    assert (out / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert f"plot    {out / 'ladder.png'}" in printed


def test_a_rung_comes_out_the_same_alone_and_takes_its_place_among_the_others(climbed, text, tmp_path, capsys):
    everything = (climbed[0] / "ladder.csv").read_text()
    (tmp_path / "ladder.csv").write_text(everything)
    run = ["ladder", "--rung", "head", "--steps", 20, "--data", text, "--out", tmp_path]
    assert run_program(*run) == 0
    assert (tmp_path / "ladder.csv").read_text() == everything
    assert list(read_table(capsys.readouterr().out)) == SMALL_RUNGS
    run_program(*run, "--seed", 2)
    others = [
        re.sub("^head,.*\n", "", curves, flags=re.M) for curves in (everything, (tmp_path / "ladder.csv").read_text())
    ]
    assert others[0] == others[1]
    assert (tmp_path / "ladder.csv").read_text() != everything


def test_without_steps_the_loss_is_that_of_the_whole_validation_text(text, tmp_path, capsys):
    """Blocks of 8 that follow each other, and what is left over; each token is predicted once."""
    run_program("ladder", "--rung", "layer-norm", "--steps", 0, "--seed", 5, "--data", text, "--out", tmp_path)
    (_, _, loss, _) = read_table(capsys.readouterr().out)["layer-norm"]
    mg.manual_seed(5)
    characters = sorted(set(TEXT))
    model = WithLayerNorm(GPTConfig(vocab_size=len(characters), **SMALL))
    ids = np.array([characters.index(c) for c in TEXT])[int(0.9 * len(TEXT)) :]
    expected = evaluate(model, ids, n_bytes=len(ids), stride=8).loss
    assert loss == pytest.approx(expected, abs=1e-4)


def test_the_last_rung_runs_the_training_program(text, tmp_path, capsys, monkeypatch):
    """With the preset "baby", which is made small here."""
    small = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "dropout": 0.2, "batch_size": 2}
    monkeypatch.setitem(PRESETS, "baby", {**small, "max_iters": 5000, "eval_iters": 2})
    run = ["ladder", "--data", text, "--out", tmp_path]
    run_program(*run, "--rung", "bigram", "--steps", 1)
    arguments = list(sys.argv)
    assert run_program(*run, "--rung", "gpt", "--steps", 4, "--device", "cpu") == 0
    assert sys.argv == arguments
    printed = capsys.readouterr().out
    assert re.search(r"train_shakespeare.py --preset baby --device cpu .*--max-iters 4 --lr-decay-iters 4", printed)
    assert re.search(r"^model .* dropout 0.2", printed, re.M), "the training program's own words"
    table = read_table(printed)
    assert list(table) == ["bigram", "gpt"]
    best = checkpoint.load(tmp_path / "gpt" / checkpoint.BEST)
    assert table["gpt"][:2] == (best.model().num_parameters(), 4)
    assert table["gpt"][2] == pytest.approx(math.log(best.config.vocab_size), abs=0.1)
    assert table["gpt"][3] == 1.48


def test_the_last_rung_goes_on_where_it_was_stopped(text, tmp_path, capsys, monkeypatch):
    """But for other options, or on another text, it begins anew."""
    small = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "dropout": 0.2, "batch_size": 2}
    monkeypatch.setitem(PRESETS, "baby", {**small, "max_iters": 5000, "eval_iters": 2, "processes": 1})
    run = ["ladder", "--data", text, "--rung", "gpt", "--device", "cpu", "--out", tmp_path, "--steps", 4]
    step = Trainer.step

    def interrupted(trainer, learning_rate):
        if trainer.iteration == 1:
            trainer.interrupt(signal.SIGINT)
        return step(trainer, learning_rate)

    for options, begins in (([], 2), (["--seed", 5], 0)):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", interrupted)
            status = run_program(*run)
        assert status == 128 + signal.SIGINT
        printed = capsys.readouterr().out
        assert "interrupted; step 2 is saved" in printed
        assert "The same command of this program resumes it, too." in printed
        assert run_program(*run, *options) == 0
        assert f"{tmp_path / 'gpt'}, from step {begins}\n" in capsys.readouterr().out
    assert run_program(*run, "--seed", 5) == 0
    assert "from step 0\n" in capsys.readouterr().out, "one that was finished is trained again"


def test_a_folder_that_cannot_be_one_is_refused_before_the_work(text, tmp_path, monkeypatch):
    program = load_program("ladder")
    monkeypatch.setattr(program, "train", lambda *rest: pytest.fail("it trains"))
    monkeypatch.setattr(sys, "argv", ["ladder.py", "--all", "--data", str(text), "--out", str(text / "below")])
    with pytest.raises(ConfigError, match="below: cannot be made"):
        program.main()


def test_without_matplotlib_it_says_so(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_program("ladder", "--rung", "bigram", "--steps", 1, "--data", text, "--out", tmp_path) == 0
    assert "none: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "ladder.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all", "--steps", -1], "steps is -1; expected a whole number of at least 0"),
        (["--all", "--seed", -1], "seed is -1; expected a whole number of at least 0"),
        (["--all", "--device", "tpu"], 'unknown device "tpu"'),
        (["--all", "--data", "missing.txt"], "missing.txt: there is no such file"),
    ],
)
def test_mistakes_get_one_clear_line(options, message, text, tmp_path):
    default = [] if "--data" in options else ["--data", text]
    error = run_program("ladder", *options, *default, "--out", tmp_path)
    assert str(error).startswith(f"error: {message}")
    assert "\n" not in str(error)


def test_a_rung_or_all_has_to_be_named(capsys):
    for options in ([], ["--rung", "trigram"], ["--rung", "head", "--all"]):
        assert run_program("ladder", *options) == 2
        assert "--rung" in capsys.readouterr().err


def test_a_text_can_be_too_short(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("to be or not to be")
    assert "the text is too short" in run_program("ladder", "--rung", "head", "--data", path, "--out", tmp_path / "out")


def test_curves_of_another_text_are_not_mixed_in(text, tmp_path):
    out = tmp_path / "out"
    run = ["ladder", "--rung", "bigram", "--steps", 1, "--out", out, "--data"]
    run_program(*run, text)
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    assert (
        run_program(*run, other)
        == f"error: {out / 'ladder.csv'} has curves of another text; name another folder with --out"
    )
    for content in (b"rung,step\nbigram,0\n", b"\xff\xfe", b"rung,parameters,step,val_loss,data\nbigram,x,0,1,\n"):
        (out / "ladder.csv").write_bytes(content)
        assert str(run_program(*run, text)).startswith(f"error: {out / 'ladder.csv'}: not written by this program")
        assert (out / "ladder.csv").read_bytes() == content


def test_interrupted_all_keeps_what_is_finished(text, tmp_path, monkeypatch):
    program = load_program("ladder")
    train = program.train

    def interrupted(model, *rest):
        if isinstance(model, RUNGS["heads"].model):
            raise KeyboardInterrupt
        return train(model, *rest)

    monkeypatch.setattr(program, "train", interrupted)
    options = ["--all", "--steps", "1", "--data", str(text), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["examples/ladder.py", *options])
    with pytest.raises(KeyboardInterrupt):
        program.main()
    assert re.findall(r"^([a-z-]+),\d", (tmp_path / "ladder.csv").read_text(), re.M) == 2 * ["bigram"] + 2 * ["head"]


@pytest.mark.cuda
def test_on_a_gpu_the_losses_are_the_same(climbed, text, tmp_path, capsys):
    for name in SMALL_RUNGS:
        run_program("ladder", "--rung", name, "--steps", 20, "--device", "cuda", "--data", text, "--out", tmp_path)
    table = read_table(capsys.readouterr().out)
    for name, (_, _, loss, _) in read_table(climbed[1]).items():
        assert table[name][2] == pytest.approx(loss, abs=1e-3)
