"""What all stages share: rows of tokens, log-probabilities of answers, sampling, a scalar head, a step of training.

A dialog is a prompt and an answer, both text. In tokens it is one row: the prompt, then the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from task import ASSISTANT, END, TOKENIZER, USER

import minigrad as mg
from gpt import GPT, GPTConfig
from minigrad import functional as F
from minigrad import nn, optim

IGNORED = -100  # a target that does not count
MAX_NEW_TOKENS = 14  # of an answer; the longest of a person has 13, and then comes END

Dialog = tuple[str, str]


def asked(prompt: str) -> str:
    """A prompt in the chat's format. The assistant's answer follows, and END."""
    return f"{USER}{prompt}{ASSISTANT}"


def rows(dialogs: Sequence[Dialog]) -> tuple[np.ndarray, np.ndarray]:
    """Dialogs as tokens (B, T), filled up with END, and the targets (B, T - 1): the token after each but the last.

    Targets inside the prompt and after the answer are `IGNORED`: only the tokens of the answer count.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in dialogs)
    tokens = np.full((len(dialogs), width), TOKENIZER.encode(END)[0])
    targets = np.full((len(dialogs), width - 1), IGNORED)
    for row, target, (prompt, answer) in zip(tokens, targets, dialogs, strict=True):
        end = len(prompt) + len(answer)
        row[:end] = TOKENIZER.encode(prompt + answer)
        target[len(prompt) - 1 : end - 1] = row[len(prompt) : end]
    return tokens, targets


def log_probabilities(model: GPT, tokens: np.ndarray, targets: np.ndarray) -> mg.Tensor:
    """log pi(target | tokens before it), (B, T - 1); 0 where the target is ignored."""
    logits, _ = model(tokens[:, :-1])
    return -F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def sample(model: GPT, prompts: Sequence[str], temperature: float = 1.0, stop: str = END) -> list[str]:
    """An answer of the model to each prompt, up to and with the token `stop`, if it comes.

    The prompts may have different lengths. The keys and values of the tokens so far are kept in a cache.
    """
    ids = [TOKENIZER.encode(prompt) for prompt in prompts]
    stops = TOKENIZER.encode(stop)
    found = model.generate(ids, MAX_NEW_TOKENS, temperature=temperature, stop_tokens=stops)
    return [TOKENIZER.decode(row[len(prompt) :]) for row, prompt in zip(found, ids, strict=True)]


class ScalarGPT(nn.Module):
    """A GPT that gives a number instead of logits after each token: `scores = model(tokens)`, both (B, T)."""

    def __init__(self, config: GPTConfig) -> None:
        self.gpt = GPT(config)
        self.head = nn.Linear(config.n_embd, 1)

    def forward(self, tokens: np.ndarray) -> mg.Tensor:
        return self.head(self.gpt.hidden_states(tokens)).reshape(*tokens.shape)

    def rewards(self, dialogs: Sequence[Dialog]) -> mg.Tensor:
        """The number after the last token of each dialog, (B,). The tokens that fill the row come later: no effect."""
        tokens, _ = rows(dialogs)
        last = np.array([len(prompt) + len(answer) - 1 for prompt, answer in dialogs])
        return self(tokens)[np.arange(len(dialogs)), last]


def step(loss: mg.Tensor, optimizer: Any) -> None:
    """Move the parameters against the gradient of the loss, after clipping its norm to 1."""
    loss.backward()
    optim.clip_grad_norm(optimizer.params, 1.0)
    optimizer.step()
    optimizer.zero_grad()
