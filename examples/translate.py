"""Train an encoder-decoder Transformer to translate, a character at a time.

    python examples/translate.py                                    # dates, however they are written, to ISO 8601
    python examples/translate.py --task numbers                     # numbers in words to digits
    python examples/translate.py --data pairs.tsv                   # any pairs: a source, a tab and a target a line
    python examples/translate.py --resume                           # go on where the run in --out stopped
    python examples/translate.py --checkpoint out-translate --translate "Tuesday, 3 May 2011" "the 2nd of June 1999"

As in "Attention Is All You Need" (Vaswani et al., 2017) Adam's learning rate rises and then falls with the square root
of the step, and the model that is judged and kept has the mean of the weights of the last steps. At the end --out holds
the one that translated most validation pairs exactly, curves, and a picture of what its decoder looked at. Ctrl-C ends
training early, and the best model up to the last estimate is kept. From that estimate --resume goes on, with the same
steps as a run that never stopped, and to more of them with a larger --steps.
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
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minigrad as mg
from gpt.checkpoint import part
from gpt.errors import CheckpointError, ConfigError, run_program
from gpt.figures import new_figure, save_figure
from gpt.options import (
    add_device_option,
    add_options,
    add_run_options,
    check_choices,
    check_whole,
    describe,
    fields_of,
    given,
    option,
    pick,
)
from gpt.run import (
    CROSS_ATTENTION,
    LAST,
    LOSS_CURVE,
    TRANSLATOR,
    keep_previous_run,
    progress_bar,
    refuse_divergence,
    resume_command,
    run_folder,
)
from gpt.translation.beam import check_length_penalty
from gpt.translation.pairs import Pair, date_pairs, load_pairs, number_pairs, split_pairs
from gpt.translation.seq2seq import Seq2SeqConfig
from gpt.translation.translator import Batch, Translator, as_batch, batches
from minigrad import optim
from minigrad.serialization import load_with_metadata

TASKS = {"dates": date_pairs, "numbers": number_pairs}
ALSO = {"steps": "--max-iters", "warmup": "--warmup-iters"}  # what examples/train_shakespeare.py calls them
LOG_INTERVAL = 10  # steps between readings of the loss
ADVICE = "try a longer --warmup, which lowers the rates"
ABOUT = "minigrad.translate"  # under which the file of a run has what is no array
# By --resume, with no step done otherwise; a file of pairs may lie elsewhere now, but has to hold the same pairs.
CHANGEABLE = ("steps", "eval_interval", "beam_size", "length_penalty", "data")


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained and judged. Raises `ConfigError` for values without meaning."""

    task: str = option("dates", "what to generate pairs of, where --data is not given", tuple(TASKS))
    pairs: int = option(40_000, "how many pairs to generate")
    val_share: float = option(0.05, "share of the pairs that is held out for validation")
    steps: int = option(2000, "training steps")
    batch_size: int = option(64, "pairs in a batch")
    warmup: int = option(300, "steps over which the learning rate rises, to 1 / sqrt(n_embd * warmup)")
    average: int = option(100, "the weights that are judged and kept are a mean over about so many steps; 1 for none")
    label_smoothing: float = option(0.0, "share of each target that all characters get alike")
    grad_clip: float = option(1.0, "the largest global norm of the gradient; 0 for no limit")
    eval_interval: int = option(250, "steps between estimates, from --eval-pairs, of validation loss and exact match")
    eval_pairs: int = option(500, "validation pairs for each of these estimates; at the end it is all of them")
    beam_size: int = option(4, "hypotheses of the beam search at the end, and of --translate")
    length_penalty: float = option(0.6, "how much beam search favors long translations; 0 for not at all")
    seed: int = option(1, "seed of everything random")

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
MODEL_DEFAULTS = {"n_layer": 2, "n_head": 4, "n_embd": 64, "dropout": 0.0}  # in place of the paper's, which is larger


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an encoder-decoder Transformer to translate characters.")
    add_device_option(parser)
    parser.add_argument("--data", metavar="FILE", help="pairs: a source, a tab and a target on each line, in UTF-8")
    add_run_options(parser, out="out-translate")
    parser.add_argument("--translate", metavar="TEXT", nargs="+", help="translate these with a trained model")
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, help="folder of the trained model (default: --out)")
    add_options(parser.add_argument_group("model"), MODEL_OPTIONS, {"default": MODEL_DEFAULTS})
    add_options(parser.add_argument_group("training"), TRAIN_OPTIONS, aliases=ALSO)
    return parser.parse_args()


def resumed(options: dict[str, Any], out: Path) -> dict[str, Any]:
    """The options of the run in a folder, except for those that are given and may change."""
    before = read_run(out)[0]["options"]
    for name, value in before.items():
        if name not in CHANGEABLE and options.get(name, value) != value:
            raise ConfigError(f"--resume with {name} {options[name]}, but the run has {name} {value}")
    return {**before, **options}


