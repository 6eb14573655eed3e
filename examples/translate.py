"""Train an encoder-decoder Transformer for character-level translation.

    python examples/translate.py                                    # dates in many formats to ISO 8601
    python examples/translate.py --task numbers                     # numbers in words to digits
    python examples/translate.py --data pairs.tsv                   # your own: a source, a tab and a target per line
    python examples/translate.py --resume                           # continue the run in --out where it stopped
    python examples/translate.py --checkpoint out-translate --translate "Tuesday, 3 May 2011" "the 2nd of June 1999"
    mpirun -n 4 python examples/translate.py                        # on four processes, of one machine or more

As in "Attention Is All You Need" (Vaswani et al., 2017), Adam's learning rate rises linearly and then falls with the
inverse square root of the step, and the model that is evaluated and saved has the mean of the weights of the last
steps. At the end, --out holds the model that translated the most validation pairs exactly, the curves, and a picture of
its cross-attention. Ctrl-C finishes the step and saves. --resume continues from there, with the same steps as an
uninterrupted run. The best model up to the last estimate can be used meanwhile. A larger --steps trains for longer.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minigrad as mg
from gpt.checkpoint import part
from gpt.config import check_tensors
from gpt.divergence import DivergedError, describe_divergence, nonfinite_weight
from gpt.errors import CheckpointError, ConfigError, printable, run_program
from gpt.figures import attempt, new_figure, save_figure
from gpt.options import (
    Parser,
    add_device_option,
    add_options,
    add_run_options,
    check_choices,
    check_count,
    check_whole,
    describe,
    fields_of,
    folder,
    given,
    option,
    pick,
    restore,
)
from gpt.ranks import Ranks, connect
from gpt.run import (
    CROSS_ATTENTION,
    LAST,
    LOSS_CURVE,
    TRANSLATOR,
    catch_signals,
    check_unchanged,
    exit_interrupted,
    keep_previous_run,
    lasting_screen,
    print_above,
    progress_bar,
    run_folder,
)
from gpt.translation.beam import check_length_penalty
from gpt.translation.pairs import Pair, date_pairs, load_pairs, number_pairs, split_pairs
from gpt.translation.seq2seq import PAD, Seq2SeqConfig
from gpt.translation.translator import Batch, Translator, as_batch, batches
from minigrad import optim
from minigrad.distributed import DistributedDataParallel
from minigrad.serialization import load_with_metadata

TASKS = {"dates": date_pairs, "numbers": number_pairs}
ALIASES = {"steps": "--max-iters", "warmup": "--warmup-iters"}  # their names in examples/train_shakespeare.py
LOG_INTERVAL = 10  # steps between readings of the loss
ADVICE = "try a longer --warmup, which lowers the learning rate"
ABOUT = "minigrad.translate"  # the key of the metadata in a run's file
# These may change with --resume, because they do not change any step. The file of pairs may have moved.
CHANGEABLE = ("steps", "eval_interval", "beam_size", "length_penalty", "data")


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained and evaluated. Raises `ConfigError` for bad values."""

    task: str = option("dates", "the kind of pairs to generate, without --data", tuple(TASKS))
    pairs: int = option(40_000, "how many pairs to generate")
    val_share: float = option(0.05, "share of the pairs for validation")
    steps: int = option(2000, "training steps")
    batch_size: int = option(64, "pairs in a batch")
    warmup: int = option(300, "steps over which the learning rate rises, to 1 / sqrt(n_embd * warmup)")
    average: int = option(100, "evaluate and save the mean of the weights over about this many steps; 1 for no mean")
    label_smoothing: float = option(0.0, "share of each target's probability that is spread over all characters")
    grad_clip: float = option(1.0, "the largest global norm of the gradient; 0 for no limit")
    eval_interval: int = option(250, "steps between estimates of validation loss and exact match")
    eval_pairs: int = option(500, "validation pairs in each estimate; the final evaluation uses all of them")
    beam_size: int = option(4, "hypotheses of the beam search, in the final evaluation and with --translate")
    length_penalty: float = option(0.6, "how much beam search favors long translations; 0 for no effect")
    seed: int = option(1, "random seed")

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch_size", "warmup", "average", "eval_interval", "eval_pairs", "beam_size")
        check_whole(self, {**dict.fromkeys(at_least_one, 1), "pairs": 2, "seed": 0})
        check_choices(self)
        for name in ("val_share", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        if not self.grad_clip >= 0:
            raise ConfigError(f"grad_clip is {self.grad_clip}; expected a number of at least 0")
        check_length_penalty(self.length_penalty)


TRAIN_OPTIONS = fields_of(TrainingConfig)
MODEL_OPTIONS = fields_of(Seq2SeqConfig, without=("source_vocab_size", "target_vocab_size"))
MODEL_DEFAULTS = {"n_layer": 2, "n_head": 4, "n_embd": 64, "dropout": 0.0}  # smaller than the paper's model


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Train an encoder-decoder Transformer to translate characters.")
    add_device_option(parser)
    parser.add_argument("--data", metavar="FILE", help="pairs: a source, a tab and a target on each line, in UTF-8")
    add_run_options(parser, out="out-translate")
    parser.add_argument("--translate", metavar="TEXT", nargs="+", help="translate these texts with a trained model")
    parser.add_argument("--checkpoint", metavar="DIR", type=folder, help="folder of the trained model (default: --out)")
    add_options(parser.add_argument_group("model"), MODEL_OPTIONS, {"default": MODEL_DEFAULTS})
    add_options(parser.add_argument_group("training"), TRAIN_OPTIONS, aliases=ALIASES)
    return parser.parse_args()


def resumed(options: dict[str, Any], out: Path) -> dict[str, Any]:
    """The options of the run in a folder, updated with the given ones. Raises `ConfigError` if one may not change."""
    before = read_run(out)[0]["options"]
    check_unchanged(before, options, [name for name in before if name not in CHANGEABLE])
    return {**before, **options}


def main() -> None:
    args = parse_arguments()
    args.device = connect(args.device)
    options = resumed(given(args), args.out) if args.resume else {**MODEL_DEFAULTS, **given(args)}
    config = TrainingConfig(**pick(options, TRAIN_OPTIONS))
    if args.translate:
        translator = Translator.load(args.checkpoint or args.out, args.device)
        found = translator.translate(args.translate, config.beam_size, config.length_penalty)
        print(*map(printable, found), sep="\n")
        return
    if args.checkpoint:
        raise ConfigError("--checkpoint: expected --translate too; training writes to --out")

    mg.manual_seed(config.seed)
    data = options.get("data")
    pairs = load_pairs(data) if data else TASKS[config.task](config.pairs, config.seed)
    train, val = split_pairs(pairs, config.val_share, config.seed)
    translator = Translator.for_pairs(pairs, **pick(options, MODEL_OPTIONS))
    translator.settings = dataclasses.asdict(config) | {"data": data}
    model = translator.model.to(args.device)
    with run_folder(args.out), lasting_screen():
        if not args.resume:
            keep_previous_run(args.out)
        print(f"device      {args.device}")
        what = f"{data or config.task}: {len(train):,} pairs for training, {len(val):,} for validation"
        print(f"data        {what}; for example")
        print(f"            {quote(train[0][0])} -> {quote(train[0][1])}")
        print(f"model       {model.num_parameters():,} parameters: {describe(model.config, MODEL_OPTIONS)}")
        print(f"training    {describe(config, TRAIN_OPTIONS)}")
        training = Training(translator, train, val, config, args.out, data)
        if args.resume:
            training.resume()
        print(f"run         {args.out}, from step {training.done}", flush=True)
        finished = training.run()
        if not training.ranks.writes:
            return
        if not finished:
            exit_interrupted(training.done, training.interrupted)
        best = Translator.load(args.out, args.device)
        finish(best, val, config, args.out)
        print(f"curves      {attempt(training.plot)}")
        print(f"attention   {attempt(lambda: plot_cross_attention(best, val[0], args.out))}")
        again = ["python", "examples/translate.py", "--checkpoint", str(args.out), "--translate", val[0][0]]
        print(f"\nto translate: {shlex.join(again)}")


class Training:
    """The training loop: random batches, Adam, and regular estimates, after which the best model so far is saved.

    At the schedule's high learning rates, the weights keep moving around the optimum. Their mean is closer to it
    (Polyak and Juditsky, 1992), so `averaged`, a model with a running mean of the weights, is evaluated and saved.
    """

    def __init__(
        self,
        translator: Translator,
        train: list[Pair],
        val: list[Pair],
        config: TrainingConfig,
        out: Path,
        data: str | None = None,
    ) -> None:
        self.model, self.config, self.out, self.data = translator.model, config, out, data
        self.ranks = Ranks(self.model.lm_head.weight.device)
        self.data_id = hashlib.sha256(repr((train, val)).encode()).hexdigest()
        self.ranks.start({**dataclasses.asdict(self.model.config), **dataclasses.asdict(config), "data": self.data_id})
        self.parallel = DistributedDataParallel(self.model, self.loss, self.ranks.communicator, count_tokens)
        self.averaged = copy.deepcopy(translator)
        self.pairs, self.val = translator.encode(train), val[: config.eval_pairs]
        self.optimizer = optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0
        )  # the paper's Adam
        self.losses: list[tuple[int, float]] = []  # step, loss of the training batch
        self.estimates: list[tuple[int, float, float]] = []  # step, validation loss, exact match
        self.best = (-1.0, 0.0)  # exact match, negative validation loss
        self.done = 0  # steps, including those of the run that is resumed

    def run(self) -> bool:
        """Train until the last step. True at the end, False if a signal stopped the run; either way all is saved."""
        self.ranks.agree_on(self.done, self.model)
        self.model.train()
        started = time.perf_counter()
        batches = itertools.islice(self.batches(), self.done, self.config.steps)
        bar = progress_bar(total=self.config.steps, initial=self.done)
        checks_steps = self.model.lm_head.weight.device == "cpu"  # on a GPU, the host would wait for each step
        with bar, catch_signals(self.ranks.receive), self.parallel:
            for step, batch in enumerate(batches, self.done):
                loss, norm = self.step(step, batch)
                self.average(rate=1 / min(step + 1, self.config.average))
                self.done = step + 1
                bar.update()
                if checks_steps or step % LOG_INTERVAL == 0:
                    self.refuse(describe_divergence(loss.item(), float(norm)))
                if step % LOG_INTERVAL == 0:
                    self.log(bar, step, loss.item())
                if self.done % self.config.eval_interval == 0 or self.done == self.config.steps:
                    self.evaluate(bar)
                self.ranks.meet()
                if self.interrupted:
                    self.save()
                    return False
        print(f"trained     in {time.perf_counter() - started:.0f} s, including the estimates")
        return True

    @property
    def interrupted(self) -> int:
        """The number of the signal that asked the run to stop; 0 if none did."""
        return self.ranks.stopped_by

    def loss(self, *batch: Any) -> mg.Tensor:
        """The mean loss over the tokens of a batch."""
        _, loss = self.model(*batch, label_smoothing=self.config.label_smoothing)
        assert loss is not None
        return loss

    def batches(self) -> Iterator[Batch]:
        """An endless sequence of batches, epoch after epoch."""
        rng = np.random.default_rng(self.config.seed)
        while True:
            yield from batches(self.pairs, self.config.batch_size, rng)

    def step(self, step: int, batch: Batch) -> tuple[mg.Tensor, Any]:
        """One step of the optimizer. Returns the loss, and the norm of the gradients before clipping."""
        loss = self.parallel(*batch)
        loss.backward()
        norm = optim.clip_grad_norm(self.optimizer.params, self.config.grad_clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.warmup_inverse_square_root(step, self.model.config.n_embd, self.config.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm

    def average(self, rate: float) -> None:
        """Update the running mean: mean += (weight - mean) * rate."""
        for mean, parameter in zip(self.averaged.model.parameters(), self.model.parameters(), strict=True):
            mean.data += (parameter.data - mean.data) * rate

    def refuse(self, problem: str) -> None:
        """Raise `DivergedError` if there is a problem."""
        if problem:
            raise DivergedError(f"{problem} after step {self.done}; {ADVICE}")

    def log(self, bar: tqdm, step: int, loss: float) -> None:
        self.losses.append((step, loss))
        bar.set_postfix_str(f"loss {loss:.3f}, lr {self.optimizer.param_groups[0]['lr']:.2e}", refresh=False)

    def evaluate(self, bar: tqdm) -> None:
        """Estimate validation loss and exact match (greedy). Save the run, and the model if it is the best so far."""
        self.ranks.agree_on(self.done, self.model)
        loss, matched = self.averaged.loss(self.val), exact_match(self.averaged, self.val)
        self.refuse(describe_divergence(loss))
        self.refuse_weights()
        best = (matched, -loss) > self.best
        if best:
            self.best = (matched, -loss)
            if self.ranks.writes:
                self.averaged.save(self.out / TRANSLATOR)
        self.estimates.append((self.done, loss, matched))
        self.save()
        print_above(
            bar,
            f"step {self.done:>5}: validation loss {loss:.4f}, exact match {matched:.2%}"
            f"{' (best so far, saved)' if best else ''}",
        )

    def refuse_weights(self) -> None:
        """Raise `DivergedError` if a weight is not finite, before a good file is replaced."""
        name = nonfinite_weight(self.model) or nonfinite_weight(self.averaged.model)
        self.refuse(name and f"the weights {name} have a NaN or an infinity")

    def parts(self) -> dict[str, Any]:
        """The objects whose arrays are saved, by name."""
        return {"model": self.model, "averaged": self.averaged.model, "optimizer": self.optimizer}

    def save(self) -> None:
        """Write everything that --resume needs to one file, by rank 0. The batches follow from the seed."""
        self.refuse_weights()
        if not self.ranks.writes:
            return
        run = {"done": self.done, "losses": self.losses, "estimates": self.estimates, "best": self.best}
        run["data_id"] = self.data_id
        options = pick(dataclasses.asdict(self.model.config), MODEL_OPTIONS)
        options |= dataclasses.asdict(self.config) | {"data": self.data}
        about = {"options": options, "run": run, "random": mg.random.get_state()}
        tensors = {f"{name}.{key}": x for name, of in self.parts().items() for key, x in of.state_dict().items()}
        mg.save(tensors, self.out / LAST, {ABOUT: json.dumps(about)})

    def resume(self) -> None:
        """Restore the state that `save` wrote."""
        about, tensors = read_run(self.out)
        run = about["run"]
        if run["data_id"] != self.data_id:
            raise ConfigError(f"{self.out / LAST} was trained on other pairs; resume with the same --data")
        for name, of in self.parts().items():
            of.load_state_dict(part(tensors, name))
        self.done, self.best = run["done"], tuple(run["best"])
        self.losses, self.estimates = ([tuple(row) for row in run[name]] for name in ("losses", "estimates"))
        mg.random.set_state(about["random"])

    def plot(self) -> Path | None:
        """Draw the losses and the exact match to loss.png. Returns the path, or None without matplotlib."""
        figure = new_figure()
        if figure is None:
            return None
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per character)", yscale="log")
        smoothed = f", label smoothing {self.config.label_smoothing}" if self.config.label_smoothing else ""
        axes.plot(*zip(*self.losses, strict=True), label=f"training batch{smoothed}", alpha=0.4, linewidth=1)
        steps, losses, matched = zip(*self.estimates, strict=True)
        axes.plot(steps, losses, label="validation", marker="o", markersize=3)
        right = axes.twinx()
        right.set(ylabel="exact match", ylim=(0, 1.02))
        right.plot(steps, matched, label="exact match (right)", color="tab:green", marker="o", markersize=3)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3)
        return save_figure(figure, self.out / LOSS_CURVE)


