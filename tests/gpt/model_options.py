"""What came after GPT-2, as options of the model: each alone, and all together."""

import numpy as np
import pytest

from gpt import GPT, GPTConfig
from tests.shapes import normal

EACH = {
    "rotary": {"position": "rotary"},
    "rms": {"norm": "rms"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"qk_norm": True},
    "zero init": {"zero_init_residual": True},
    "untied": {"tie_weights": False},
    "softcap": {"logit_softcap": 2.0},
}
ALL = {name: value for option in EACH.values() for name, value in option.items()}
every_option = pytest.mark.parametrize("options", [{}, *EACH.values(), ALL], ids=["GPT-2", *EACH, "all"])

BLOCK, VOCAB = 8, 11
SHAPE = {"block_size": BLOCK, "vocab_size": VOCAB, "n_layer": 2, "n_head": 2, "n_embd": 8}


def new_model(options=None, **shape):
    """A small GPT; without options it is GPT-2's."""
    return GPT(GPTConfig(**{**SHAPE, **shape, **(options or {})}))


def random_model(options, scale=0.3, **shape):
    """A model whose every part matters: weights far from 0, so that a wrong one would show."""
    model = new_model(options, **shape)
    for i, parameter in enumerate(model.parameters()):
        parameter.data[...] = scale * normal(parameter.shape, i)
    return model


def random_ids(*shape, vocab_size=VOCAB, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, shape)
