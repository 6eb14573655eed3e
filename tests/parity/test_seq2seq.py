"""The encoder-decoder Transformer against torch.nn.Transformer, from the same weights, in float64."""

import math

import numpy as np
import pytest

from gpt.translation.seq2seq import PAD, Seq2Seq, Seq2SeqConfig, sinusoidal_positions

from .compare import assert_close, largest, randomize, torch

pytestmark = pytest.mark.parity

SHAPE = {"source_vocab_size": 11, "target_vocab_size": 13, "n_layer": 3, "n_head": 4, "n_embd": 32, "dropout": 0.0}


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


def torch_stacks(model):
    """torch.nn.Transformer of the model's shape; post-norm, as in the paper, without norms after the last blocks."""
    config = model.config
    options = {"nhead": config.n_head, "dim_feedforward": 4 * config.n_embd, "dropout": 0.0, "activation": gelu}
    options |= {"batch_first": True, "norm_first": config.norm_first, "bias": config.bias, "dtype": torch.float64}
    stacks = torch.nn.Transformer(
        config.n_embd, num_encoder_layers=config.n_layer, num_decoder_layers=config.n_layer, **options
    )
    if not config.norm_first:
        stacks.encoder.norm = stacks.decoder.norm = None
    return stacks


def names_of_weights(config):
    """PyTorch's name of each weight in the stacks, and minigrad's names of what is in it, one below the other."""
    names = {}
    for i in range(config.n_layer):
        for side, cross in (("encoder", []), ("decoder", [("multihead_attn", "cross_attn")])):
            ours, theirs = f"{side}.{i}", f"{side}.layers.{i}"
            joint = [f"{ours}.attn.c_q", f"{ours}.attn.c_kv"] if side == "encoder" else [f"{ours}.attn.c_attn"]
            names[f"{theirs}.self_attn.in_proj_"] = joint
            names[f"{theirs}.self_attn.out_proj."] = [f"{ours}.attn.c_proj"]
            for their_cross, our_cross in cross:
                names[f"{theirs}.{their_cross}.in_proj_"] = [f"{ours}.{our_cross}.c_q", f"{ours}.{our_cross}.c_kv"]
                names[f"{theirs}.{their_cross}.out_proj."] = [f"{ours}.{our_cross}.c_proj"]
            names[f"{theirs}.linear1."] = [f"{ours}.mlp.c_fc"]
            names[f"{theirs}.linear2."] = [f"{ours}.mlp.c_proj"]
            for n in range(1, 4 if cross else 3):
                names[f"{theirs}.norm{n}."] = [f"{ours}.ln_{n}"]
    if config.norm_first:
        names["encoder.norm."], names["decoder.norm."] = ["encoder_ln_f"], ["decoder_ln_f"]
    kinds = ("weight", "bias") if config.bias else ("weight",)
    return {their + kind: [f"{our}.{kind}" for our in ours] for their, ours in names.items() for kind in kinds}


class TorchSeq2Seq:
    """Embeddings, positions and output layer around PyTorch's stacks, with a minigrad model's weights."""

    def __init__(self, model):
        self.config, self.stacks = model.config, torch_stacks(model)
        self.weights = {name: torch.tensor(p.data, requires_grad=True) for name, p in model.named_parameters()}
        names = names_of_weights(model.config)
        theirs = dict(self.stacks.named_parameters())
        assert names.keys() == theirs.keys()
        used = [name for ours in names.values() for name in ours]
        assert {name for name in self.weights if "wte" not in name and "wpe" not in name} - {"lm_head.weight"} == set(
            used
        )
        mine = {parameter: self.weights[name] for name, parameter in model.named_parameters()}  # also those shared
        self.wte = {"source": mine[model.source_wte.weight], "target": mine[model.target_wte.weight]}
        self.lm_head = mine[model.lm_head.weight]
        self.joined = {name: torch.cat([self.weights[our] for our in ours]) for name, ours in names.items()}

    def __call__(self, source, ids):
        future = torch.triu(torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool), 1)
        y = torch.func.functional_call(
            self.stacks,
            self.joined,
            (self.embed(source, "source"), self.embed(ids, "target")),
            {
                "tgt_mask": future,
                "src_key_padding_mask": source == PAD,
                "tgt_key_padding_mask": ids == PAD,
                "memory_key_padding_mask": source == PAD,
            },
        )
        return y @ self.lm_head.T

    def embed(self, ids, side):
        C, T = self.config.n_embd, ids.shape[1]
        x = self.wte[side][ids]
        if self.config.position == "learned":
            return math.sqrt(C) * (x + self.weights[f"{side}_wpe.weight"][:T])
        return math.sqrt(C) * x + torch.tensor(sinusoidal_positions(0, T, C))


VARIANTS = [
    {},
    {"norm_first": False},
    {"bias": False, "tie_weights": "none"},
    {"norm_first": False, "position": "learned", "block_size": 9, "tie_weights": "all", "source_vocab_size": 13},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # what PyTorch says of its inference in blocks
def test_logits_loss_and_all_gradients(variant, label_smoothing):
    ours = Seq2Seq(Seq2SeqConfig(**{**SHAPE, **variant})).to(dtype="float64")
    randomize(ours)
    for name, parameter in ours.named_parameters():
        if parameter.ndim == 2:
            parameter.data /= math.sqrt(parameter.shape[1])  # so that no softmax is saturated
        elif "ln" in name and name.endswith("weight"):
            parameter.data += 1
    theirs = TorchSeq2Seq(ours)
    rng = np.random.default_rng(0)
    source, ids, targets = rng.integers(3, 11, (4, 9)), rng.integers(3, 13, (4, 7)), rng.integers(3, 13, (4, 7))
    source[1, 4:] = source[2, 1:] = PAD
    ids[0, 5:] = targets[0, 5:] = ids[2, 2:] = targets[2, 2:] = PAD

    logits, loss = ours(source, ids, targets, label_smoothing)
    torch_logits = theirs(torch.tensor(source), torch.tensor(ids))
    torch_loss = torch.nn.functional.cross_entropy(
        torch_logits.flatten(0, 1),
        torch.tensor(targets).flatten(),
        ignore_index=PAD,
        label_smoothing=label_smoothing,
    )
    assert_close(logits.data, torch_logits, "logits")
    assert_close(loss.data, torch_loss, "loss")

    loss.backward()
    torch_loss.backward()
    scale = largest(*(weight.grad for weight in theirs.weights.values()))
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, theirs.weights[name].grad, f"gradient of {name}", scale=scale)
