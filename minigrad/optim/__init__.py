"""Optimizers, gradient clipping and learning-rate schedules.

An optimizer changes `parameter.data` in place, using `parameter.grad`; parameters without a gradient stay as they are.
Settings can be read and changed in `optimizer.param_groups`, as in PyTorch:

    for group in optimizer.param_groups:
        group["lr"] = lr
"""

from .. import hints
from .muon import CombinedOptimizer, Muon, orthogonalize
from .optimizer import SGD, AdamW, Optimizer, clip_grad_norm, widen_gradients
from .scaling import GradScaler
from .schedules import warmup_cosine, warmup_inverse_square_root, warmup_linear

__all__ = [
    "SGD",
    "AdamW",
    "CombinedOptimizer",
    "GradScaler",
    "Muon",
    "Optimizer",
    "clip_grad_norm",
    "orthogonalize",
    "warmup_cosine",
    "warmup_inverse_square_root",
    "warmup_linear",
    "widen_gradients",
]

globals()["__getattr__"] = hints.of_module(__name__, hints.OPTIM)