def main() -> None:
    args = parse_arguments()
    mg.Tensor(0.0, device=args.device)  # says what is missing, before anything else is done
    options = resumed(given(args), args.out) if args.resume else {**MODEL_DEFAULTS, **given(args)}
    config = TrainingConfig(**pick(options, TRAIN_OPTIONS))
    if args.translate:
        translator = Translator.load(args.checkpoint or args.out, args.device)
        print(*translator.translate(args.translate, config.beam_size, config.length_penalty), sep="\n")
        return
    if args.checkpoint:
        raise ConfigError("--checkpoint is for --translate, which is missing")

    mg.manual_seed(config.seed)
    data = options.get("data")
    pairs = load_pairs(data) if data else TASKS[config.task](config.pairs, config.seed)
    train, val = split_pairs(pairs, config.val_share, config.seed)
    translator = Translator.for_pairs(pairs, **pick(options, MODEL_OPTIONS))
    translator.settings = dataclasses.asdict(config) | {"data": data}
    model = translator.model.to(args.device)
    with run_folder(args.out):
        if not args.resume:
            keep_previous_run(args.out)
        print(f"device      {args.device}")
        what = f"{data or config.task}: {len(train):,} pairs to train on, {len(val):,} held out"
        print(f"data        {what}; for example")
        print(f"            {quote(train[0][0])} -> {quote(train[0][1])}")
        print(f"model       {model.num_parameters():,} parameters: {describe(model.config, MODEL_OPTIONS)}")
        print(f"training    {describe(config, TRAIN_OPTIONS)}")
        training = Training(translator, train, val, config, args.out, data)
        if args.resume:
            training.resume()
        print(f"run         {args.out}, from step {training.done}", flush=True)
        training.run()
        best = Translator.load(args.out, args.device)
        finish(best, val, config, args.out)
        pictures = [training.plot(), plot_cross_attention(best, val[0], args.out)]
        print(f"pictures    {', '.join(map(str, filter(None, pictures))) or 'none: matplotlib is not installed'}")
        again = ["python", "examples/translate.py", "--checkpoint", str(args.out), "--translate", val[0][0]]
        print(f"\nmore of it: {shlex.join(again)}")


