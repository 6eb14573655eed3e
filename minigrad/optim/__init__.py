"""Optimizers, gradient clipping and learning-rate schedules.

An optimizer changes `parameter.data` in place, using `parameter.grad`; parameters without a gradient stay as they are.
Settings can be read and changed in `optimizer.groups`, for example `for group in optimizer.groups: group["lr"] = lr`.
"""

from .muon import CombinedOptimizer, Muon, orthogonalise
from .optimizer import SGD, AdamW, Optimizer, clip_grad_norm, widen_gradients
from .scaling import LossScaler
from .schedules import warmup_cosine, warmup_inverse_square_root, warmup_linear

__all__ = [
    "SGD",
    "AdamW",
    "CombinedOptimizer",
    "LossScaler",
    "Muon",
    "Optimizer",
    "clip_grad_norm",
    "orthogonalise",
    "warmup_cosine",
    "warmup_inverse_square_root",
    "warmup_linear",
    "widen_gradients",
]
