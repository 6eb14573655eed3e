"""GPT-2 against Hugging Face's transformers: the same weights give the same logits, loss and gradients, both ways."""

import numpy as np
import pytest

from gpt import GPT, GPTConfig

from .compare import largest, torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

pytestmark = pytest.mark.parity

SMALL = {"vocab_size": 61, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}
GPT2 = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


@pytest.fixture(autouse=True)
def _quietly(monkeypatch):
    """No progress bars, and no look at the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def random_gpt2(shape, spread=0.1):
    """transformers' model as it is initialized, plus noise: no bias is 0 and no layer norm 1."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return model.eval()


def random_ids(shape, length, seed=0):
    return np.random.default_rng(seed).integers(0, shape["vocab_size"], (2, length))


def assert_same_model(ours, theirs, shape, length):
    """Logits within 1e-4; the loss and all gradients as closely as float32 allows."""
    ids, targets = random_ids(shape, length), random_ids(shape, length, seed=1)
    targets[0, :3] = -100
    logits, loss = ours(ids, targets)
    their_logits = theirs(torch.tensor(ids)).logits
    assert largest(their_logits.detach().numpy()) > 1, "logits near 0 would be close to anything"
    np.testing.assert_allclose(logits.numpy(), their_logits.detach().numpy(), rtol=0, atol=1e-4)

    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), torch.tensor(targets).flatten())
    np.testing.assert_allclose(loss.item(), their_loss.item(), rtol=1e-5)

    loss.backward()
    their_loss.backward()
    parameters = dict(ours.named_parameters())
    for name, their_parameter in theirs.transformer.named_parameters():
        if name.endswith("bias") and not ours.config.bias:
            continue
        expected = their_parameter.grad.numpy()
        expected = expected.T if name.startswith("h.") else expected  # a linear layer's weight is (in, out) there
        gradient = parameters.pop(name).grad
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * largest(expected), err_msg=name)
    assert not parameters


@pytest.mark.parametrize("max_shard_size", ["1GB", "40KB"])
@pytest.mark.parametrize("length", [24, 7, 1], ids="{} tokens".format)
def test_reading_what_transformers_writes(tmp_path, max_shard_size, length):
    theirs = random_gpt2(SMALL)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    assert_same_model(GPT.from_pretrained(tmp_path), theirs, SMALL, length)


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_transformers_reads_what_we_write(tmp_path, bias):
    ours = GPT(GPTConfig(block_size=24, vocab_size=61, n_layer=3, n_head=4, n_embd=48, bias=bias))
    rng = np.random.default_rng(0)
    for parameter in ours.parameters():
        parameter.data[...] += 0.1 * rng.standard_normal(parameter.shape)
    ours.save_pretrained(tmp_path)
    theirs, found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found  # nothing missing, unexpected or of another shape
    assert theirs.dtype == torch.float32
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert_same_model(ours, theirs.eval(), SMALL, 24)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_pytorch_reads_it(tmp_path, dtype):
    theirs = random_gpt2(SMALL).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    assert_same_model(GPT.from_pretrained(tmp_path), theirs.float(), SMALL, 24)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_transformers_reads_other_dtypes_that_we_write(tmp_path, dtype):
    ours = GPT(GPTConfig(block_size=24, vocab_size=61, n_layer=3, n_head=4, n_embd=48)).to(dtype=dtype)
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, torch_dtype="auto")
    assert theirs.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(theirs.transformer.h[1].mlp.c_fc.weight.detach().numpy().T, ours.h[1].mlp.c_fc.weight)


@pytest.mark.slow
def test_the_shape_of_gpt2(tmp_path):
    """124M random parameters, there and back."""
    theirs = random_gpt2(GPT2, spread=0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    assert ours.num_parameters() == 124_439_808
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), back.parameters(), strict=True))
    assert_same_model(ours, theirs, GPT2, 64)
