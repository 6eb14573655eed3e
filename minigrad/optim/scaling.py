"""Loss scaling, which lets gradients fit into float16."""

from __future__ import annotations

import math


class GradScaler:
    """A factor for the loss, as large as float16 allows (Micikevicius et al., 2018).

        (loss * scaler.scale).backward()
        norm = clip_grad_norm(params, 1.0, scaler.scale)     # divides the gradients by it
        if scaler.update(float(norm)):
            optimizer.step()

    Many gradients are smaller than float16's smallest number, 6e-8, and few come near its largest, 65504. Multiplying
    the loss by a factor multiplies its gradients by the same factor. If one overflows, the step is skipped and the
    factor halved; after `patience` good steps in a row it is doubled. All factors are powers of 2, so multiplying and
    dividing by them rounds nothing.
    """

    def __init__(self, scale: float = 2.0**16, patience: int = 2000) -> None:
        self.scale, self.patience = float(scale), patience
        self.good_steps = 0  # in a row, with this scale

    def update(self, norm: float) -> bool:
        """Returns whether the norm is finite, so that the step may be taken, and adjusts the scale."""
        if not math.isfinite(norm):
            self.scale, self.good_steps = max(self.scale / 2, 1.0), 0
            return False
        self.good_steps += 1
        if self.good_steps == self.patience:
            self.scale, self.good_steps = self.scale * 2, 0
        return True

    def state_dict(self) -> dict[str, float]:
        """The state, as plain numbers."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from what `state_dict` returned."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
