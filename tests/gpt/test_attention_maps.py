"""The weights that attention averages with, and the program that draws them."""

import importlib.util
import itertools
import math
import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import GPT, BPETokenizer, CharTokenizer, ConfigError, GPTConfig, lora
from gpt.loading import save_pretrained
from gpt.model import CausalSelfAttention
from tests.programs import load_program, run_program
from tests.shapes import normal

BLOCK, VOCAB = 8, 11
OPTIONS = st.fixed_dictionaries(
    {
        "n_head": st.sampled_from([1, 2, 4]),
        "bias": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.5]),
        "position": st.sampled_from(["learned", "rotary"]),
        "norm": st.sampled_from(["layer", "rms"]),
        "activation": st.sampled_from(["gelu", "relu2"]),
        "qk_norm": st.booleans(),
        "tie_weights": st.booleans(),
        "checkpoint": st.booleans(),
        "logit_softcap": st.sampled_from([0.0, 2.0]),
    }
)


def random_model(options, dtype="float64"):
    """A model whose weights are so far from 0 that its heads look at something."""
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=VOCAB, n_layer=3, n_embd=8, **options))
    model.to(dtype=dtype)
    for i, parameter in enumerate(model.parameters()):
        parameter.data[...] = normal(parameter.shape, i)
    return model


def random_ids(*shape):
    return np.random.default_rng(0).integers(0, VOCAB, shape)


class Recorder(CausalSelfAttention):
    """Attention that keeps what it read and what it gave."""

    def forward(self, x, cache=None, mask=None):
        self.read = x
        self.gave = super().forward(x, cache, mask)
        return self.gave


# The weights


@given(options=OPTIONS, batch=st.integers(1, 3), length=st.integers(1, BLOCK))
def test_the_weights_are_those_that_attention_averages_its_values_with(options, batch, length):
    model, ids = random_model(options), random_ids(batch, length)
    weights = model.attention_weights(ids)
    for block in model.h:
        block.attn.__class__ = Recorder
    model.eval()(ids)
    assert len(weights) == 3
    for block, p in zip(model.h, weights, strict=True):
        assert p.shape == (batch, options["n_head"], length, length)
        np.testing.assert_allclose(p.data.sum(axis=-1), 1, rtol=1e-12)
        assert np.all(p.data >= 0)
        assert not np.triu(p.data, k=1).any()
        _, _, v = block.attn.heads(block.attn.read)
        y = (p @ v).transpose(0, 2, 1, 3).reshape(batch, length, 8)  # (B, T, C)
        np.testing.assert_allclose(block.attn.c_proj(y).data, block.attn.gave.data, rtol=1e-9, atol=1e-12)


def test_the_weights_are_softmax_of_the_scaled_products_of_queries_and_keys():
    attention = random_model({"n_head": 2}).h[0].attn
    x = mg.Tensor(normal((1, 5, 8)))
    (p,) = attention.weights(x).data
    q, k, _ = np.split(x.data[0] @ attention.c_attn.weight.data.T + attention.c_attn.bias.data, 3, axis=1)
    for head in range(2):
        channels = slice(4 * head, 4 * head + 4)
        for t in range(5):
            scores = k[: t + 1, channels] @ q[t, channels] / math.sqrt(4)
            e = np.exp(scores - scores.max())
            np.testing.assert_allclose(p[head, t, : t + 1], e / e.sum(), rtol=1e-12)


def test_asking_for_weights_leaves_no_trace():
    """No tape, no dropout, and training goes on as if nobody had asked."""
    model, ids = random_model({"n_head": 2, "dropout": 0.5}, "float32"), random_ids(2, 6)
    mg.manual_seed(1)
    before = model(ids)[0].data
    one, two = model.attention_weights(ids), model.attention_weights(ids)
    for p, again in zip(one, two, strict=True):
        assert not p.requires_grad
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p.data, again.data)
    assert all(module.training for module in model.modules())
    mg.manual_seed(1)
    np.testing.assert_array_equal(model(ids)[0].data, before)


def test_a_context_that_is_too_long_is_refused_and_training_goes_on():
    model = random_model({"n_head": 2})
    with pytest.raises(ConfigError, match="a sequence of 9 tokens is longer than block_size 8"):
        model.attention_weights(random_ids(1, 9))
    assert model.training


@pytest.mark.cuda
def test_weights_on_the_gpu():
    model, ids = random_model({"n_head": 2}), random_ids(2, 6)
    expected = [p.numpy() for p in model.attention_weights(ids)]
    for p, w in zip(model.to("cuda").attention_weights(mg.Tensor(ids, device="cuda")), expected, strict=True):
        np.testing.assert_allclose(p.numpy(), w, rtol=1e-9, atol=1e-12)