def count_tokens(source: Any, ids: Any, targets: Any) -> int:
    """The number of targets, over which the loss of a batch is the mean."""
    return int((targets != PAD).sum())


def read_run(out: Path) -> tuple[dict[str, Any], dict[str, mg.Tensor]]:
    """Read what `Training.save` wrote: the metadata, and the tensors."""
    try:
        tensors, metadata = load_with_metadata(out / LAST)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    try:
        about = json.loads(metadata[ABOUT])
        options, run = about["options"], about["run"]
        if not isinstance(options, dict):
            raise TypeError(f"options is {options!r:.100}; expected a dict")
        model = pick(options, MODEL_OPTIONS)
        restore(TrainingConfig, {name: x for name, x in options.items() if name not in {*model, "data"}})
        check_tensors(shape_of(tensors, model).parameter_shapes(), part(tensors, "model"))
        check_count("done", run["done"], 0)
        for name, length in (("best", 2), ("losses", 2), ("estimates", 3)):
            for row in [run[name]] if name == "best" else run[name]:
                if [type(x) in (int, float) for x in row] != [True] * length:
                    raise ValueError(f"{name}: expected {length} numbers, got {row!r:.100}")
        mg.random.check_state(about["random"])
        if not isinstance(run["data_id"], str) or not isinstance(options.get("data"), str | None):
            raise ValueError("expected data and data_id as text")
        return about, tensors
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{out / LAST}: a safetensors file, but not a run of examples/translate.py ({error})"
        ) from error


