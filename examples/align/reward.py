"""A reward model, from pairs of answers of which a person preferred one (Stiennon et al., 2020; Ouyang et al., 2022).

Bradley and Terry (1952): with rewards r(x, y), the answer w to the prompt x is preferred over l with the probability

    P(w > l) = sigmoid(r(x, w) - r(x, l))        loss = -log P = softplus(r(x, l) - r(x, w))

Only differences count, so a constant can be added to r: its mean over the pairs is made 0.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from chat import ScalarGPT, asked, sample, step
from sft import batches
from task import grade

import minigrad as mg
from gpt import GPT
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import optim

PROMPTS, ANSWERS = 6000, 4  # prompts that people judged answers to; answers of each that they saw
EPOCHS, BATCH_SIZE, LEARNING_RATE = 4, 64, 1e-3


class Pair(NamedTuple):
    """Two answers to a prompt in the chat's format."""

    prompt: str
    preferred: str
    other: str


def judged_pairs(model: GPT, prompts: list[str], answers: int = ANSWERS) -> list[Pair]:
    """The best and the worst of some answers of the model to each prompt, unless all are equally good."""
    pairs = []
    for i in range(0, len(prompts), 250):
        some = [prompt for prompt in prompts[i : i + 250] for _ in range(answers)]
        found = sample(model, [asked(prompt) for prompt in some])
        for j in range(0, len(some), answers):
            ranked = sorted(found[j : j + answers], key=lambda answer: grade(some[j], answer))
            if grade(some[j], ranked[0]) < grade(some[j], ranked[-1]):
                pairs.append(Pair(asked(some[j]), ranked[-1], ranked[0]))
    return pairs


def train(model: GPT, pairs: list[Pair], rng: random.Random, epochs: int = EPOCHS) -> ScalarGPT:
    """A reward model that begins as the fine-tuned model with a new head."""
    scorer = ScalarGPT(model.config)
    scorer.gpt.load_state_dict(model.state_dict())
    scorer.head.weight.data[...] = 0
    optimizer = optim.AdamW(scorer.parameters(), LEARNING_RATE, weight_decay=0.1)
    with progress_bar(total=epochs * len(pairs), desc="reward model") as bar:
        for batch in batches(pairs, BATCH_SIZE, epochs, rng):
            step(bradley_terry(*rewards(scorer, batch)), optimizer)
            bar.update(len(batch))
    with mg.no_grad():
        scorer.head.bias.data -= np.mean([r.data for r in rewards(scorer, pairs[:500])])
    return scorer


def rewards(scorer: ScalarGPT, pairs: list[Pair]) -> tuple[mg.Tensor, mg.Tensor]:
    """The rewards of the preferred answers and of the others, (B,) each."""
    preferred = [(pair.prompt, pair.preferred) for pair in pairs]
    both = scorer.rewards(preferred + [(pair.prompt, pair.other) for pair in pairs])
    return both[: len(pairs)], both[len(pairs) :]


def bradley_terry(preferred: mg.Tensor, other: mg.Tensor) -> mg.Tensor:
    """The mean of -log sigmoid(preferred - other)."""
    return F.softplus(other - preferred).mean()


def accuracy(scorer: ScalarGPT, pairs: list[Pair]) -> float:
    """The share of the pairs whose preferred answer has the higher reward."""
    with mg.no_grad():
        preferred, other = rewards(scorer, pairs)
    return float((preferred.data > other.data).mean())
