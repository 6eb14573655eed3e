"""The layers of `minigrad.nn` against PyTorch's in float64, from the same weights."""

import numpy as np
import pytest

from minigrad import nn

from .compare import assert_same_layer, torch

pytestmark = pytest.mark.parity

X = np.random.default_rng(0).standard_normal((2, 5, 8))

LAYERS = {
    "Linear": (nn.Linear(8, 3), torch.nn.Linear(8, 3)),
    "Linear without bias": (nn.Linear(8, 3, bias=False), torch.nn.Linear(8, 3, bias=False)),
    "LayerNorm": (nn.LayerNorm(8), torch.nn.LayerNorm(8)),
    "LayerNorm without bias": (nn.LayerNorm(8, bias=False), torch.nn.LayerNorm(8, bias=False)),
    "LayerNorm with another eps": (nn.LayerNorm(8, eps=0.1), torch.nn.LayerNorm(8, eps=0.1)),
    "RMSNorm": (nn.RMSNorm(8), torch.nn.RMSNorm(8, eps=1e-5)),
    "RMSNorm with another eps": (nn.RMSNorm(8, eps=0.1), torch.nn.RMSNorm(8, eps=0.1)),
    "GELU": (nn.GELU(), torch.nn.GELU(approximate="tanh")),
    "GELU, exact": (nn.GELU("none"), torch.nn.GELU()),
    "ReLU": (nn.ReLU(), torch.nn.ReLU()),
    "Softplus": (nn.Softplus(), torch.nn.Softplus()),
    "Dropout in evaluation": (nn.Dropout(0.5).eval(), torch.nn.Dropout(0.5).eval()),
}


IMAGES = np.random.default_rng(1).standard_normal((2, 4, 7, 8))
IMAGE_LAYERS = {
    "Conv2d": (nn.Conv2d(4, 6, 3), torch.nn.Conv2d(4, 6, 3)),
    "Conv2d, all settings": (
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False),
        torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False),
    ),
    "Conv2d of the same size": (nn.Conv2d(4, 6, 3, padding="same"), torch.nn.Conv2d(4, 6, 3, padding="same")),
    "MaxPool2d": (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
    "AvgPool2d": (nn.AvgPool2d(2), torch.nn.AvgPool2d(2)),
    "Flatten": (nn.Flatten(), torch.nn.Flatten()),
}


@pytest.mark.parametrize(("ours", "theirs"), IMAGE_LAYERS.values(), ids=IMAGE_LAYERS)
def test_layer_of_images(ours, theirs):
    assert_same_layer(ours, theirs, IMAGES)


@pytest.mark.parametrize(("ours", "theirs"), LAYERS.values(), ids=LAYERS)
def test_layer(ours, theirs):
    assert_same_layer(ours, theirs, X)


def test_embedding_of_repeated_ids():
    assert_same_layer(nn.Embedding(6, 8), torch.nn.Embedding(6, 8), np.array([[0, 4, 4, 1], [4, 1, 0, 4]]))


def test_sequential():
    ours = nn.Sequential(
        nn.Linear(8, 16),
        nn.GELU(),
        nn.LayerNorm(16),
        nn.Linear(16, 16, bias=False),
        nn.ReLU(),
        nn.RMSNorm(16),
        nn.Linear(16, 3),
    )
    theirs = torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.LayerNorm(16),
        torch.nn.Linear(16, 16, bias=False),
        torch.nn.ReLU(),
        torch.nn.RMSNorm(16, eps=1e-5),
        torch.nn.Linear(16, 3),
    )
    assert_same_layer(ours, theirs, X)


def test_one_layer_twice_in_a_graph():
    ours, theirs = nn.Linear(8, 8), torch.nn.Linear(8, 8)
    assert_same_layer(nn.Sequential(ours, nn.ReLU(), ours), torch.nn.Sequential(theirs, torch.nn.ReLU(), theirs), X)
