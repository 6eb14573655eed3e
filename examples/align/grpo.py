"""Group relative policy optimization (Shao et al., 2024): PPO without a value network.

The policy answers each prompt G times. The mean reward of this group is what could be expected, so no network has to
learn it. All tokens of answer i have the same advantage:

    A_i = (reward_i - mean of the group) / standard deviation of the group

The penalty is a part of the loss, with an estimate of KL(pi || pi_ref) that is unbiased and never negative:

    loss = mean of -min(ratio_t A_i, clip(ratio_t, 1 - epsilon, 1 + epsilon) A_i) + beta k_t
    k_t  = pi_ref(y_t) / pi(y_t) - log(pi_ref(y_t) / pi(y_t)) - 1

The mean is first over the tokens of each answer, then over the answers.
"""

from __future__ import annotations

import copy
import random

import numpy as np
from chat import IGNORED, ScalarGPT, asked, log_probabilities, rows, sample, step
from ppo import EPOCHS, ITERATIONS, LEARNING_RATE, clipped_loss
from task import training_prompts

import minigrad as mg
from gpt import GPT
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import optim

PROMPTS, GROUP = 16, 4  # prompts in a batch; answers to each
BETA = 0.5


def train(
    reference: GPT, scorer: ScalarGPT, rng: random.Random, beta: float = BETA, iterations: int = ITERATIONS
) -> GPT:
    """A policy that begins as the fine-tuned model."""
    policy = copy.deepcopy(reference)
    optimizer = optim.AdamW(policy.parameters(), LEARNING_RATE, weight_decay=0.0)
    with progress_bar(total=iterations, desc="GRPO") as bar:
        for _ in range(iterations):
            prompts = [asked(prompt) for prompt in training_prompts(PROMPTS, rng) for _ in range(GROUP)]
            dialogs = list(zip(prompts, sample(policy, prompts), strict=True))
            tokens, targets = rows(dialogs)
            mask = targets != IGNORED
            weights = mask / mask.sum(axis=1, keepdims=True) / len(mask)  # each answer counts the same
            with mg.no_grad():
                old = log_probabilities(policy, tokens, targets).data
                ref = log_probabilities(reference, tokens, targets).data
                advantages = group_advantages(scorer.rewards(dialogs).data, GROUP)[:, None]
            for _ in range(EPOCHS):
                new = log_probabilities(policy, tokens, targets)
                penalty = F.exp(ref - new) - (ref - new) - 1
                step(((clipped_loss(new, old, advantages) + beta * penalty) * weights).sum(), optimizer)
            bar.update()
            bar.set_postfix_str(f"KL {(old - ref).sum(axis=1).mean():.2f}", refresh=False)
    return policy


def group_advantages(rewards: np.ndarray, group: int) -> np.ndarray:
    """Rewards (B,) of B / group prompts with `group` answers each, standardized within each group: (B,)."""
    groups = rewards.reshape(-1, group)
    return ((groups - groups.mean(axis=1, keepdims=True)) / (groups.std(axis=1, keepdims=True) + 1e-4)).reshape(-1)
