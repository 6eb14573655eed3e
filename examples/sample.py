"""Continue a text with a trained model, streaming.

python examples/sample.py --checkpoint out --prompt "ROMEO:" --max-new-tokens 300 --temperature 0.8 --top-k 40
python examples/sample.py --model gpt2 --prompt "The meaning of life is" --max-new-tokens 50
"""

from __future__ import annotations

import argparse

from gpt import GPTError
from gpt.errors import run_program
from gpt.loading import load_model
from gpt.sample import check_options, stream
from gpt.text.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, first_ids


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue a text with a trained model.")
    parser.add_argument(
        "--checkpoint",
        "--model",
        metavar="MODEL",
        default="out",
        help="a run's folder, a checkpoint, a folder with GPT-2's files, or \"gpt2\" … (default: out)",
    )
    parser.add_argument("--adapters", metavar="FILE", help="LoRA adapters to put on the model")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="what to continue (default: a line break, or the first token if it is none)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=500, help="tokens to add (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token; 1: as the model says (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest tokens only")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest that together have this probability")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text (default: 1337)")
    parser.add_argument(
        "--stop", metavar="TOKEN", action="append", default=[], help="end before this token too (may be given again)"
    )
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:N" (default: cpu)')
    args = parser.parse_args()

    check_options(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    if args.prompt == "":
        raise GPTError("--prompt is empty; wanted at least one character")
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    ids = first_ids(tokenizer) if args.prompt is None else tokenizer.encode(args.prompt)
    stop = stop_tokens(tokenizer, args.stop)
    options = {"stop_tokens": stop, "vocab_size": tokenizer.vocab_size}
    tokens = stream(
        model, ids[None], args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed, **options
    )
    print(tokenizer.decode(ids), end="", flush=True)
    decoder = StreamDecoder(tokenizer)
    for token in tokens:
        if token[0] not in stop:
            print(decoder.feed(token), end="", flush=True)
    print(decoder.flush())


def stop_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """The ids at which the text ends: of the given tokens, and of the end-of-text mark where there is one."""
    ids = [tokenizer.special_tokens[END_OF_TEXT]] if END_OF_TEXT in tokenizer.special_tokens else []
    for text in texts:
        encoded = tokenizer.encode(text, allowed_special="all")
        if len(encoded) != 1:
            raise GPTError(f"--stop {text!r} is {len(encoded)} tokens; wanted one")
        ids.append(int(encoded[0]))
    return ids


if __name__ == "__main__":
    run_program(main)
