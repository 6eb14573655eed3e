"""Measure how well a model predicts a text: loss, perplexity, and bits per byte.

    python examples/evaluate.py --model out --data my.txt              # a run's best checkpoint
    python examples/evaluate.py --model gpt2 --data my.txt --stride 512

The model reads the text in windows of its block size that advance by --stride tokens. A window counts only the tokens
that no earlier window has predicted. So every token but the first counts once, and after the first window every
predicted token has a context of at least block size - stride tokens.
"""

from __future__ import annotations

import sys

from gpt.errors import run_program
from gpt.evaluate import evaluate
from gpt.loading import load_model
from gpt.options import Parser, add_device_option, add_model_options
from gpt.text.data import load_text


def main() -> None:
    parser = Parser(description="Measure how well a model predicts a text.")
    add_model_options(parser, default=None)
    parser.add_argument("--data", metavar="FILE", required=True, help="a text file")
    parser.add_argument("--stride", type=int, help="tokens between the starts of windows (default: half of the window)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows per batch (default: 4)")
    add_device_option(parser)
    args = parser.parse_args()

    text = load_text(args.data)
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    ids, n_bytes = text.encode(tokenizer), len(text.content)
    stride = max(1, model.config.block_size // 2) if args.stride is None else args.stride
    print(f"text           {args.data}: {n_bytes:,} bytes, {len(ids):,} tokens")
    print(f"windows        {model.config.block_size} tokens, stride {stride}", flush=True)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    result = evaluate(model, ids, n_bytes, stride, args.batch_size, progress=terminal)
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.4f} per token")
    print(f"bits per byte  {result.bits_per_byte:.4f}")


if __name__ == "__main__":
    run_program(main)
