"""Continue a text with a trained model, and print the tokens as they are generated.

python examples/sample.py --checkpoint out --prompt "ROMEO:" --max-new-tokens 300 --temperature 0.8 --top-k 40
python examples/sample.py --model gpt2 --prompt "The meaning of life is" --max-new-tokens 50
"""

from __future__ import annotations

from gpt import GPTError
from gpt.errors import printable, run_program
from gpt.loading import load_model
from gpt.options import Parser, add_device_option, add_model_options, add_options, check_count, fields_of, given, pick
from gpt.sample import Sampling, stream
from gpt.text.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, first_ids

OPTIONS = fields_of(Sampling, without=("use_cache", "stop_tokens", "vocab_size"))
DEFAULTS = {"temperature": 0.8, "seed": 1337}


def main() -> None:
    parser = Parser(description="Continue a text with a trained model.")
    add_model_options(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the text to continue (default: a line break, or token 0 if the vocabulary has no line break)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=500, help="tokens to generate (default: 500)")
    add_options(parser, OPTIONS, {"default": DEFAULTS})
    parser.add_argument(
        "--stop", metavar="TOKEN", action="append", default=[], help="also end before this token (may be repeated)"
    )
    add_device_option(parser)
    args = parser.parse_args()

    options = {**DEFAULTS, **pick(given(args), OPTIONS)}
    check_count("max_new_tokens", args.max_new_tokens, 0)
    Sampling(**options)  # checks the options before a model is loaded
    if args.prompt == "":
        raise GPTError("--prompt is empty; expected at least one character")
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    ids = first_ids(tokenizer) if args.prompt is None else tokenizer.encode(args.prompt)
    stop = stop_tokens(tokenizer, args.stop)
    tokens = stream(model, ids[None], args.max_new_tokens, **options, stop_tokens=stop, vocab_size=tokenizer.vocab_size)
    print(printable(tokenizer.decode(ids)), end="", flush=True)
    decoder = StreamDecoder(tokenizer)
    for token in tokens:
        if token[0] not in stop:
            print(printable(decoder.feed(token)), end="", flush=True)
    print(decoder.flush())


def stop_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """The ids that end the text: those of the given tokens, and the end-of-text token if there is one."""
    ids = [tokenizer.special_tokens[END_OF_TEXT]] if END_OF_TEXT in tokenizer.special_tokens else []
    for text in texts:
        encoded = tokenizer.encode(text, allowed_special="all")
        if len(encoded) != 1:
            raise GPTError(f"--stop: expected one token, got {text!r}, which is {len(encoded)} tokens")
        ids.append(int(encoded[0]))
    return ids


if __name__ == "__main__":
    run_program(main)