def test_a_head_finds_what_it_was_made_to_look_for():
    """Weights by hand: queries and keys are the positions' embeddings, and so a token looks at itself."""
    model = GPT(GPTConfig(block_size=4, vocab_size=3, n_layer=1, n_head=1, n_embd=8))
    model.wte.weight.data[...] = 0
    model.wpe.weight.data[...] = np.eye(4, 8)
    model.h[0].attn.c_attn.weight.data[...] = 10 * np.concatenate([np.eye(8)] * 3)
    (p,) = model.attention_weights(random_ids(1, 4) % 3)
    np.testing.assert_allclose(p.data[0, 0], np.eye(4), atol=1e-6)


# The program

pictures = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed (the extra `plot`)"
)
TEXT = "to be, or not to be: that is the question.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of characters, as GPT-2 is stored, with its tokenizer."""
    mg.manual_seed(0)
    tokenizer = CharTokenizer.from_text(TEXT + "$\\_{}^é你")
    model = GPT(GPTConfig(block_size=64, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=3, n_embd=12))
    for name, parameter in model.named_parameters():
        if name.endswith("c_attn.weight"):
            parameter.data *= 20
    save_pretrained(model, tokenizer, folder := tmp_path_factory.mktemp("model"))
    return folder


def attention_maps(*options):
    return run_program("attention_maps", *options)


@pytest.fixture
def drawn(monkeypatch):
    """Draws tokens "␣000", "␣001", … and heads that look at all of them alike; returns matplotlib's figure."""
    figures = []
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure_class, "savefig", lambda self, *_, **__: figures.append(self))

    def draw(n_tokens, n_head, layers):
        p = np.tril(np.ones((1, n_tokens, n_tokens), np.float32)).repeat(n_head, axis=0) / n_tokens
        load_program("attention_maps").draw(
            dict.fromkeys(range(layers), p), [f"␣{i:03}" for i in range(n_tokens)], "png"
        )
        return figures[-1]

    return draw


