"""Train a GPT with the user's own operations, then the same GPT with the engine's, and compare the two runs.

In both runs all other operations run as written in minigrad/ops, without kernels. So the user's operations are the only
difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from minigrad import kernels

from .. import checkpoint
from ..config import GPTConfig
from ..divergence import DivergedError
from ..errors import ConfigError
from ..run import ENGINE, LAST
from ..trainer import Trainer
from .own_ops import NOT_WRITTEN, WRONG, Comparison, OwnOperation, check, load_operations, operations_of

# Options that may change when a run is resumed
MAY_DIFFER = {"max_iters", "processes", "checkpoint", "save_interval", "save_minutes", "keep", "on_divergence"}


class OwnOperations:
    """The operations in a folder and the results of their checks. Raises `ConfigError` for those that cannot train."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.states = folder, {operation: check(operation) for operation in load_operations(folder)}
        if set(self.states.values()) == {NOT_WRITTEN}:
            raise ConfigError(f"{folder}: expected a backward pass, but none of the {len(self.states)} is written yet")

    def written(self) -> list[OwnOperation]:
        return [operation for operation, state in self.states.items() if state != NOT_WRITTEN]

    def in_state(self, state: str) -> set[str]:
        return {operation.name for operation, its_state in self.states.items() if its_state == state}

    def describe(self, config: GPTConfig) -> str:
        """Which of the model's operations are the user's, and which of these are wrong."""
        used, written = operations_of(config), {operation.name for operation in self.written()}
        lines = [f"{self.folder}: {len(used & written)} of the {len(used)} operations of this model are yours"]
        for what, names in (
            ("yours", used & written),
            ("the engine's", used - written),
            ("yours, but not used by this model", written - used),
            ("not written yet", self.in_state(NOT_WRITTEN)),
            ("wrong according to finite differences", self.in_state(WRONG)),
        ):
            if names:
                lines.append(f"  {what}: {', '.join(sorted(names))}")
        return "\n".join(lines)

    def train(self, trainer: Trainer) -> bool:
        """Train with the user's operations. True if training reached the end or diverged, False after a signal."""
        with kernels.reference(), kernels.replacing({operation.engine: operation.own for operation in self.written()}):
            try:
                return trainer.train()
            except DivergedError as error:
                print(f"diverged    {error}")
                return True

    def compare(self, trainer: Trainer, engine: Trainer) -> None:
        """Print how far the loss curve is from the engine's, and possible reasons."""
        comparison = Comparison.of(trainer.rows, engine.rows)
        print(f"\n{comparison.table()}\n{comparison.verdict()}")
        wrong = [f"{operation.name} ({operation.file})" for operation, state in self.states.items() if state == WRONG]
        if wrong:
            print(f"wrong according to finite differences: {', '.join(wrong)}")
            if comparison.separate_at is None:
                print("a slightly wrong gradient may train as well as the right one: do not rely on the curves alone")
        elif comparison.separate_at is not None:
            print(
                "your gradients agree with finite differences: either a forward differs from the engine's, "
                "or rounding errors have grown"
            )
        print(f"both curves are in {' and '.join(map(str, comparison.save(trainer.out)))}")


def train_engine(
    trainer: Trainer, new_trainer: Callable[[Path, checkpoint.Checkpoint | None], Trainer], resume: bool
) -> tuple[Trainer, bool]:
    """Train the same run with the engine's operations, in a subfolder. Returns its trainer, and whether it finished."""
    last = trainer.out / ENGINE / LAST
    begun = checkpoint.load(last) if resume and last.exists() else None
    if begun is not None:  # do not resume it if it belongs to another run
        now = {**dataclasses.asdict(trainer.model.config), **trainer.saved_options()}
        same = all(begun.options.get(name) == now[name] for name in now.keys() - MAY_DIFFER)
        begun = begun if same and begun.run["data_id"] == trainer.data_id else None
    engine = new_trainer(trainer.out / ENGINE, begun)
    print(f"\nnow the same run with only the engine's operations, in {engine.out}", flush=True)
    with kernels.reference():
        return engine, engine.train()
