"""Training steps on an NVIDIA card, as train_step.py measures them: minigrad's Trainer, and PyTorch's loop.

    python -m benchmarks.cuda_steps cuda-baby,cuda-124m --profile    # where the time goes; needs PyTorch's profiler
    python -m benchmarks.cuda_steps cuda-layer --steps 2 --no-graph  # a few steps, for a tool that watches the card

The command takes minigrad's steps only, in its own process.

A step draws a batch, sends it to the card, and is then what train_step.py says. The host hands it to the card without
waiting, so a time begins and ends when a loss has been read, and includes the card's waiting for the host.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants
from benchmarks.workers import BenchmarkError

WARM_UP = 10  # steps before any is timed: compiling, choosing algorithms, capturing a graph
LEAD_IN = 3  # steps at the start of a turn, in which the card comes up to speed
LEARNING_RATE = 3e-4


def tokens_to_learn(vocab_size: int) -> np.ndarray:
    """Token ids (N,), the small ones more often: a model soon learns how often."""
    return (vocab_size * np.random.default_rng(0).random(1 << 20) ** 3).astype(np.int64)


def about_card(library: str) -> str:
    """The card, and what runs on it; an error if the library finds none."""
    if library == "torch":
        import torch

        if not torch.cuda.is_available():
            raise BenchmarkError(f"PyTorch {torch.__version__} finds no GPU (CUDA: {torch.version.cuda})")
        return f"CUDA {torch.version.cuda}"
    import minigrad as mg

    try:
        mg.Tensor(0.0, device="cuda")
    except mg.DeviceError as error:
        raise BenchmarkError(str(error)) from error
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    numbers = runtime.runtimeGetVersion(), runtime.driverGetVersion()  # 12040 is CUDA 12.4
    cuda, driver = (f"{number // 1000}.{number % 1000 // 10}" for number in numbers)
    card = runtime.getDeviceProperties(0)["name"].decode()
    return f"{card}, CuPy {cupy.__version__}, CUDA {cuda}, the driver's {driver}"


class Training:
    """`step()` gives the loss, which stays on the card."""

    def __init__(self, library: str, row: Any, mode: str, graph: bool) -> None:
        cuda = importlib.import_module("torch" if library == "torch" else "cupy").cuda
        free = lambda: (cuda.mem_get_info() if library == "torch" else cuda.Device().mem_info)[0]  # noqa: E731
        before = free()
        if library == "torch":
            self.step = torch_step(row, mode, "cuda")
        else:
            trainer = new_trainer(row, graph)
            self.step = lambda: trainer_step(trainer)
        self.first = float(self.step().item())
        self.steps(WARM_UP)
        if library == "torch":  # what compiling took does not count
            cuda.empty_cache()
            self.steps(LEAD_IN)
        self.held_mb = (before - free()) / 1e6  # what this process took from the card

    def steps(self, n: int) -> None:
        for _ in range(n):
            loss = self.step()
        loss.item()


def new_trainer(row: Any, graph: bool) -> Any:
    """The trainer of a run with this row's options, as examples/train_shakespeare.py makes it."""
    import minigrad as mg
    from gpt.config import TrainConfig
    from gpt.text.data import Dataset
    from gpt.trainer import Trainer

    config = TrainConfig(batch_size=row.batch, learning_rate=LEARNING_RATE, beta2=0.95, seed=1, dtype=row.dtype)
    mg.manual_seed(config.seed)
    model = contestants.minigrad_model(row.model)
    model.to("cuda")
    data = Dataset(tokens_to_learn(row.model.vocab_size), row.model.block_size)
    trainer = Trainer(model, data, None, config, Path(tempfile.gettempdir()), graph=graph)
    trainer.model.train()
    return trainer


def trainer_step(trainer: Any) -> Any:
    """The loss of one more step."""
    from minigrad.kernels.cuda.products import rounding_to_tf32

    with rounding_to_tf32(trainer.config.dtype == "tf32"):  # as Trainer.train does
        return trainer.step(LEARNING_RATE)[0]


def torch_step(row: Any, mode: str, device: str) -> Callable[[], Any]:
    """A training loop as nanoGPT's users know it."""
    import torch

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("highest" if row.dtype == "float32" else "high")  # "high" is TF32
    model = contestants.torch_model(row.model).to(device)
    optimizer = model.configure_optimizer(lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    forward: Any = model if mode == "eager" else torch.compile(model)
    parameters = list(model.parameters())
    ids = tokens_to_learn(row.model.vocab_size)
    windows = np.lib.stride_tricks.sliding_window_view(ids[: int(0.9 * len(ids))], row.model.block_size + 1)
    rng = np.random.default_rng(1)
    model.train()

    def send(part: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(part))
        return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor

    def loss_of() -> Any:
        blocks = windows[rng.integers(len(windows) - 1, size=row.batch)]
        with torch.autocast(device, torch.bfloat16, enabled=row.dtype == "bfloat16"):
            return forward(send(blocks[:, :-1]), send(blocks[:, 1:]))[1]

    clip = torch.nn.utils.clip_grad_norm_
    return lambda: contestants.train_step(optimizer, loss_of, lambda: clip(parameters, 1.0)).detach()


def profile(step: Callable[[], Any], steps: int) -> str:
    """The kernels that take most of the time, as PyTorch's profiler sees them."""
    import torch

    with torch.profiler.profile() as profiler:
        for _ in range(steps):
            loss = step()
        loss.item()
    return f"{steps} steps:\n{profiler.key_averages().table(sort_by='cuda_time_total', row_limit=40)}"


def main() -> None:
    from benchmarks.train_step import ALL_ROWS

    parser = argparse.ArgumentParser(description="A few training steps on a card, in this process.")
    parser.add_argument("rows", metavar="ROW,…", help="of train_step.py")
    parser.add_argument("--steps", type=int, default=WARM_UP, help=f"default: {WARM_UP}")
    parser.add_argument("--profile", action="store_true", help="after these steps, where the time of five more goes")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="no CUDA graph of a step")
    args = parser.parse_args()
    for row in [ALL_ROWS[name] for name in args.rows.split(",")]:
        trainer = new_trainer(row, args.graph)
        losses = [float(trainer_step(trainer).item()) for _ in range(args.steps)]
        print(f"{row.title}: losses {', '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
        if not np.isfinite(losses).all():
            sys.exit("error: expected finite losses")
        if args.profile:
            print(profile(lambda: trainer_step(trainer), 5))  # noqa: B023


if __name__ == "__main__":
    main()