class Training:
    """The loop: random batches, Adam, and now and then an estimate, after which the best model so far is saved.

    At the schedule's high rates the weights never settle but dance around what is best. Their mean lies nearer to it
    (Polyak and Juditsky, 1992), so what is judged and saved is `averaged`, the same model with a running mean.
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
        self.averaged = copy.deepcopy(translator)
        self.pairs, self.val = translator.encode(train), val[: config.eval_pairs]
        self.optimizer = optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0
        )  # the paper's Adam
        self.losses: list[tuple[int, float]] = []  # of training batches, at steps
        self.estimates: list[tuple[int, float, float]] = []  # step, validation loss, exact match
        self.best = (-1.0, 0.0)
        self.data_id = hashlib.sha256(repr((train, val)).encode()).hexdigest()
        self.done = 0  # steps, up to the estimate that is resumed from

    def run(self) -> None:
        self.model.train()
        started = time.perf_counter()
        batches = itertools.islice(self.batches(), self.done, self.config.steps)
        bar = progress_bar(iterable=batches, initial=self.done, total=self.config.steps)
        try:
            for step, batch in enumerate(bar, self.done):
                loss = self.step(step, batch)
                self.average(rate=1 / min(step + 1, self.config.average))
                if step % LOG_INTERVAL == 0:
                    self.log(bar, step, loss.item())
                if (step + 1) % self.config.eval_interval == 0 or step + 1 == self.config.steps:
                    self.evaluate(bar, step + 1)
        except KeyboardInterrupt:
            bar.close()
            if not self.estimates:
                raise  # nothing has been kept
            print(f"interrupted after the estimate at step {self.estimates[-1][0]}; what follows is of the best so far")
            print(f"go on with  {resume_command()}")
        print(f"trained     in {time.perf_counter() - started:.0f} s, with the estimates")

    def batches(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch."""
        rng = np.random.default_rng(self.config.seed)
        while True:
            yield from batches(self.pairs, self.config.batch_size, rng)

    def step(self, step: int, batch: Batch) -> mg.Tensor:
        _, loss = self.model(*batch, label_smoothing=self.config.label_smoothing)
        assert loss is not None
        loss.backward()
        optim.clip_grad_norm(self.optimizer.params, self.config.grad_clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.warmup_inverse_square_root(step, self.model.config.n_embd, self.config.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def average(self, rate: float) -> None:
        """Move every averaged weight towards the present one, by this share of the way."""
        for mean, parameter in zip(self.averaged.model.parameters(), self.model.parameters(), strict=True):
            mean.data += (parameter.data - mean.data) * rate

    def log(self, bar: tqdm, step: int, loss: float) -> None:
        refuse_divergence(loss, step, ADVICE)
        self.losses.append((step, loss))
        bar.set_postfix_str(f"loss {loss:.3f}, lr {self.optimizer.param_groups[0]['lr']:.2e}", refresh=False)

    def evaluate(self, bar: tqdm, step: int) -> None:
        """Estimate validation loss and exact match (greedy). Save the run, and the model if no other matched more."""
        loss, matched = self.averaged.loss(self.val), exact_match(self.averaged, self.val)
        refuse_divergence(loss, step, ADVICE)
        estimates, best = [*self.estimates, (step, loss, matched)], (matched, -loss) > self.best
        highest = (matched, -loss) if best else self.best
        if best:
            self.averaged.save(self.out / TRANSLATOR)
        self.save(step, estimates, highest)
        self.estimates, self.best = estimates, highest  # not before all is on the disk: Ctrl-C may come any time
        with bar.external_write_mode(file=sys.stdout):
            print(
                f"step {step:>5}: validation loss {loss:.4f}, exact match {matched:.2%}"
                f"{' (best so far, kept)' if best else ''}",
                flush=True,
            )

    def parts(self) -> dict[str, Any]:
        """All that has arrays to be saved, by name."""
        return {"model": self.model, "averaged": self.averaged.model, "optimizer": self.optimizer}

    def save(self, done: int, estimates: list[tuple[int, float, float]], best: tuple[float, float]) -> None:
        """Write all that is needed to go on to one file. The batches follow from the seed."""
        run = {"done": done, "losses": self.losses, "estimates": estimates, "best": best}
        run["data_id"] = self.data_id
        options = pick(dataclasses.asdict(self.model.config), MODEL_OPTIONS)
        options |= dataclasses.asdict(self.config) | {"data": self.data}
        about = {"options": options, "run": run, "random": mg.random.get_state()}
        tensors = {f"{name}.{key}": x for name, of in self.parts().items() for key, x in of.state_dict().items()}
        mg.save(tensors, self.out / LAST, {ABOUT: json.dumps(about)})

    def resume(self) -> None:
        """Go back to what `save` wrote."""
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
        """Draw the losses, and the exact match beside them, to loss.png; None without matplotlib."""
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


def read_run(out: Path) -> tuple[dict[str, Any], dict[str, mg.Tensor]]:
    """What `Training.save` wrote: what is no array, and the arrays."""
    try:
        tensors, metadata = load_with_metadata(out / LAST)
        return json.loads(metadata[ABOUT]), tensors
    except KeyError as error:
        raise CheckpointError(f"{out / LAST}: a safetensors file, but no run of examples/translate.py") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error


def exact_match(translator: Translator, pairs: Sequence[Pair], beam_size: int = 1, length_penalty: float = 0) -> float:
    """The share of pairs whose source is translated to the target, to the letter."""
    found = translator.translate([source for source, _ in pairs], beam_size, length_penalty)
    return float(np.mean([text == target for text, (_, target) in zip(found, pairs, strict=True)]))


def finish(translator: Translator, val: list[Pair], config: TrainingConfig, out: Path) -> None:
    """Exact match on all that was held out, greedy and with a beam, and some examples of right and wrong."""
    sources, targets = zip(*val, strict=True)
    print(f"best        kept in {out / TRANSLATOR}; on all {len(val):,} pairs that were held out:")
    for beam_size in dict.fromkeys((1, config.beam_size)):
        started = time.perf_counter()
        found = translator.translate(sources, beam_size, config.length_penalty)
        right = [text == target for text, target in zip(found, targets, strict=True)]
        how = "greedy" if beam_size == 1 else f"beam of {beam_size}"
        print(f"{how:<12}exact match {np.mean(right):.2%} ({time.perf_counter() - started:.1f} s)")
    for what, wanted in (("right", True), ("wrong", False)):
        for i in [i for i, is_right in enumerate(right) if is_right == wanted][:5]:
            but = "" if wanted else f", but it is {quote(targets[i])}"
            print(f"{what:<12}{quote(sources[i])} -> {quote(found[i])}{but}")


def quote(text: str, most: int = 60) -> str:
    """A text in quotation marks, cut if it is long."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


# Pictures


def plot_cross_attention(translator: Translator, pair: Pair, out: Path) -> Path | None:
    """Draw what each head of each decoder layer looked at, to cross_attention.png; None without matplotlib.

    A row of a panel is a character that the decoder is about to say; it adds up to 1.
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
