"""How well does a model predict a text? Its loss, its perplexity, and the bits it needs for a byte.

    python examples/evaluate.py --model out --data my.txt              # a run's best checkpoint
    python examples/evaluate.py --model gpt2 --data my.txt --stride 512

The model reads the text through windows of its block size that advance by --stride tokens, and only tokens that no
window before has predicted count: each token but the first once, with at least block size - stride tokens before it.
"""

from __future__ import annotations

import argparse
import sys

from gpt.errors import run_program
from gpt.evaluate import evaluate
from gpt.loading import load_model
from gpt.options import add_device_option, add_model_options
from gpt.text.data import load_text


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well a model predicts a text.")
    add_model_options(parser, default=None)
    parser.add_argument("--data", metavar="FILE", required=True, help="a text file")
    parser.add_argument("--stride", type=int, help="tokens from one window to the next (default: half of the window)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time (default: 4)")
    add_device_option(parser)
    args = parser.parse_args()

    text = load_text(args.data).text
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    ids, n_bytes = tokenizer.encode(text), len(text.encode())
    stride = max(1, model.config.block_size // 2) if args.stride is None else args.stride
    print(f"text           {args.data}: {n_bytes:,} bytes, {len(ids):,} tokens")
    print(f"windows        {model.config.block_size} tokens, each {stride} after the last", flush=True)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    result = evaluate(model, ids, n_bytes, stride, args.batch_size, progress=terminal)
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.4f} per token")
    print(f"bits per byte  {result.bits_per_byte:.4f}")


if __name__ == "__main__":
    run_program(main)