def shape_of(tensors: dict[str, mg.Tensor], options: dict[str, Any]) -> Seq2SeqConfig:
    """The shape of the run's model: its options, and the sizes of the vocabularies from its tensors."""
    source = tensors["model.source_wte.weight"]
    target = tensors.get("model.target_wte.weight", source)  # one matrix for both with tie_weights "all"
    sizes = {"source_vocab_size": (*source.shape, 0)[0], "target_vocab_size": (*target.shape, 0)[0]}
    return restore(Seq2SeqConfig, {**options, **sizes})


def exact_match(translator: Translator, pairs: Sequence[Pair], beam_size: int = 1, length_penalty: float = 0) -> float:
    """The share of pairs whose source is translated exactly to the target."""
    found = translator.translate([source for source, _ in pairs], beam_size, length_penalty)
    return float(np.mean([text == target for text, (_, target) in zip(found, pairs, strict=True)]))


def finish(translator: Translator, val: list[Pair], config: TrainingConfig, out: Path) -> None:
    """Print the exact match on all validation pairs, greedy and with a beam, and some right and wrong examples."""
    sources, targets = zip(*val, strict=True)
    print(f"best        saved in {out / TRANSLATOR}; on all {len(val):,} validation pairs:")
    for beam_size in dict.fromkeys((1, config.beam_size)):
        started = time.perf_counter()
        found = translator.translate(sources, beam_size, config.length_penalty)
        right = [text == target for text, target in zip(found, targets, strict=True)]
        how = "greedy" if beam_size == 1 else f"beam of {beam_size}"
        print(f"{how:<12}exact match {np.mean(right):.2%} ({time.perf_counter() - started:.1f} s)")
    for what, kind in (("right", True), ("wrong", False)):
        for i in [i for i, is_right in enumerate(right) if is_right == kind][:5]:
            but = "" if kind else f", expected {quote(targets[i])}"
            print(f"{what:<12}{quote(sources[i])} -> {quote(found[i])}{but}")