@pictures
@pytest.mark.parametrize(("suffix", "begin"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_a_picture_of_all_heads(folder, tmp_path, capsys, suffix, begin):
    out = tmp_path / "new folder" / f"heads{suffix}"
    assert attention_maps("--checkpoint", folder, "--prompt", "to be", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 2 x 3 heads (layers x heads) over 5 tokens\n"
    assert out.read_bytes().startswith(begin)
    assert os.listdir(out.parent) == [out.name]


@pictures
def test_a_picture_names_its_heads_and_tokens(folder, tmp_path):
    """An SVG holds a comment with each text that it draws."""
    assert attention_maps("--model", folder, "--prompt", "be\n $\\{", "--out", tmp_path / "all.svg") == 0
    drawn = (tmp_path / "all.svg").read_text(encoding="utf-8")
    for layer in range(2):
        for head in range(3):
            assert drawn.count(f"<!-- layer {layer}, head {head} -->") == 1
    for label, times in {"b": 5, "e": 5, "\\n": 5, "␣": 5, "$": 5, "{": 5}.items():  # left of 2 rows, below 3 columns
        assert drawn.count(f"<!-- {label} -->") == times, label
    assert drawn.count("<image ") == 6 + 1, "the heads, and the color scale"


@pictures
def test_a_picture_of_one_layer(folder, tmp_path, capsys):
    """Three heads fill a square of two by two but for a corner; the lowest of each column has labels below."""
    options = ["--model", folder, "--prompt", "be", "--layer", 1, "--out", tmp_path / "one.svg"]
    assert attention_maps(*options) == 0
    assert "1 x 3 heads" in capsys.readouterr().out
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert [drawn.count(f"<!-- layer {layer}, head 2 -->") for layer in range(2)] == [0, 1]
    assert drawn.count("<!-- b -->") == 2 + 2


@pictures
@pytest.mark.parametrize(
    ("n_tokens", "named", "letters"), [(31, 31, 6), (40, 40, 4.7), (47, 47, 4), (48, 24, 6), (64, 32, 5.9)]
)
def test_all_tokens_are_named_that_can_be_read(drawn, n_tokens, named, letters):
    """The names get smaller where there are many; below 4 points some are left out, and the picture says so."""
    figure = drawn(n_tokens, n_head=4, layers=1)
    shown = [text for text in figure.axes[0].get_yticklabels() if text.get_text()]
    assert [text.get_text() for text in shown] == [f"␣{i:03}" for i in range(0, n_tokens, n_tokens // named)]
    assert 4 <= shown[0].get_fontsize() == pytest.approx(letters, abs=0.1)
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["this token", "attends to" + (" (one token in 2 is labeled)" if named < n_tokens else "")]


@pictures
@pytest.mark.parametrize("n_tokens", [5, 40, 47, 64])
def test_names_do_not_overlap(drawn, n_tokens):
    figure = drawn(n_tokens, n_head=4, layers=1)
    panel = figure.axes[2]  # the lower left one
    boxes = [[text.get_window_extent() for text in axis.get_ticklabels()] for axis in (panel.xaxis, panel.yaxis)]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes[0]))
    assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(boxes[1]))


@pictures
def test_pictures_are_of_gpt2s_size_at_most(drawn):
    """12 x 12 heads fit on a screen's width, and 300 tokens take no more room than 12."""
    few, many = (drawn(n_tokens, n_head=12, layers=2) for n_tokens in (12, 300))
    assert few.get_size_inches().tolist() == many.get_size_inches().tolist()
    assert 12 * 1.2 < few.get_size_inches()[0] < 20
    few, many = (len([t for t in each.axes[0].get_yticklabels() if t.get_text()]) for each in (few, many))
    assert few == 12
    assert 12 <= many <= 1.4 * 72 / 4


@pictures
def test_tokens_as_labels():
    program = load_program("attention_maps")
    tokenizer = BPETokenizer.train("the the the the théâtre", vocab_size=262)
    ids = tokenizer.encode(" thé\t\n你 $x_1$\x00")
    labels = program.token_labels(tokenizer, ids)
    expected = ["␣th", "\\xc3", "\\xa9", "\\t", "\\n", "\\xe4", "\\xbd", "\\xa0", "␣", *"$x_1$", "\\x00"]
    assert labels == expected
    assert program.visible("né ␣") == "né␣␣"
    assert program.visible("你") == "\\u4f60", "no character that the font would draw as an empty box"
    assert program.visible("a long, long word") == "a␣long,␣lon…"


@pictures
def test_characters_that_mean_something_to_matplotlib_or_to_no_font(folder, tmp_path):
    """The tests turn warnings, as for a missing glyph, into errors."""
    assert attention_maps("--model", folder, "--prompt", "$\\_{}^ é你$", "--out", tmp_path / "odd.png") == 0


@pictures
def test_adapters_change_the_picture(folder, tmp_path):
    model = lora.add_adapters(GPT.from_pretrained(folder), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data[...] = 3 * normal(parameter.shape)
    lora.save_adapters(model, tmp_path / "adapters.safetensors")
    options = ["--model", folder, "--prompt", "to be"]
    assert attention_maps(*options, "--out", tmp_path / "without.png") == 0
    assert (
        attention_maps(*options, "--adapters", tmp_path / "adapters.safetensors", "--out", tmp_path / "with.png") == 0
    )
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


@pictures
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "--prompt is empty; expected at least one character"),
        (["--prompt", "t" * 65], "--prompt has 65 tokens; expected at most the model's block_size 64"),
        (["--prompt", "TO BE"], "the character 'T' at position 0 is not in the vocabulary"),
        (["--prompt", "to be", "--layer", "2"], "--layer is 2; expected 0 to 1"),
        (["--prompt", "to be", "--layer", "-1"], "--layer is -1; expected 0 to 1"),
        (
            ["--prompt", "to be", "--out", "heads.jpg"],
            "--out is heads.jpg; expected a name that ends in .png or .svg or .pdf",
        ),
        (["--prompt", "to be", "--out", "heads"], "--out is heads; expected a name that ends in .png or .svg or .pdf"),
        (["--prompt", "to be", "--device", "tpu"], 'unknown device "tpu"'),
        (
            ["--prompt", "to be", "--model", "nowhere"],
            "nowhere: found no checkpoint",
        ),
    ],
)
def test_mistakes_get_one_clear_line(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    end = attention_maps("--model", folder, *options)
    assert end.startswith("error: ")
    assert len(end.splitlines()) == 1
    assert message in end
    assert not os.listdir(tmp_path)


@pictures
def test_places_that_cannot_be_written_to(folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "file" / "heads.png", tmp_path / "folder.png"):
        end = attention_maps("--model", folder, "--prompt", "to be", "--out", out)
        assert end.startswith(f"error: --out {out}: cannot be written (")
        assert len(end.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pictures
def test_a_failure_leaves_the_old_picture(folder, tmp_path, monkeypatch):
    out = tmp_path / "heads.png"
    out.write_bytes(b"an older picture")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        end = attention_maps("--model", folder, "--prompt", "to be", "--out", out)
    assert end == f"error: --out {out}: cannot be written (No space left on device)"
    assert out.read_bytes() == b"an older picture"
    assert os.listdir(tmp_path) == ["heads.png"]


def test_without_matplotlib_it_says_what_to_install(folder, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    end = attention_maps("--model", folder, "--prompt", "to be")
    assert end == "error: drawing needs matplotlib, which is not installed (pip install matplotlib)"


def test_a_prompt_is_wanted(folder, capsys):
    assert attention_maps("--model", folder) == 2
    assert "the following arguments are required: --prompt" in capsys.readouterr().err
