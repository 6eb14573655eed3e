"""Proximal policy optimization (Schulman et al., 2017), with a penalty for leaving the fine-tuned model.

The policy pi answers a prompt: it chooses one token after the other. The reward model scores the whole answer, and each
token costs beta times its part of the KL divergence from the fine-tuned model pi_ref (Ziegler et al., 2019):

    r_t = -beta (log pi_old(y_t) - log pi_ref(y_t)) + [y_t is the last token] reward(x, y)

A second network learns the value V_t: the sum of rewards that is expected from token t on. Generalized advantage
estimation (Schulman et al., 2016) says how much better than expected a token turned out:

    delta_t = r_t + gamma V_{t+1} - V_t          A_t = delta_t + gamma lambda A_{t+1}

with V and A = 0 after the answer. Each batch of answers is used for a few steps. The ratio of the new probability of a
token to the old one is clipped, so a step has no reason to go on once it has changed by epsilon:

    ratio_t = pi(y_t) / pi_old(y_t)
    loss    = - mean of min(ratio_t A_t, clip(ratio_t, 1 - epsilon, 1 + epsilon) A_t)
"""

from __future__ import annotations

import copy
import random

import numpy as np
from chat import IGNORED, ScalarGPT, asked, log_probabilities, rows, sample, step
from task import training_prompts

import minigrad as mg
from gpt import GPT
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import optim

ITERATIONS, PROMPTS, EPOCHS = 120, 64, 3  # batches of answers; answers in each; steps for each
LEARNING_RATE, VALUE_LEARNING_RATE = 3e-4, 1e-3
BETA, GAMMA, LAMBDA, EPSILON = 1.0, 1.0, 0.95, 0.2


def train(
    reference: GPT, scorer: ScalarGPT, rng: random.Random, beta: float = BETA, iterations: int = ITERATIONS
) -> GPT:
    """A policy that begins as the fine-tuned model; the value network begins as the reward model."""
    policy, critic = copy.deepcopy(reference), copy.deepcopy(scorer)
    optimizer = optim.AdamW(policy.parameters(), LEARNING_RATE, weight_decay=0.0)
    value_optimizer = optim.AdamW(critic.parameters(), VALUE_LEARNING_RATE, weight_decay=0.0)
    with progress_bar(total=iterations, desc="PPO") as bar:
        for _ in range(iterations):
            prompts = [asked(prompt) for prompt in training_prompts(PROMPTS, rng)]
            dialogs = list(zip(prompts, sample(policy, prompts), strict=True))
            tokens, targets = rows(dialogs)
            mask = targets != IGNORED
            with mg.no_grad():
                old = log_probabilities(policy, tokens, targets).data
                kl = old - log_probabilities(reference, tokens, targets).data
                rewards = -beta * kl
                last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
                rewards[np.arange(len(dialogs)), last] += scorer.rewards(dialogs).data
                values = critic(tokens[:, :-1]).data * mask
            advantages = gae(rewards, values, mask)
            returns = advantages + values
            advantages = (advantages - advantages[mask].mean()) / (advantages[mask].std() + 1e-8)
            for _ in range(EPOCHS):
                new = log_probabilities(policy, tokens, targets)
                step(mean(clipped_loss(new, old, advantages), mask), optimizer)
                step(mean((critic(tokens[:, :-1]) - returns) ** 2, mask), value_optimizer)
            bar.update()
            bar.set_postfix_str(f"KL {kl.sum(axis=1).mean():.2f}", refresh=False)
    return policy


def gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float = GAMMA, lam: float = LAMBDA
) -> np.ndarray:
    """The advantages A_t of the tokens of the answers, (B, T), from the last to the first; 0 outside of the mask."""
    advantages = np.zeros_like(rewards)
    next_value = next_advantage = np.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = next_advantage
    return advantages


def clipped_loss(new: mg.Tensor, old: np.ndarray, advantages: np.ndarray, epsilon: float = EPSILON) -> mg.Tensor:
    """-min(ratio A, clip(ratio) A) for every token, from log-probabilities."""
    ratio = F.exp(new - old)
    return -F.minimum(ratio * advantages, F.clip(ratio, 1 - epsilon, 1 + epsilon) * advantages)


def mean(x: mg.Tensor, mask: np.ndarray) -> mg.Tensor:
    """The mean of x over the tokens in the mask."""
    return (x * mask).sum() / mask.sum()
