"""From a pretrained GPT to an assistant, on a small world of exercises whose answers a program can check.

    python examples/align/align.py                       # every stage, and the table; 4 minutes of processor time
    python examples/align/align.py --seeds 3             # every stage but pretraining with three seeds
    python examples/align/align.py --stage sft           # one stage; it needs the files of the ones before it

    pretrain    a GPT on text                                                    sft.py
    sft         fine-tuning on demonstrations of a chat                          sft.py
    reward      a reward model, from pairs of answers                            reward.py
    ppo         reinforcement learning with a value network                      ppo.py
    grpo        reinforcement learning with groups of answers                    grpo.py
    dpo         from the pairs to the policy                                     dpo.py
    hacked      PPO without the KL term: what is learned is to please the reward model
    table       every model on the held-out prompts: a table, samples and a figure

--out gets the pretrained model, a folder of weights and pairs for each seed, results.json and align.png. The times are
processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import dpo
import grpo
import numpy as np
import ppo
import reward
import sft
from chat import ScalarGPT, asked, log_probabilities, rows, sample
from task import END, grade, split_prompts, training_prompts

import minigrad as mg
from gpt import GPT
from gpt.errors import ConfigError, run_program
from gpt.figures import attempt, new_figure, save_figure
from gpt.options import Parser, check_count, folder
from minigrad.serialization import load_with_metadata, write_atomically

STAGES = ("pretrain", "sft", "reward", "ppo", "grpo", "dpo", "hacked")
POLICIES = {"pretrain": "pretrained", "sft": "SFT", "ppo": "PPO", "grpo": "GRPO", "dpo": "DPO", "hacked": "PPO, no KL"}
COLUMNS = {
    "right": "right",
    "greedy": "right, greedy",
    "reward": "reward",
    "kl": "KL",
    "length": "length",
    "seconds": "s",
}
HACKED_ITERATIONS = 3 * ppo.ITERATIONS
SAMPLES = 14  # prompts whose answers are printed

Results = dict[str, dict[str, Any]]  # of one seed, by stage


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Align a small GPT: SFT, a reward model, PPO, GRPO and DPO.")
    stages = ("all", *STAGES, "table")
    parser.add_argument("--stage", choices=stages, default="all", help="what to do (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument("--seeds", type=int, default=1, help="run with so many seeds, from --seed on (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the length of the stages (default: 1)")
    parser.add_argument(
        "--validation", action="store_true", help="measure on the prompts for choices, not on those held out"
    )
    parser.add_argument("--out", metavar="DIR", default="out-align", type=folder, help="folder (default: out-align)")
    args = parser.parse_args()
    check_count("seed", args.seed, 0)
    check_count("seeds", args.seeds, 1)
    if not 0 < args.scale < math.inf:
        raise ConfigError(f"--scale is {args.scale}; expected a number above 0, not infinity")
    return args


def main() -> None:
    args = parse_arguments()
    prompts = split_prompts()[args.validation]
    runs = [Run(args.out, seed, args.scale, prompts) for seed in range(args.seed, args.seed + args.seeds)]
    for run in runs:
        for stage in STAGES if args.stage == "all" else [args.stage]:
            if stage in STAGES and (stage != "pretrain" or run is runs[0]):  # which all seeds share
                run.do(stage)
    if args.stage in ("all", "table"):
        results = [run.results() for run in runs]
        write_atomically(args.out / "results.json", json.dumps(results, indent=1).encode())
        print_results(results)
        print(f"figure      {attempt(lambda: draw(results, args.out / 'align.png'))}")


class Run:
    """The stages with one seed. Each reads what the ones before it left in the folder."""

    def __init__(self, out: Path, seed: int, scale: float, prompts: list[str]) -> None:
        self.out, self.folder = out, out / f"seed-{seed}"
        self.seed, self.scale, self.prompts = seed, scale, prompts

    def do(self, stage: str) -> None:
        """Train, save and measure one stage."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mg.manual_seed(self.seed)
        start = time.process_time()
        model = getattr(self, stage)(random.Random(f"{stage} {self.seed}"))
        seconds = time.process_time() - start
        mg.save(model.state_dict(), self.path(stage), metadata={"seconds": str(seconds)})
        print(f"{stage:<12}" + ", ".join(f"{name} {x:.4g}" for name, x in self.measure(stage).items()), flush=True)

    def pretrain(self, rng: random.Random) -> GPT:
        return sft.pretrain(rng, self.scaled(sft.PRETRAINING_STEPS))

    def sft(self, rng: random.Random) -> GPT:
        return sft.fine_tune(self.load("pretrain"), sft.demonstrations(rng, self.scaled(sft.DEMONSTRATIONS)), rng)

    def reward(self, rng: random.Random) -> ScalarGPT:
        pairs = reward.judged_pairs(self.load("sft"), training_prompts(self.scaled(reward.PROMPTS), rng))
        if not pairs:
            raise ConfigError("the SFT model's answers to each prompt are equally good: no pairs; try a larger --scale")
        (self.folder / "pairs.json").write_text(json.dumps(pairs))
        return reward.train(self.load("sft"), pairs, rng)

    def ppo(self, rng: random.Random) -> GPT:
        return ppo.train(self.load("sft"), self.scorer(), rng, iterations=self.scaled(ppo.ITERATIONS))

    def grpo(self, rng: random.Random) -> GPT:
        return grpo.train(self.load("sft"), self.scorer(), rng, iterations=self.scaled(ppo.ITERATIONS))

    def dpo(self, rng: random.Random) -> GPT:
        self.require("reward")  # which stores the pairs
        pairs = [reward.Pair(*pair) for pair in json.loads((self.folder / "pairs.json").read_text())]
        return dpo.train(self.load("sft"), pairs, rng)

    def hacked(self, rng: random.Random) -> GPT:
        return ppo.train(self.load("sft"), self.scorer(), rng, beta=0.0, iterations=self.scaled(HACKED_ITERATIONS))

    def scaled(self, n: int) -> int:
        return max(2, round(self.scale * n))

    def path(self, stage: str) -> Path:
        return (self.out if stage == "pretrain" else self.folder) / f"{stage}.safetensors"

    def load(self, stage: str, kind: type = GPT) -> Any:
        """The model of an earlier stage."""
        self.require(stage)
        model = kind(sft.CONFIG)
        model.load_state_dict(mg.load(self.path(stage)))
        return model

    def require(self, stage: str) -> None:
        """Raise `ConfigError` if a stage has not been done."""
        if not self.path(stage).is_file():
            raise ConfigError(f"{self.path(stage)} is missing: run --stage {stage} first")

    def scorer(self) -> ScalarGPT:
        return self.load("reward", ScalarGPT)

    def measure(self, stage: str) -> dict[str, float]:
        """What a stage reached: numbers by name."""
        self.require(stage)
        result = {"seconds": float(load_with_metadata(self.path(stage))[1]["seconds"])}
        if stage == "reward":
            mg.manual_seed(0)
            pairs = reward.judged_pairs(self.load("sft"), self.prompts)
            return result | {"pairs": len(pairs), "accuracy": reward.accuracy(self.scorer(), pairs)}
        answers, likeliest = self.answers(stage, 1.0), self.answers(stage, 0.0)
        dialogs = list(zip(map(asked, self.prompts), answers, strict=True))
        result |= {"right": self.share_right(answers), "greedy": self.share_right(likeliest)}
        result["length"] = float(np.mean([len(answer.removesuffix(END)) for answer in answers]))
        with mg.no_grad():
            if self.path("reward").is_file():
                result["reward"] = float(self.scorer().rewards(dialogs).data.mean())
            if stage != "pretrain":
                tokens, targets = rows(dialogs)
                ratio = log_probabilities(self.load(stage), tokens, targets).data
                ratio -= log_probabilities(self.load("sft"), tokens, targets).data
                result["kl"] = float(ratio.sum(axis=1).mean())
        return result

    def answers(self, stage: str, temperature: float) -> list[str]:
        """An answer to each prompt. The pretrained model is asked as in its text, with a line break for END."""
        mg.manual_seed(0)
        if stage != "pretrain":
            return sample(self.load(stage), [asked(prompt) for prompt in self.prompts], temperature)
        found = sample(self.load(stage), [f"\n{prompt}:" for prompt in self.prompts], temperature, stop="\n")
        return [answer.replace("\n", END) for answer in found]

    def share_right(self, answers: list[str]) -> float:
        """The share of the answers that are right and nothing else."""
        return float(np.mean([grade(prompt, x) == 2 for prompt, x in zip(self.prompts, answers, strict=True)]))

    def results(self) -> Results:
        """The numbers of all stages, and the first answers of the policies."""
        results: Results = {stage: dict(self.measure(stage)) for stage in STAGES}
        for stage in POLICIES:
            results[stage]["samples"] = list(zip(self.prompts, self.answers(stage, 1.0)[:SAMPLES], strict=False))
        return results


