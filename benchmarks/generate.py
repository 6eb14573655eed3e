"""Generating a text token by token: minigrad against transformers, and against a plain loop in PyTorch.

    python benchmarks/generate.py                        # 64 tokens after a prompt of 128, GPT-2's 124M parameters
    python benchmarks/generate.py --quick                # 3 rounds instead of 9
    python benchmarks/generate.py --against none         # without PyTorch

Everybody has the same random weights and the same prompt, keeps keys and values in a cache, takes the likeliest token
(batch 1), and computes logits for the last token only. What is timed is what a user calls: `gpt.sample.stream`, and
`GPT2LMHeadModel.generate` with a streamer. The prompt's time ends with the first token; the others' time is theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    CONTESTANTS,
    BenchmarkError,
    Spread,
    counts,
    machine,
    positive,
    prepare,
    ratio,
    run_benchmark,
    serve,
    short,
    table,
    take_turns,
    workers,
    write_json,
)
from train_step import GPT2, TINY, Model, initial_weight, minigrad_model, torch_model

MODELS = {"124m": GPT2, "tiny": TINY}
OPPONENTS = {"transformers": "transformers", "torch": "PyTorch loop"}  # --against, and the contestant's name
CONTESTANTS |= {"transformers": ("transformers", {}), "PyTorch loop": ("torch", {})}
GOALS = {"prompt": (1.0, 1.2), "token": (1.0, 1.2)}  # must reach, and goal, as ratios to transformers


# The contestants. Each function hands the new tokens out one by one, by calling `emit`.


def minigrad_tokens(model: Any, prompt: np.ndarray, n: int, emit: Callable[[int], None]) -> None:
    from gpt.sample import stream

    for token in stream(model, prompt, n, temperature=0):
        emit(int(token[0]))


def torch_tokens(model: Any, prompt: np.ndarray, n: int, emit: Callable[[int], None]) -> None:
    import torch
    from torch.nn import functional as TF

    cache, ids = model.new_cache(), torch.from_numpy(prompt)
    with torch.inference_mode():
        for _ in range(n):
            past = cache[0].length
            x = model.wte(ids) + model.wpe(torch.arange(past, past + ids.shape[1]))
            for block, layer_cache in zip(model.h, cache, strict=True):
                x = block(x, layer_cache)
            ids = TF.linear(model.ln_f(x[:, -1:]), model.wte.weight).argmax(dim=-1)  # (1, 1)
            emit(ids.item())


def transformers_tokens(model: Any, prompt: np.ndarray, n: int, emit: Callable[[int], None]) -> None:
    import torch

    class Streamer:
        """Is given the prompt first, and then every token."""

        def __init__(self) -> None:
            self.put = lambda prompt: setattr(self, "put", lambda ids: emit(ids.item()))

        def end(self) -> None:
            pass

    ids = torch.from_numpy(prompt)
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, use_cache=True,
            eos_token_id=None, pad_token_id=0, streamer=Streamer(),
        )  # fmt: skip


def transformers_model(shape: Model) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            n_positions=shape.block_size,
            vocab_size=shape.vocab_size,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            in_block = name.startswith("h.") and parameter.ndim == 2  # stored (in, out), ours (out, in)
            weight = initial_weight(name, parameter.shape[::-1] if in_block else parameter.shape, shape.n_layer)
            parameter.copy_(torch.from_numpy(weight.T if in_block else weight))
    return model.eval()


BUILD: dict[str, Callable[[Model], Any]] = {
    "minigrad": lambda shape: minigrad_model(shape, checkpoint=False),
    "torch": lambda shape: torch_model(shape, checkpoint=False).eval(),
    "transformers": transformers_model,
}
TOKENS = {"minigrad": minigrad_tokens, "torch": torch_tokens, "transformers": transformers_tokens}


class Contestant:
    """What runs in a contestant's process."""

    def __init__(self, library: str) -> None:
        self.library = library

    def prepare(self, threads: int | None) -> str:
        if self.library != "transformers":
            return prepare(self.library, threads)
        import transformers

        transformers.logging.set_verbosity_error()
        return f"transformers {transformers.__version__} on {prepare('torch', threads)}"

    def build(self, model: str) -> None:
        self.model = BUILD[self.library](MODELS[model])

    def turn(self, prompt: int, new: int) -> dict[str, Any]:
        """Continue a prompt: seconds for the prompt with the first token, for each further token, and the tokens."""
        vocab_size = self.model.config.vocab_size if self.library != "torch" else self.model.wte.num_embeddings
        ids = np.random.default_rng(0).integers(vocab_size, size=(1, prompt))
        tokens: list[int] = []
        times = [time.perf_counter()]

        def emit(token: int) -> None:
            times.append(time.perf_counter())
            tokens.append(token)

        TOKENS[self.library](self.model, ids, new, emit)
        return {"prompt": times[1] - times[0], "token": (times[-1] - times[1]) / (new - 1), "tokens": tokens}


