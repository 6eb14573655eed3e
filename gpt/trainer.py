"""Training: nanoGPT's loop, in a run that can be stopped at any time and resumed exactly.

A run's folder holds `last.safetensors`, `best.safetensors`, `metrics.csv`, and, if matplotlib is installed, `loss.png`;
with `keep`, also the checkpoints before the last. A run needs only the checkpoints: without the rest it goes on.

Under mpirun or torchrun every rank has a trainer that does the same with its own rows of each batch; see ranks.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

import minigrad as mg
from minigrad import optim
from minigrad.distributed import DataParallel, DiLoCo, DistributedDataParallel, WorkerError, ZeroRedundancyOptimizer

from . import checkpoint, precision
from .config import TrainConfig
from .divergence import NOT_FOUND, DivergedError, describe_divergence, first_nonfinite, nonfinite_weight
from .errors import CheckpointError, ConfigError, memory_advice
from .figures import plot_losses
from .metrics import Metrics
from .model import GPT
from .processes import choose_processes
from .ranks import Ranks
from .run import (
    BEST,
    LAST,
    LOSS_CURVE,
    METRICS,
    catch_signals,
    delete_older,
    keep_last,
    print_above,
    progress_bar,
)
from .text.data import Dataset
from .text.tokenizer import Tokenizer

LOG_INTERVAL = 10  # steps between readings of the loss, which are shown and written to metrics.csv
MOST_SKIPPED = 10  # steps in a row, with --on-divergence skip
MOST_ROLLBACKS = 5  # to the same checkpoint, with --on-divergence rollback


class Trainer:
    """One training run. `train()` runs it to the end, or until it is interrupted."""

    less_memory = "--checkpoint, or a smaller --block-size"  # options that save memory and are not in TrainConfig

    def __init__(
        self,
        model: GPT,
        data: Dataset,
        tokenizer: Tokenizer,
        config: TrainConfig,
        out: Path,
        data_id: str = "",
        graph: bool = True,
    ) -> None:
        self.device = model.wte.weight.device
        self.ranks = Ranks(self.device)
        self.ranks.start({**dataclasses.asdict(model.config), **dataclasses.asdict(config), "data": data_id})
        dtype = precision.choose(config.dtype, self.device)
        processes = choose_processes(config, model, self.ranks.size)
        self.given_processes = config.processes  # saved as given: a run may be resumed on another machine
        config = dataclasses.replace(config, dtype=dtype, processes=processes)
        self.model, self.data, self.tokenizer, self.config, self.out = model, data, tokenizer, config, out
        self.data_id = data_id  # identifies the text, so that a run is not resumed on another one
        exact: dict[mg.Tensor, Any] = {p: p.data for p in model.parameters()}  # before rounding to 16 bits
        if config.dtype in ("bfloat16", "float16"):
            model.to(dtype=config.dtype)
        self.scaler = optim.GradScaler() if config.dtype == "float16" else None
        self.optimizer: Any = model.configure_optimizer(
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            optimizer=config.optimizer,
            muon_lr=config.muon_learning_rate,
        )
        self.optimizer.start_masters(exact)
        peak = config.learning_rate  # of the schedule, which is scaled for each group by the group's own peak
        self.lr_factors = [group["lr"] / peak if peak else 1.0 for group in self.optimizer.param_groups]
        self.parallel = self.share_batches(processes)
        self.outer: DiLoCo | None = None
        if config.local_steps > 1:
            if config.batch_size < self.ranks.size:
                raise ConfigError(
                    f"batch_size is {config.batch_size}; expected at least one sequence for each of the "
                    f"{self.ranks.size} ranks, with local_steps above 1"
                )
            self.outer = DiLoCo(self.optimizer, self.ranks.communicator, config.local_steps)
            self.ranks.every = 1
        self.graph: mg.cuda.Captured | None = None  # of a step; not for float16, where the CPU checks every step
        self.loss_graph: mg.cuda.Captured | None = None  # of the loss of a batch, for estimates
        if graph and self.ranks.size == 1 and mg.cuda.can_capture(self.device, model.wte.weight.dtype):
            self.loss_graph = mg.cuda.Captured(self.parallel, say=tqdm.write)
            if self.scaler is None and config.on_divergence != "skip":
                self.graph = mg.cuda.Captured(self.compute_flat, forget=self.optimizer.zero_grad, say=tqdm.write)
        # Is each step checked before its update? On a GPU the host would wait for it, so only to skip steps.
        self.checks_steps = config.on_divergence == "skip" or (self.device == "cpu" and self.scaler is None)
        self.iteration = 0  # steps done
        self.in_step = True  # have all ranks the same weights now? With --local-steps, only after every so many steps
        self.skipped = 0  # of them, because of --on-divergence skip
        self.rollbacks = 0  # each has halved the learning rate
        self.last_finite = 0  # the last step whose loss and gradient were seen to be finite
        self.random_state: dict[str, Any] | None = None  # before the step that is being computed, if one is
        self.best_val_loss = math.inf
        self.metrics = Metrics(out / METRICS if self.ranks.writes else None)
        self.saved: int | None = None  # the step of the last checkpoint, if there is one that can be read
        self.saved_time = time.monotonic()

    def share_batches(self, processes: int) -> DataParallel | DistributedDataParallel:
        """The loss of a batch, by all ranks or several processes. With --shard-optimizer, ranks share its state too."""
        model = self.model

        def loss(ids: Any, targets: Any) -> mg.Tensor:
            return model(ids, targets)[1]

        if self.ranks.size == 1:
            return DataParallel(model, loss, processes)
        parallel = DistributedDataParallel(model, loss, self.ranks.communicator)
        if self.config.shard_optimizer:
            self.optimizer = ZeroRedundancyOptimizer(self.optimizer, parallel)
        return parallel

    # The loop

    def train(self) -> bool:
        """Train until `max_iters`. True at the end, False if a signal stopped the run; either way all is saved."""
        self.ranks.agree_on(self.iteration, self.model, rows=len(self.rows))
        if self.ranks.writes:
            self.out.mkdir(parents=True, exist_ok=True)
        self.metrics.start()
        self.model.train()
        bar = progress_bar(total=self.config.max_iters, initial=self.iteration, smoothing=0.05)
        tf32 = mg.cuda.allow_tf32(self.config.dtype == "tf32")
        advice = memory_advice(
            "to use less memory: a smaller --batch-size (a larger --grad-accum keeps the steps the same), "
            + self.less_memory
        )
        self.saved_time = time.monotonic()
        with bar, catch_signals(self.interrupt), advice, tf32, self.saved_if_a_worker_fails(), self.parallel:
            self.restart_clock()
            going_on = True
            while going_on:
                try:
                    going_on = self.advance(bar)
                except DivergedError as error:
                    self.roll_back(bar, error)
        return not self.interrupted

    def advance(self, bar: tqdm) -> bool:
        """Make an estimate if one is due, and one step. False if the run is at its end, or was asked to stop and saved.

        Raises `DivergedError`.
        """
        if self.estimate_is_due():
            self.ranks.agree_on(self.iteration, self.model)
            self.evaluate(bar)
            self.restart_clock()
        if self.interrupted:
            self.save_last()
        if self.interrupted or self.iteration >= self.config.max_iters:
            return False
        learning_rate = self.learning_rate()
        self.random_state = mg.random.get_state()
        loss, norm = self.step(learning_rate)
        self.random_state = None
        bar.update()
        log_is_due = self.iteration % LOG_INTERVAL == 0 or self.iteration == 1
        save_is_due = self.in_step and self.save_is_due()
        if log_is_due or save_is_due or self.checks_steps:
            loss_now, norm_now = loss.item(), float(norm)  # each waits for the GPU
            if log_is_due and math.isfinite(loss_now):
                self.log(bar, loss_now, learning_rate, norm_now)
            self.check_step(bar, loss_now, norm_now)
        if save_is_due:
            self.save_last()
            self.restart_clock()
        return True

    def interrupt(self, number: int) -> None:
        """Ask the run to stop after its step, because of the signal with this number."""
        self.ranks.receive(number)

    @property
    def interrupted(self) -> int:
        """The number of the signal that asked the run to stop; 0 if none did."""
        return self.ranks.stopped_by

    def step(self, learning_rate: float) -> tuple[mg.Tensor, Any]:
        """One step of the optimizer. Returns the mean loss of its batches, and the gradient's norm before clipping.

        On a GPU both results stay on the device. If the step is a CUDA graph, the next step overwrites them.
        """
        for group, factor in zip(self.optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = learning_rate * factor
        self.drawn: list[tuple[Any, Any]] = []
        batches = self.draw_batches()
        if self.graph is None:
            loss, norm = self.compute_step(batches)
        else:
            loss, norm = self.graph(*itertools.chain.from_iterable(batches))
        self.iteration += 1
        self.ranks.communicator.made_progress()
        self.in_step = self.outer is None or self.outer.after_step(self.iteration)
        return loss, norm

    def compute_step(self, batches: Iterable[tuple[Any, Any]]) -> tuple[mg.Tensor, Any]:
        """The computation of a step: forward and backward for each batch, clipping, and the optimizer's update."""
        total, scale = None, 1.0 if self.scaler is None else self.scaler.scale
        for number, (ids, targets) in enumerate(batches, 1):
            if total is not None:
                optim.widen_gradients(self.optimizer.params)
            loss = self.training_loss(ids, targets) / self.config.grad_accum
            with contextlib.nullcontext() if number == self.config.grad_accum else self.parallel.no_sync():
                (loss if self.scaler is None else loss * scale).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        norm = self.optimizer.clip_grad_norm(self.config.grad_clip or math.inf, scale)
        if self.scaler is not None:  # float16 only: waits for the norm
            usable = self.scaler.update(float(norm))
        else:
            usable = not self.checks_steps or not describe_divergence(total.item(), float(norm))
        if usable:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm

    def training_loss(self, ids: Any, targets: Any) -> mg.Tensor:
        """The mean loss of a batch: with --local-steps of this rank's rows, else of all."""
        alone = self.outer is not None and self.ranks.size > 1
        return (self.parallel.local_loss if alone else self.parallel)(ids, targets)

    def compute_flat(self, *arrays: Any) -> tuple[mg.Tensor, Any]:
        """`compute_step` with the arguments ids, targets, ids, targets, …"""
        return self.compute_step(zip(arrays[::2], arrays[1::2], strict=True))

    def draw_batches(self) -> Iterator[tuple[Any, Any]]:
        """The batches of a step, each drawn when it is needed. They are kept in `drawn` until the next step."""
        for _ in range(self.config.grad_accum):
            self.drawn.append(self.batch("train", mg.random.generator()))
            yield self.drawn[-1]

    def learning_rate(self) -> float:
        """The learning rate of the next step: the schedule's, halved by each rollback."""
        c, share = self.config, 0.5**self.rollbacks
        rates = c.learning_rate * share, c.min_lr * share
        if c.schedule == "linear":
            return optim.warmup_linear(self.iteration, *rates, c.warmup_iters, c.lr_decay_iters, c.lr_hold_iters)
        return optim.warmup_cosine(self.iteration, *rates, c.warmup_iters, c.lr_decay_iters)

    def loss(self, split: str, rng: Any) -> mg.Tensor:
        """The model's loss on a random batch."""
        batch = self.batch(split, rng)
        if self.loss_graph is None:
            return self.parallel(*batch)
        return mg.Tensor(self.loss_graph(*batch).data.copy())  # the next replay overwrites the result

    def batch(self, split: str, rng: Any) -> tuple[Any, Any]:
        """Random ids and targets, (B, T), on the model's device."""
        return self.data.batch(split, self.config.batch_size, rng, self.device)

    def restart_clock(self) -> None:
        """Measure the speed from now on."""
        self.clock = time.perf_counter(), self.iteration

    def tokens_per_second(self) -> float:
        """The speed since the clock was restarted, so without the time of evaluations."""
        since, first = self.clock
        steps = self.iteration - first
        tokens = self.config.batch_size * self.config.grad_accum * self.data.block_size
        return steps * tokens / (time.perf_counter() - since)

    def log(self, bar: tqdm, loss: float, learning_rate: float, norm: float) -> None:
        """Show and record the state of the training."""
        speed = self.tokens_per_second()
        self.restart_clock()
        self.add_row({"loss": loss, "learning_rate": learning_rate, "grad_norm": norm, "tokens_per_second": speed})
        bar.set_postfix_str(
            f"loss {loss:.3f}, lr {learning_rate:.2e}, norm {norm:.2f}, {speed:,.0f} tok/s"
            f"{f', {self.skipped} skipped' if self.skipped else ''}",
            refresh=False,
        )

    # Divergence

    def check_step(self, bar: tqdm, loss: float, norm: float) -> None:
        """Raise `DivergedError` if the loss or the norm of the gradients is not finite.

        With --on-divergence skip, only count the step, whose update has been left out. In float16, `GradScaler` looks
        after the norm.
        """
        problem = describe_divergence(loss, 0.0 if self.scaler else norm)
        if not problem:
            self.last_finite = self.iteration
            return
        if self.config.on_divergence != "skip" or self.iteration - self.last_finite > MOST_SKIPPED:
            raise self.diverged(f"{problem} in step {self.iteration}", self.drawn)
        self.skipped += 1
        print_above(bar, f"step {self.iteration:>5}: {problem}; skipped ({self.skipped} so far)")

    def diverged(self, problem: str, batches: list[tuple[Any, Any]]) -> DivergedError:
        """The error that says what happened, with which learning rate, and in which layer and operation."""
        rate = self.optimizer.param_groups[0]["lr"] / (self.lr_factors[0] or 1.0)
        where = first_nonfinite(self.model, self.parallel.local_loss, batches)
        if self.outer is None:  # else a rank may have diverged alone
            where = self.ranks.first(where, NOT_FOUND)
        return DivergedError(f"{problem}, with learning rate {rate:.3g}; {where}")

    def roll_back(self, bar: tqdm, error: DivergedError) -> None:
        """With --on-divergence rollback, go back to the last checkpoint and halve the learning rate.

        Otherwise, and after `MOST_ROLLBACKS` to the same checkpoint, raise the error again, with advice.
        """
        last, saved = self.out / LAST, None
        if self.config.on_divergence == "rollback":
            with contextlib.suppress(CheckpointError):
                saved = checkpoint.load_last(self.out)
        rollbacks = self.rollbacks + 1
        if saved is None or rollbacks - saved.run.get("rollbacks", 0) > MOST_ROLLBACKS:
            before = f" ({last} is from before)" if last.exists() else ""
            raise DivergedError(f"{error}; try a lower --learning-rate{before}") from error
        self.resume(saved)
        self.rollbacks = rollbacks
        self.metrics.start()
        self.restart_clock()
        bar.n = bar.last_print_n = self.iteration
        print_above(bar, f"{error}; back to step {self.iteration}, from here with {0.5**rollbacks:.3g} of the schedule")

    # Estimates of the losses

    def evaluate(self, bar: tqdm) -> None:
        """Estimate both losses, write them to the metrics, and save the checkpoint, also as the best if it is.

        Nothing of this is done if the run is asked to stop meanwhile: the resumed run makes the estimate.
        """
        losses = self.estimate_losses()
        if losses is None:
            return
        for split, loss in losses.items():
            problem = describe_divergence(loss)
            if problem:
                batch = self.batch(split, mg.random.new_generator(self.config.seed))
                raise self.diverged(f"{problem} after step {self.iteration}", [batch])
        self.add_row({"train_loss": losses["train"], "val_loss": losses["val"]})
        best = losses["val"] < self.best_val_loss
        if best:
            self.best_val_loss = losses["val"]
            self.save(BEST)
        self.save_last()
        print_above(
            bar,
            f"step {self.iteration:>5}: train loss {losses['train']:.4f}, validation loss {losses['val']:.4f}"
            f"{' (best so far, saved)' if best else ''}",
        )

    def estimate_losses(self) -> dict[str, float] | None:
        """The mean loss over `eval_iters` batches of each split, without dropout.

        The batches are the same for every estimate, so that estimates can be compared. They are drawn from a separate
        generator, so evaluations do not change the training's random numbers. None if the run is asked to stop.
        """
        rng, means = mg.random.new_generator(self.config.seed), {}
        self.model.eval()
        with mg.no_grad():
            for split in ("train", "val"):
                losses = [self.loss(split, rng) for _ in range(self.config.eval_iters) if not self.ranks.stop()]
                if self.interrupted:
                    break
                means[split] = sum(loss.item() for loss in losses) / len(losses)  # after all are queued on a GPU
        self.model.train()
        return None if self.interrupted else means

    def estimate_is_due(self) -> bool:
        """Whether the losses are to be estimated now: every `eval_interval` steps and at the end, once."""
        if self.iteration % self.config.eval_interval and self.iteration < self.config.max_iters:
            return False
        return not any(row["iteration"] == self.iteration and "val_loss" in row for row in self.rows[-2:])

    # Saving and resuming

    def saved_options(self) -> dict[str, Any]:
        """The options of the training as they are saved in a checkpoint."""
        return {**dataclasses.asdict(self.config), "processes": self.given_processes}

    def save_is_due(self) -> bool:
        """Whether a checkpoint is to be saved now because of `save_interval` or `save_minutes`.

        Not if an estimate is due, which saves one too. Here the ranks also agree on whether to stop.
        """
        steps, seconds = self.config.save_interval, 60 * self.config.save_minutes
        by_steps = steps > 0 and self.iteration % steps == 0
        by_time = self.ranks.meet(seconds > 0 and time.monotonic() - self.saved_time >= seconds)
        return (by_steps or by_time) and not self.estimate_is_due()

    def save_last(self) -> None:
        """Write the checkpoint to resume from. With `keep`, the ones before stay beside it."""
        keep = self.config.keep if self.ranks.writes else 1
        if keep > 1 and self.saved is not None and self.saved != self.iteration:
            keep_last(self.out, self.saved)
        self.save(LAST)
        if keep > 1:
            delete_older(self.out, self.iteration, keep - 1)
        self.saved, self.saved_time = self.iteration, time.monotonic()

    def save(self, name: str) -> None:
        """Write a checkpoint. Raises `DivergedError` for weights that are not finite, and leaves the file as it was.

        All ranks take part, and rank 0 writes. Nothing in the file depends on the number of ranks.
        """
        if nonfinite_weight(self.model):
            raise self.diverged(f"the weights are not finite after step {self.iteration}", [])
        if self.outer is not None:
            self.outer.average_inner_state()
        run = {
            "train_config": self.saved_options(),
            "iteration": self.iteration,
            "best_val_loss": self.best_val_loss if math.isfinite(self.best_val_loss) else None,
            **self.metrics.to_keep(),
            "random": mg.random.get_state(),
            "data_id": self.data_id,
            "loss_scale": self.scaler and self.scaler.state_dict(),
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
        }
        path = self.out / name if self.ranks.writes else None
        with self.ranks.communicator.busy("saving"):
            checkpoint.save(path, self.model, self.optimizer, self.tokenizer, run, self.outer)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Continue exactly where a checkpoint was saved: weights, optimizer state, random numbers, metrics."""
        run = saved.run
        saved.check_same_text(self.data_id)
        try:
            self.model.load_state_dict(saved.part("model"))
            self.optimizer.load_state_dict(saved.part("optimizer"))
            if self.outer is not None:
                self.outer.load_state_dict(saved.part("outer"))
        except ValueError as error:
            raise CheckpointError(f"{saved.path}: {error}") from error
        if self.scaler is not None and run.get("loss_scale"):
            self.scaler.load_state_dict(run["loss_scale"])
        for captured in filter(None, (self.graph, self.loss_graph)):
            captured.restart()  # loading replaced the arrays
        mg.random.set_state(run["random"])
        self.iteration = run["iteration"]
        try:
            self.metrics.rows = list(saved.rows())
        except FileNotFoundError as error:
            print(f"{error.filename} is missing: the metrics up to step {self.iteration} are lost", flush=True)
        self.best_val_loss = math.inf if run["best_val_loss"] is None else run["best_val_loss"]
        self.skipped, self.rollbacks = run.get("skipped", 0), run.get("rollbacks", 0)
        self.last_finite = self.iteration
        self.saved = self.iteration if saved.path.name == LAST else None

    @contextlib.contextmanager
    def saved_if_a_worker_fails(self) -> Iterator[None]:
        """If a process that shares the batches fails, save the state after the last whole step, from which to resume.

        A step that failed has changed nothing but the random numbers: the optimizer comes after all processes.
        """
        try:
            yield
        except WorkerError as error:
            if self.random_state is not None:
                mg.random.set_state(self.random_state)
            try:
                self.save_last()
            except DivergedError:
                raise error from None
            raise WorkerError(f"{error}; step {self.iteration} is saved, resume with --resume") from error

    # Metrics

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return self.metrics.rows

    def add_row(self, values: dict[str, Any]) -> None:
        """Add a row to the metrics, and append it to metrics.csv at once."""
        self.metrics.add({"iteration": self.iteration, **values})

    def plot_losses(self) -> Path | None:
        """Draw the loss curves to loss.png. Returns its path, or None without matplotlib."""
        return plot_losses(self.rows, self.out / LOSS_CURVE)
