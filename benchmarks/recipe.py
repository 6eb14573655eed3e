"""nanoGPT's CPU recipe from beginning to end: minigrad's Trainer against a loop written as nanoGPT's, in PyTorch.

    python -m benchmarks.recipe                        # Tiny Shakespeare, 2,000 steps each
    python -m benchmarks.recipe --data FILE --steps 200
    python -m benchmarks.recipe --against none

Both train the preset `cpu` on the same text and split, estimate the losses every 250 steps on 20 batches of each part,
and save the best model. They take turns; a turn is the segment between two estimates. The time is what a person waits,
with batches, estimates and checkpoints. The estimates depend on the batches that were drawn, so at the end (and not
timed) the loss on the whole validation part is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, contestants, workers
from benchmarks.figures import short, table, times_and_ratios

TRIAL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "eval_iters": 2}
SCHEDULE = ["learning_rate", "min_lr", "warmup_iters", "lr_decay_iters"]
TEXT, IDS = "text.txt", "ids.npy"  # in the folder that the processes share


class Minigrad(contestants.Contestant):
    """The Trainer that examples/train_shakespeare.py uses."""

    def build(self, folder: str, shape: dict[str, Any], training: dict[str, Any]) -> int:
        import minigrad as mg
        from gpt import GPT, CharTokenizer, GPTConfig
        from gpt.config import TrainConfig
        from gpt.text.data import Dataset, read_text
        from gpt.trainer import Trainer

        text = read_text(Path(folder) / TEXT)
        config = TrainConfig(**training)
        mg.manual_seed(config.seed)
        tokenizer = CharTokenizer.from_text(text)
        model = GPT(GPTConfig(**shape))
        data = Dataset(tokenizer.encode(text), model.config.block_size)
        self.trainer = Trainer(model, data, tokenizer, config, Path(folder) / "minigrad")
        return model.num_parameters()

    def train(self, until: int) -> dict[str, float]:
        """Go on to this step, where the losses are estimated. Seconds, and the estimates."""
        trainer = self.trainer
        trainer.config = dataclasses.replace(trainer.config, max_iters=until)
        quiet = io.StringIO()
        start = time.perf_counter()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            trainer.train()
        seconds = time.perf_counter() - start
        estimate = next(row for row in reversed(trainer.rows) if "val_loss" in row)
        return {"seconds": seconds, "train_loss": estimate["train_loss"], "val_loss": estimate["val_loss"]}

    def whole_validation_loss(self) -> float:
        import minigrad as mg

        model = self.trainer.model
        model.eval()
        with mg.no_grad():
            return mean_loss(self.trainer.data.val, model.config.block_size, lambda *batch: model(*batch)[1].item())


class PyTorch(contestants.Contestant):
    """A training loop as nanoGPT's users know it."""

    def build(self, folder: str, shape: dict[str, Any], training: dict[str, Any]) -> int:
        import torch

        from benchmarks.torch_gpt import TorchGPT

        self.folder, self.length, self.config = Path(folder) / "torch", shape["block_size"], training
        self.folder.mkdir()
        ids = np.load(Path(folder) / IDS)
        cut = int(0.9 * len(ids))
        self.data = {"train": ids[:cut], "val": ids[cut:]}
        torch.manual_seed(training["seed"])
        self.model = TorchGPT(**shape)
        self.parameters = list(self.model.parameters())
        settings = {"weight_decay": training["weight_decay"], "betas": (training["beta1"], training["beta2"])}
        self.optimizer = self.model.configure_optimizer(training["learning_rate"], **settings, fused=True)
        self.step, self.best = 0, math.inf
        return sum(parameter.numel() for parameter in self.parameters)

    def batch(self, split: str) -> tuple[Any, Any]:
        import torch

        ids, n = self.data[split], self.length
        starts = torch.randint(len(ids) - n, (self.config["batch_size"],))
        x = torch.stack([torch.from_numpy(ids[i : i + n].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + n].astype(np.int64)) for i in starts])
        return x, y

    def estimate_losses(self) -> dict[str, float]:
        import torch

        self.model.eval()
        losses = {}
        with torch.no_grad():
            for split in ("train", "val"):
                batches = [self.batch(split) for _ in range(self.config["eval_iters"])]
                losses[f"{split}_loss"] = float(np.mean([self.model(x, y)[1].item() for x, y in batches]))
        self.model.train()
        return losses

    def train(self, until: int) -> dict[str, float]:
        """Go on to this step, where the losses are estimated. Seconds, and the estimates."""
        import torch

        from minigrad.optim import warmup_cosine

        c = self.config
        start = time.perf_counter()
        while self.step < until:
            for group in self.optimizer.param_groups:
                group["lr"] = warmup_cosine(self.step, *(c[name] for name in SCHEDULE))
            x, y = self.batch("train")
            _, loss = self.model(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, c["grad_clip"])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 10 == 0:
                loss.item()  # what a loop logs
        losses = self.estimate_losses()
        if losses["val_loss"] < self.best:
            self.best = losses["val_loss"]
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
            torch.save(state, self.folder / "ckpt.pt")
        return {"seconds": time.perf_counter() - start, **losses}

    def whole_validation_loss(self) -> float:
        import torch

        def loss(*batch: np.ndarray) -> float:
            return self.model(*map(torch.from_numpy, batch))[1].item()

        self.model.eval()
        with torch.no_grad():
            return mean_loss(self.data["val"], self.length, loss)