# Measuring


def measure(args: argparse.Namespace, names: list[str], threads: int | None) -> tuple[list[str], dict[str, Any]]:
    """Who took part, and what each measured in each round."""
    with workers(__file__, names) as processes:
        about = [worker.call("prepare", threads=threads) for worker in processes.values()]
        for worker in processes.values():
            worker.call("build", model=args.model)
        rounds = args.rounds or (3 if args.quick else 9)
        turns = take_turns(
            names, rounds, lambda name: processes[name].call("turn", prompt=args.prompt, new=args.new_tokens)
        )
    return about, turns


def lines(turns: dict[str, Any], args: argparse.Namespace) -> list[list[str]]:
    rows = []
    for what, title, tokens in (
        ("prompt", f"a prompt of {args.prompt} tokens", args.prompt),
        ("token", f"a token, of {args.new_tokens} after it", 1),
    ):
        seconds = {name: [turn[what] for turn in measured] for name, measured in turns.items()}
        typical = {name: Spread.of(values).median for name, values in seconds.items()}
        row = [title]
        for name in ("minigrad", *OPPONENTS.values()):
            row += [short(1000 * typical[name]), f"{tokens / typical[name]:,.1f}"] if name in typical else ["–"] * 2
        ratios = {name: ratio(seconds[name], seconds["minigrad"]) for name in seconds if name != "minigrad"}
        row += [str(ratios[name]) if name in ratios else "–" for name in OPPONENTS.values()]
        must_reach, goal = GOALS[what]
        reached = "–"
        if "transformers" in ratios:
            faster = ratios["transformers"].median
            reached = "goal" if faster >= goal else "yes" if faster >= must_reach else "no"
        rows.append([*row, str(must_reach), str(goal), reached])
    return rows


def differences(turns: dict[str, Any]) -> list[str]:
    """Who chose other tokens than minigrad, and from which on. Rounding decides where two logits are almost equal."""
    ours = turns["minigrad"][0]["tokens"]
    found = []
    for name, measured in turns.items():
        theirs = measured[0]["tokens"]
        if theirs != ours:
            first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            found.append(f"{name} chose other tokens than minigrad from number {first + 1} on")
    return found or [f"all chose the same {len(ours)} tokens"]


def opponents(given: str) -> list[str]:
    if given == "none":
        return ["minigrad"]
    names = given.split(",")
    for name in names:
        if name not in OPPONENTS:
            raise BenchmarkError(f"unknown opponent {name!r}; there are {', '.join(OPPONENTS)}, and none")
        if importlib.util.find_spec(name) is None:
            raise BenchmarkError(f"{name} is not installed (pip install {name}); to measure without it: --against none")
    return ["minigrad", *(OPPONENTS[name] for name in names)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Generating against transformers and PyTorch.")
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--against", default="transformers,torch", help="transformers, torch, both or none")
    parser.add_argument("--model", choices=MODELS, default="124m", help="GPT-2's smallest, or one to try this out")
    parser.add_argument("--prompt", type=positive, default=128, help="tokens in the prompt (default: 128)")
    parser.add_argument("--new-tokens", type=positive, default=64, help="tokens to generate (default: 64)")
    parser.add_argument("--rounds", type=positive, help="rounds that count (default: 9)")
    parser.add_argument("--threads", type=counts, default=[None], metavar="N,…", help="default: each library's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, round by round")
    parser.add_argument("--worker", choices=TOKENS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(Contestant(args.worker))
        return
    names = opponents(args.against)
    shape = MODELS[args.model]
    if args.new_tokens < 2 or args.prompt + args.new_tokens > shape.block_size:
        raise BenchmarkError(f"wanted at least 2 new tokens, and with the prompt at most {shape.block_size}")

    print(machine())
    print(f"{args.model}: {', '.join(f'{name} {value}' for name, value in asdict(shape).items())}")
    runs = {}
    for threads in args.threads:
        about, turns = measure(args, names, threads)
        runs[threads] = turns
        print("\n".join(["", *about, ""]))
        header = [
            "work",
            *(f"{who} {unit}" for who in ("minigrad", "transformers", "loop") for unit in ("ms", "tok/s")),
        ]
        header += ["× transformers", "× loop", "must reach", "goal", "reached"]
        print(table(header, lines(turns, args)))
        if len(names) > 1:
            print("\n" + "\n".join(differences(turns)))
    print("\nMedians; in brackets the smallest and largest ratio of a round.")
    write_json(args.json, {"runs": [{"threads": threads, "turns": turns} for threads, turns in runs.items()]})


if __name__ == "__main__":
    run_benchmark(main)
