"""Generating a text token by token: minigrad against transformers, and against a plain loop in PyTorch.

    python -m benchmarks.generate                        # 64 tokens after a prompt of 128, GPT-2's 124M parameters
    python -m benchmarks.generate --quick                # 3 rounds instead of 9
    python -m benchmarks.generate --against none         # without PyTorch

All contestants have the same random weights and the same prompt, keep keys and values in a cache, take the likeliest
token (batch 1), and compute logits for the last token only. What is timed is what a user calls: `gpt.sample.stream`,
and `GPT2LMHeadModel.generate` with a streamer. The prompt's time ends with the first token; the rest is the others'.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import command, contestants, workers
from benchmarks.contestants import GPT2, TINY
from benchmarks.figures import median, ratio, reached, short, table, times_and_ratios

SHAPES = {"124m": GPT2, "tiny": TINY}
OPPONENTS = {"transformers": ["transformers"], "torch": ["PyTorch loop"]}  # --against, and the contestants' names
OTHERS = ["transformers", "PyTorch loop"]
GOALS = {"transformers": (1.0, 1.2)}  # must reach, and goal, for the prompt and for a token


# The contestants. Each function hands the new tokens out one by one, by calling `emit`.


def minigrad_tokens(model: Any, prompt: np.ndarray, n: int, emit: Callable[[int], None]) -> None:
    from gpt.sample import stream

    for token in stream(model, prompt, n, temperature=0):
        emit(int(token[0]))


def torch_tokens(model: Any, prompt: np.ndarray, n: int, emit: Callable[[int], None]) -> None:
    import torch

    cache, ids = model.new_cache(), torch.from_numpy(prompt)
    with torch.inference_mode():
        for _ in range(n):
            last = model.ln_f(model.residual(ids, cache)[:, -1:])
            ids = torch.nn.functional.linear(last, model.wte.weight).argmax(dim=-1)  # (1, 1)
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
    options = {"max_new_tokens": n, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=Streamer(), **options)


TOKENS = {"minigrad": minigrad_tokens, "torch": torch_tokens, "transformers": transformers_tokens}


class Contestant(contestants.Contestant):
    def build(self, model: str) -> None:
        self.shape = SHAPES[model]
        self.model = contestants.MODELS[self.library](self.shape)
        self.model.eval()

    def turn(self, prompt: int, new: int) -> dict[str, Any]:
        """Continue a prompt: seconds for the prompt with the first token, for each further token, and the tokens."""
        ids = np.random.default_rng(0).integers(self.shape.vocab_size, size=(1, prompt))
        tokens: list[int] = []
        times = [time.perf_counter()]

        def emit(token: int) -> None:
            times.append(time.perf_counter())
            tokens.append(token)

        TOKENS[self.library](self.model, ids, new, emit)
        return {"prompt": times[1] - times[0], "token": (times[-1] - times[1]) / (new - 1), "tokens": tokens}


def lines(turns: dict[str, Any], args: Any) -> list[list[str]]:
    rows = []
    titles = {"prompt": f"a prompt of {args.prompt} tokens", "token": f"a token, of {args.new_tokens} after it"}
    for what, tokens in (("prompt", args.prompt), ("token", 1)):
        ms = {name: [1000 * turn[what] for turn in measured] for name, measured in turns.items()}
        row = [titles[what]]
        for name in ("minigrad", *OTHERS):
            typical = median(ms.get(name))
            row += ["–"] * 2 if typical is None else [short(typical), f"{1000 * tokens / typical:,.1f}"]
        faster = {name: ratio(ms[name], ms["minigrad"]).median for name in GOALS if name in ms}
        rows.append([*row, *times_and_ratios(ms, OTHERS)[2:], *reached(faster, GOALS)])
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


def benchmark(args: Any) -> dict[str, Any]:
    names = command.opponents(args.against, OPPONENTS)
    shape, rounds = SHAPES[args.model], args.rounds or (3 if args.quick else 9)
    if args.new_tokens < 2 or args.prompt + args.new_tokens > shape.block_size:
        raise workers.BenchmarkError(f"expected at least 2 new tokens, and with the prompt at most {shape.block_size}")
    print(command.machine())
    print(f"{args.model}: {', '.join(f'{name} {value}' for name, value in shape._asdict().items())}")
    runs = []
    work = {"prompt": args.prompt, "new": args.new_tokens}
    for threads, processes in workers.prepared("benchmarks.generate", names, args):
        for worker in processes.values():
            worker.call("build", model=args.model)
        turns = workers.take_turns(names, rounds, lambda name: processes[name].call("turn", **work))  # noqa: B023
        runs.append({"threads": threads, "turns": turns})
        header = [f"{who} {unit}" for who in ("minigrad", "transformers", "loop") for unit in ("ms", "tok/s")]
        header += ["× transformers", "× loop", "must reach", "goal", "reached"]
        print(table(["work", *header], lines(turns, args)))
        if len(names) > 1:
            print("\n" + "\n".join(differences(turns)))
    print("\nMedians; in brackets the smallest and largest ratio of a round.")
    return {"runs": runs}


def main() -> None:
    parser = command.arguments("Generating against transformers and PyTorch.", "3 rounds instead of 9")
    parser.set_defaults(against="transformers,torch")
    parser.add_argument("--model", choices=SHAPES, default="124m", help="GPT-2's smallest, or one to try this out")
    parser.add_argument("--prompt", type=command.positive, default=128, help="tokens in the prompt (default: 128)")
    parser.add_argument("--new-tokens", type=command.positive, default=64, help="tokens to generate (default: 64)")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
