"""How many processes share the batches of a training run."""

from __future__ import annotations

import minigrad as mg
from minigrad.distributed import can_share

from .config import TrainConfig
from .errors import ConfigError
from .model import GPT

MOST_PROCESSES = 8  # by default: each process has its own gradients, which take memory and have to be summed
LARGE = 50_000_000  # parameters; from here on, operations use threads well and gradients are too large to copy


def choose_processes(config: TrainConfig, model: GPT, ranks: int = 1) -> int:
    """The number of processes that share a batch, or a rank's part of it.

    The default (0) is, on the CPU, one process per thread of the engine, but at most MOST_PROCESSES and one per
    sequence; for a large model, whose operations use the threads well, it is 1. On a GPU, and with several ranks, it
    is 1.
    """
    device = model.wte.weight.device
    if config.processes > 1 and (device != "cpu" or not can_share()):
        where = "on this system" if device == "cpu" else f"on {device}"
        raise ConfigError(f"processes is {config.processes}; expected 1 {where}")
    if config.processes > 1 and ranks > 1:
        raise ConfigError(f"processes is {config.processes}; expected 1 with {ranks} ranks, which share the batches")
    if config.processes > config.batch_size:
        raise ConfigError(f"processes is {config.processes}; expected at most the batch_size {config.batch_size}")
    if config.processes:
        return config.processes
    if device != "cpu" or ranks > 1 or not can_share() or model.num_parameters() >= LARGE:
        return 1
    return min(mg.get_num_threads(), config.batch_size, MOST_PROCESSES)
