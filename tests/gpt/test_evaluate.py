"""Evaluation: strided windows predict every token once, with the context they promise, and add up to the right loss."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from gpt import GPT, ConfigError, DataError, GPTConfig, lora
from gpt.evaluate import evaluate, windows
from gpt.loading import load_model, save_pretrained
from gpt.text.tokenizer import BPETokenizer
from tests.programs import run_program

BLOCK, VOCAB = 8, 11


@pytest.fixture
def model():
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=8, dropout=0.1))
    for parameter in model.parameters():
        parameter.data *= 5
    return model


def random_ids(n):
    return np.random.default_rng(n).integers(0, VOCAB, n)


def token_loss(model, context, token):
    """-ln p(token | context), from the whole softmax."""
    logits = model(context[None])[0].numpy()[0, -1].astype(np.float64)
    return -math.log(np.exp(logits[token] - logits.max()) / np.exp(logits - logits.max()).sum())


def brute_force(model, ids, stride):
    """Every token by itself. The windows end where the first does, and then every `stride` tokens, and at the end."""
    model.eval()
    total, end = 0.0, min(BLOCK, len(ids) - 1)
    for i in range(1, len(ids)):
        while i > end:
            end = min(end + stride, len(ids) - 1)
        total += token_loss(model, ids[max(0, end - BLOCK) : i], ids[i])
    return total


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 4, 7, 8])
def test_the_loss_is_that_of_every_token_by_itself(model, n, stride):
    ids = random_ids(n)
    result = evaluate(model, ids, n_bytes=3 * n, stride=stride)
    expected = brute_force(model, ids, stride)
    assert result.n_tokens == n - 1
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.loss == pytest.approx(expected / (n - 1), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected / (n - 1)), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / (3 * n), rel=1e-5)


@given(n=st.integers(2, 60), block_size=st.integers(1, 12), data=st.data())
def test_every_token_but_the_first_is_predicted_once_with_enough_context(n, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    predicted = []
    for start, end, counted in windows(n, block_size, stride):
        assert 0 <= start < end <= min(n - 1, start + block_size)
        assert start == 0 or end - start == block_size
        targets = range(end - counted + 1, end + 1)
        predicted += targets
        assert start == 0 or min(targets) - start >= block_size - stride + 1
    assert predicted == list(range(1, n))


def test_batches_and_dtypes_change_nothing(model):
    ids = random_ids(60)
    one = evaluate(model, ids, 60, stride=3, batch_size=1)
    for other in (ids.astype(np.uint16), ids.tolist()):
        assert evaluate(model, other, 60, stride=3, batch_size=5).nats == pytest.approx(one.nats, rel=1e-6)


def test_windows_advance_by_half_a_block_unless_told_otherwise(model):
    halves, whole = (evaluate(model, random_ids(30), 30, stride=stride).nats for stride in (BLOCK // 2, BLOCK))
    assert evaluate(model, random_ids(30), 30).nats == halves != whole


def test_options_of_the_architecture_count_too():
    """Logits that are bent, and no position embeddings: what `model(ids, targets)` says on a text of one window."""
    config = {"position": "rotary", "logit_softcap": 2.0, "tie_weights": False}
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=VOCAB, n_layer=1, n_head=2, n_embd=8, **config))
    for parameter in model.parameters():
        parameter.data *= 20
    ids = random_ids(9)
    assert evaluate(model, ids, 9).loss == pytest.approx(model(ids[None, :-1], ids[None, 1:])[1].item(), rel=1e-5)


def test_the_model_goes_back_to_training_and_remembers_nothing(model):
    model.train()
    evaluate(model, random_ids(20), 20)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_goes_back_to_training_after_an_error(model):
    with pytest.raises(IndexError, match="expected ids from 0 to 10"):
        evaluate(model, [1, 99, 1], 3)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0; expected 1 to the block size, 8"),
        ({"stride": 9}, "stride is 9; expected 1 to the block size, 8"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"n_bytes": 0}, "n_bytes is 0; expected at least 1"),
    ],
)
def test_options_without_meaning(model, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(model, random_ids(20), **{"n_bytes": 20, **options})


def test_a_text_of_one_token_has_no_loss(model):
    with pytest.raises(DataError, match="the text has 1 tokens; expected at least 2"):
        evaluate(model, random_ids(1), 1)


# The program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model in Hugging Face's layout with a tokenizer of bytes and a few pairs, and a text of many bytes."""
    folder = tmp_path_factory.mktemp("model")
    text = "Fünf Äpfel, drei Öfen — 五个苹果 🍎.\n" * 4
    tokenizer = BPETokenizer.train(text, vocab_size=275)
    save_pretrained(GPT(GPTConfig(block_size=16, vocab_size=275, n_layer=1, n_head=2, n_embd=8)), tokenizer, folder)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("stride", [None, 4, 16])