def quote(text: str, most: int = 60) -> str:
    """A text in quotation marks, shortened if it is long."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


# Pictures


def plot_cross_attention(translator: Translator, pair: Pair, out: Path) -> Path | None:
    """Draw the cross-attention weights of all decoder layers and heads to cross_attention.png.

    A row of a panel belongs to the character that the decoder predicts next, and sums to 1. Returns the path, or None
    without matplotlib.
    """
    source, ids, targets = as_batch(translator.encode([pair]))
    weights = translator.model.cross_attention(source, ids)[:, 0]  # (n_layer, nh, T, S)
    n_layer, n_head, T, S = weights.shape
    width, height = 0.14 * S + 0.5, 0.16 * T + 0.7  # of a panel, in inches
    columns = max(n for n in range(1, n_head + 1) if n_head % n == 0 and (n == 1 or n * width < 16))
    rows = n_layer * n_head // columns
    figure = new_figure((columns * width, rows * height))
    if figure is None:
        return None
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for (layer, head), axes in zip(np.ndindex(n_layer, n_head), panels.flat, strict=True):
        image = axes.imshow(weights[layer, head], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set_title(f"layer {layer}, head {head}", fontsize=9)
        axes.set_xticks(range(S), translator.source.names(source[0]), fontsize=8, verticalalignment="baseline")
        axes.set_yticks(range(T), translator.target.names(targets[0]), fontsize=8)
        axes.tick_params(length=0, labelbottom=True)
        axes.tick_params(axis="x", pad=9)  # down to the baseline
    figure.supxlabel("source", fontsize=9)
    figure.supylabel("next character of the target", fontsize=9)
    figure.colorbar(image, ax=panels, label="weight", shrink=0.8, aspect=30)
    return save_figure(figure, out / CROSS_ATTENTION)


if __name__ == "__main__":
    run_program(main)