def print_results(results: list[Results]) -> None:
    """The table, with the mean over the seeds and the standard deviation; the margins above SFT; samples."""
    accuracies = [one["reward"]["accuracy"] for one in results]
    seconds = [one["reward"]["seconds"] for one in results]
    print(f"\nthe reward model prefers the better answer in {show(accuracies)} of new pairs; {show(seconds)} s\n")
    print("| stage | " + " | ".join(COLUMNS.values()) + " |\n| --- |" + " ---: |" * len(COLUMNS))
    for stage, name in POLICIES.items():
        cells = [show([one[stage][column] for one in results if column in one[stage]]) for column in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()
    before = [one["sft"]["right"] for one in results]
    for stage in ("ppo", "grpo", "dpo"):
        after = [one[stage]["right"] for one in results]
        spread = max(max(x) - min(x) for x in (before, after))
        gain = np.mean(after) - np.mean(before)
        print(f"{POLICIES[stage]:<12}{gain:+.3f} above SFT; the seeds are up to {spread:.3f} apart")
    print("\n| prompt | " + " | ".join(POLICIES.values()) + " |\n| --- |" + " --- |" * len(POLICIES))
    for i in range(min(SAMPLES, len(results[0]["sft"]["samples"]))):
        answers = [results[0][stage]["samples"][i][1].removesuffix(END) for stage in POLICIES]
        print(f"| {results[0]['sft']['samples'][i][0]} | " + " | ".join(answers) + " |")
    print()


def show(values: list[float]) -> str:
    """The mean, and the standard deviation if there are several."""
    digits = 1 if values and np.mean(values) >= 10 else 3
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 and max(values) > min(values) else ""
    return f"{np.mean(values):.{digits}f}{spread}" if values else "–"


def draw(results: list[Results], path: Path) -> Path | None:
    """The share of right answers after each stage, and beside it against the reward."""
    figure = new_figure((10, 4))
    if figure is None:
        return None
    left, right = figure.subplots(1, 2, sharey=True)
    left.set(ylabel="right answers, of the held-out prompts", ylim=(0, 1))
    right.set(xlabel="mean reward")
    for i, (stage, name) in enumerate(POLICIES.items()):
        shares = [one[stage]["right"] for one in results]
        left.bar(i, np.mean(shares), color=f"C{i}", alpha=0.6)
        left.plot([i] * len(shares), shares, ".", color="black")
        right.plot([one[stage]["reward"] for one in results], shares, "o", color=f"C{i}", label=name)
    left.set_xticks(range(len(POLICIES)), POLICIES.values(), rotation=20)
    right.legend()
    right.grid(alpha=0.3)
    return save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
