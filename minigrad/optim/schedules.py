"""The learning rate of each step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """The learning rate at `step`, counted from 0, as nanoGPT defines it.

    It rises in a line for `warmup_iters` steps, then falls along half a cosine from `learning_rate` to `min_lr`, which
    it reaches at `lr_decay_iters` and keeps.
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if step > lr_decay_iters or lr_decay_iters <= warmup_iters:
        return min_lr
    progress = (step - warmup_iters) / (lr_decay_iters - warmup_iters)  # 0 to 1
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


def warmup_linear(
    step: int, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int, lr_hold_iters: int = 0
) -> float:
    """The learning rate at `step`, counted from 0: `warmup_cosine` with straight lines, a trapezoid.

    It rises for `warmup_iters` steps, stays at `learning_rate` for `lr_hold_iters` and falls to `min_lr`, which it
    reaches at `lr_decay_iters` and keeps.
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    start = warmup_iters + lr_hold_iters
    if step >= lr_decay_iters:
        return min_lr
    progress = (step - start) / (lr_decay_iters - start) if step > start else 0.0  # 0 to 1
    return learning_rate + progress * (min_lr - learning_rate)


def warmup_inverse_square_root(step: int, n_embd: int, warmup_iters: int) -> float:
    """The learning rate at `step`, counted from 0, of "Attention Is All You Need" (Vaswani et al., 2017).

        n_embd^-0.5 min(t^-0.5, t warmup_iters^-1.5)        with t = step + 1

    It rises in a line for `warmup_iters` steps, to its highest value 1 / sqrt(n_embd warmup_iters), then falls with the
    square root of the step. Wider models get lower rates.
    """
    if n_embd < 1 or warmup_iters < 1:
        raise ValueError(f"warmup_inverse_square_root: expected values of at least 1, got {n_embd} and {warmup_iters}")
    t = step + 1
    return n_embd**-0.5 * min(t**-0.5, t * warmup_iters**-1.5)
