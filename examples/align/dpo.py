"""Direct preference optimization (Rafailov et al., 2023): from the pairs to the policy, without a reward model.

The policy with the largest mean of reward - beta KL(pi || pi_ref) is known in closed form. Solve it for the reward, and
put that into Bradley and Terry's loss. Z(x) cancels:

    pi(y | x)    = pi_ref(y | x) exp(reward(x, y) / beta) / Z(x)
    reward(x, y) = beta log(pi(y | x) / pi_ref(y | x)) + beta log Z(x)
    loss = - log sigmoid(beta log(pi(w | x) / pi_ref(w | x)) - beta log(pi(l | x) / pi_ref(l | x)))

for the preferred answer w and the other l. log pi(y | x) is the sum over the tokens of y. Nothing is sampled.
"""

from __future__ import annotations

import copy
import random

import numpy as np
from chat import log_probabilities, rows, step
from reward import Pair, bradley_terry
from sft import batches

import minigrad as mg
from gpt import GPT
from gpt.run import progress_bar
from minigrad import optim

EPOCHS, BATCH_SIZE, LEARNING_RATE, BETA = 3, 64, 3e-4, 0.5


def train(reference: GPT, pairs: list[Pair], rng: random.Random, beta: float = BETA, epochs: int = EPOCHS) -> GPT:
    """A policy that begins as the fine-tuned model, of whose answers the pairs are."""
    policy = copy.deepcopy(reference)
    optimizer = optim.AdamW(policy.parameters(), LEARNING_RATE, weight_decay=0.0)
    with progress_bar(total=epochs * len(pairs), desc="DPO") as bar:
        for batch in batches(pairs, BATCH_SIZE, epochs, rng):
            preferred = [(pair.prompt, pair.preferred) for pair in batch]
            tokens, targets = rows(preferred + [(pair.prompt, pair.other) for pair in batch])
            with mg.no_grad():
                ref = log_probabilities(reference, tokens, targets).sum(axis=1).data
            step(dpo_loss(log_probabilities(policy, tokens, targets).sum(axis=1), ref, beta), optimizer)
            bar.update(len(batch))
    return policy


def dpo_loss(new: mg.Tensor, reference: np.ndarray, beta: float = BETA) -> mg.Tensor:
    """The loss, from log pi and log pi_ref of B preferred answers and then of the B others, (2B,) each."""
    implied = beta * (new - reference)
    half = len(reference) // 2
    return bradley_terry(implied[:half], implied[half:])
