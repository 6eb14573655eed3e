"""Continue a text with a trained model, streaming.

python examples/sample.py --checkpoint out --prompt "ROMEO:" --max-new-tokens 300 --temperature 0.8 --top-k 40
"""

from __future__ import annotations

import argparse

from gpt import GPTError, checkpoint
from gpt.errors import run_program
from gpt.sample import check_options, stream


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue a text with a trained model.")
    parser.add_argument("--checkpoint", metavar="DIR", default="out", help="a run's folder, or a file (default: out)")
    parser.add_argument("--prompt", metavar="TEXT", default="\n", help="what to continue (default: a line break)")
    parser.add_argument("--max-new-tokens", type=int, default=500, help="tokens to add (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token; 1: as the model says (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest tokens only")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest that together have this probability")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text (default: 1337)")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:N" (default: cpu)')
    args = parser.parse_args()

    check_options(args.max_new_tokens, args.temperature, args.top_k, args.top_p)
    saved = checkpoint.load(checkpoint.find(args.checkpoint))
    if not args.prompt:
        raise GPTError("--prompt is empty; wanted at least one character")
    ids = saved.tokenizer.encode(args.prompt)[None]  # (1, T)
    tokens = stream(
        saved.model(args.device), ids, args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed
    )
    print(args.prompt, end="", flush=True)
    for token in tokens:
        print(saved.tokenizer.decode(token), end="", flush=True)
    print()


if __name__ == "__main__":
    run_program(main)
