"""Modules that several test files use."""

from minigrad import nn


class Tied(nn.Module):
    """Two names for one parameter, as in a language model's embedding and head."""

    def __init__(self):
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))
