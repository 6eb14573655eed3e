"""nanoGPT's CPU recipe from beginning to end: minigrad's Trainer against a loop written as nanoGPT's, in PyTorch.

    python -m benchmarks.recipe                        # Tiny Shakespeare, 2,000 steps each
    python -m benchmarks.recipe --data FILE --steps 200
    python -m benchmarks.recipe --against none

Both train the preset `cpu` on the same text and split, estimate the losses every 250 steps on 20 batches of each part,
and save the best model. They take turns; a turn is the segment between two estimates. The time is what a person waits,
with batches, estimates and checkpoints. The estimates depend on the batches that were drawn, so at the end (and not
timed) the loss on the whole validation part is computed.
"""

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


class Recipe(contestants.Contestant):
    """Each contestant has a `model`, its `length`, and `no_grad` and `tensor` of its library."""

    def whole_validation_loss(self, folder: str) -> float:
        """The mean over the last tenth of the text, cut into blocks of the model's length, one after another."""
        ids = np.load(Path(folder) / IDS)
        ids, total, n = ids[int(0.9 * len(ids)) :].astype(np.int64), 0.0, self.length
        blocks = (len(ids) - 1) // n
        x, y = ids[: blocks * n].reshape(blocks, n), ids[1 : blocks * n + 1].reshape(blocks, n)
        self.model.eval()
        with self.no_grad():
            for i in range(0, blocks, 16):
                batch = self.tensor(x[i : i + 16]), self.tensor(y[i : i + 16])
                total += self.model(*batch)[1].item() * len(batch[0])
        return total / blocks


class Minigrad(Recipe):
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
        self.model, self.length, self.no_grad = GPT(GPTConfig(**shape)), shape["block_size"], mg.no_grad
        data = Dataset(tokenizer.encode(text), self.length)
        self.trainer, self.tensor = Trainer(self.model, data, tokenizer, config, Path(folder)), lambda ids: ids
        return self.model.num_parameters()

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
        return {"seconds": seconds, **{name: estimate[name] for name in ("train_loss", "val_loss")}}


class PyTorch(Recipe):
    """A training loop as nanoGPT's users know it."""

    def build(self, folder: str, shape: dict[str, Any], training: dict[str, Any]) -> int:
        import torch

        self.file, self.length, self.config = Path(folder) / "ckpt.pt", shape["block_size"], training
        ids = np.load(Path(folder) / IDS)
        self.data = dict(zip(("train", "val"), np.split(ids, [int(0.9 * len(ids))]), strict=True))
        torch.manual_seed(training["seed"])
        self.no_grad, self.tensor = torch.no_grad, torch.from_numpy
        self.model = contestants.torch_model(contestants.Model(**shape))
        self.parameters = list(self.model.parameters())
        settings = {"weight_decay": training["weight_decay"], "betas": (training["beta1"], training["beta2"])}
        self.optimizer = self.model.configure_optimizer(training["learning_rate"], **settings, fused=True)
        self.step, self.best = 0, math.inf
        return sum(parameter.numel() for parameter in self.parameters)

    def batch(self, split: str) -> tuple[Any, Any]:
        import torch

        ids, n = self.data[split], self.length
        starts = torch.randint(len(ids) - n, (self.config["batch_size"],))
        blocks = [[torch.from_numpy(ids[i + j : i + j + n].astype(np.int64)) for i in starts] for j in (0, 1)]
        return torch.stack(blocks[0]), torch.stack(blocks[1])

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
            torch.save(state, self.file)
        return {"seconds": time.perf_counter() - start, **losses}


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
            results[name]["whole_validation_loss"] = worker.call("whole_validation_loss", folder=folder)
    return results


def lines(results: dict[str, Any]) -> list[list[str]]:
    result = []
    seconds = {who: [part["seconds"] for part in figures["segments"]] for who, figures in results.items()}
    by_segment = {who: values[1:] for who, values in seconds.items()}  # the first is a lone estimate, before any step
    for name, figures in results.items():
        best, total = min(part["val_loss"] for part in figures["segments"]), sum(seconds[name])
        ratios = [short(total / sum(seconds["minigrad"])), times_and_ratios(by_segment, [name])[1]]
        losses = [f"{best:.4f}", f"{figures['whole_validation_loss']:.4f}"]
        result.append([name, f"{total:.1f}", *losses, *(["–", "–"] if name == "minigrad" else ratios)])
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