def mean_loss(ids: np.ndarray, length: int, loss: Any) -> float:
    """The mean of loss(ids, targets) over a text cut into blocks of this length, one after another."""
    blocks = (len(ids) - 1) // length
    x = ids[: blocks * length].astype(np.int64).reshape(blocks, length)
    y = ids[1 : blocks * length + 1].astype(np.int64).reshape(blocks, length)
    total = sum(loss(x[i : i + 16], y[i : i + 16]) * len(x[i : i + 16]) for i in range(0, blocks, 16))
    return total / blocks


# Measuring and reporting


def measure(args: Any, threads: int | None, folder: str, vocab_size: int) -> dict[str, Any]:
    """What each contestant returned for every segment, and its loss at the end."""
    from gpt.config import PRESETS, GPTConfig, TrainConfig

    options = {**PRESETS["cpu"], **(TRIAL if args.trial else {}), "vocab_size": vocab_size}
    options |= {"max_iters": args.steps, "lr_decay_iters": args.steps}
    in_shape = {field.name for field in dataclasses.fields(GPTConfig)}
    shape = {name: value for name, value in options.items() if name in in_shape}
    training = dataclasses.asdict(TrainConfig(**{name: options[name] for name in options if name not in in_shape}))
    ends = [0, *range(training["eval_interval"], args.steps, training["eval_interval"]), args.steps]

    names = command.opponents(args.against, {"torch": ["PyTorch", "PyTorch tuned"][: 1 + args.tuned]})
    results: dict[str, Any] = {}
    with workers.start("benchmarks.recipe", names) as processes:
        for name, worker in processes.items():
            about = worker.call("prepare", threads=threads)
            numbers = worker.call("build", folder=folder, shape=shape, training=training)
            results[name] = {"about": about, "parameters": numbers, "segments": []}
        for i, end in enumerate(ends):
            command.progress(f"to step {end:,}")
            for name, worker in list(processes.items())[:: 1 if i % 2 else -1]:
                results[name]["segments"].append(worker.call("train", until=end))
        for name, worker in processes.items():
            results[name]["whole_validation_loss"] = worker.call("whole_validation_loss")
    return results


def lines(results: dict[str, Any]) -> list[list[str]]:
    result = []
    seconds = {who: [part["seconds"] for part in figures["segments"]] for who, figures in results.items()}
    by_segment = {who: values[1:] for who, values in seconds.items()}  # the first is a lone estimate, before any step
    for name, figures in results.items():
        best, total = min(part["val_loss"] for part in figures["segments"]), sum(seconds[name])
        line = [name, f"{total:.1f}", f"{best:.4f}", f"{figures['whole_validation_loss']:.4f}"]
        ratios = [short(total / sum(seconds["minigrad"])), times_and_ratios(by_segment, [name])[1]]
        result.append(line + (["–", "–"] if name == "minigrad" else ratios))
    return result


def benchmark(args: Any) -> dict[str, Any]:
    args.steps = args.steps or (200 if args.quick else 2000)
    from gpt import CharTokenizer
    from gpt.text.data import load_text

    print(command.machine())
    text = load_text(args.data)
    tokenizer = CharTokenizer.from_text(text.text)
    print(f"{text.name}: {len(text.text):,} characters, {tokenizer.vocab_size} distinct; {args.steps:,} steps")
    runs = []
    for threads in args.threads:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / TEXT).write_bytes(text.text.encode())
            np.save(Path(folder) / IDS, tokenizer.encode(text.text))
            results = measure(args, threads, folder, tokenizer.vocab_size)
        print("\n" + "\n".join(dict.fromkeys(figures["about"] for figures in results.values())) + "\n")
        header = ["who", "seconds", "best estimate", "whole validation part", "× minigrad's", "by segments"]
        print(table(header, lines(results)))
        runs.append({"threads": threads, "results": results})
    print("\nThe best estimate is the lowest of 20 random batches each; the whole part is computed once, at the end.")
    return {"steps": args.steps, "data": text.name, "runs": runs}


def contestant(library: str) -> contestants.Contestant:
    return {"minigrad": Minigrad, "torch": PyTorch}[library](library)


def main() -> None:
    quick = "200 steps, unless --steps says otherwise"
    parser = command.arguments("nanoGPT's CPU recipe from beginning to end.", quick)
    parser.add_argument("--data", metavar="FILE", help="a text file (default: Tiny Shakespeare, downloaded once)")
    parser.add_argument("--steps", type=command.positive, help="default: 2000")
    parser.add_argument("--tuned", action="store_true", help="PyTorch with a tuned allocator too")
    parser.add_argument("--trial", action="store_true", help="a tiny model instead, to try the benchmark itself")
    command.run(parser, contestant, benchmark)


if __name__ == "__main__":
    main()