def test_the_program_prints_the_three_figures(folder, capsys, stride):
    options = [] if stride is None else ["--stride", stride]
    assert run_program("evaluate", "--model", folder, "--data", folder / "text.txt", *options) == 0
    shown = capsys.readouterr().out
    model, tokenizer = load_model(folder)
    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    result = evaluate(model, ids, len(text.encode("utf-8")), stride)
    assert len({len(text), len(ids), len(text.encode("utf-8"))}) == 3, "characters, tokens and bytes are not the same"
    assert f"{len(text.encode('utf-8'))} bytes, {len(ids)} tokens" in shown
    assert f"16 tokens, stride {stride or 8}" in shown
    printed = {
        name: float(value) for name, value in re.findall(r"^(loss|perplexity|bits per byte) +([\d.]+)", shown, re.M)
    }
    expected = {"loss": result.loss, "perplexity": result.perplexity, "bits per byte": result.bits_per_byte}
    assert printed == pytest.approx(expected, abs=1e-4)


def test_the_program_needs_no_standard_error(folder, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert run_program("evaluate", "--model", folder, "--data", folder / "text.txt") == 0


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("evaluate", ["--data", "text.txt"]),
        ("sample", ["--max-new-tokens", 1]),
        ("attention_maps", ["--prompt", "drei", "--out", "maps.png"]),
    ],
)
def test_programs_that_do_not_train_take_a_model_of_several_dropouts(folder, tmp_path, monkeypatch, program, options):
    if program == "attention_maps":
        pytest.importorskip("matplotlib")
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text(encoding="utf-8")) | {"attn_pdrop": 0.1, "resid_pdrop": 0.2}
    (copy / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    weights = copy / "model.safetensors"  # written again by another program, so without the digest of config.json
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), weights)
    monkeypatch.chdir(copy)
    assert run_program(program, "--model", ".", *options) == 0


def test_the_program_takes_adapters(folder, capsys, tmp_path):
    model = lora.add_adapters(load_model(folder)[0], rank=2)
    for parameter in model.parameters():
        parameter.data[...] = np.random.default_rng(0).standard_normal(parameter.shape)
    lora.save_adapters(model, tmp_path / "adapters.safetensors")
    common = ["--model", folder, "--data", folder / "text.txt"]
    assert run_program("evaluate", *common) == 0
    assert run_program("evaluate", *common, "--adapters", tmp_path / "adapters.safetensors") == 0
    without, adapted = re.findall(r"^loss +([\d.]+)", capsys.readouterr().out, re.M)
    assert without != adapted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride", 17], "stride is 17; expected 1 to the block size, 16"),
        (["--batch-size", 0], "batch_size is 0; expected at least 1"),
        (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--model", "nowhere"], "nowhere: found no checkpoint"),
        (["--adapters", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
        (["--device", "tpu"], 'unknown device "tpu"'),
    ],
)
def test_mistakes_get_one_clear_line(folder, options, message):
    ended = run_program("evaluate", "--model", folder, "--data", folder / "text.txt", *options)
    assert ended.startswith("error: ")
    assert message in ended
    assert len(ended.splitlines()) == 1
