"""Draw what a model's attention looks at: the weights of every head over a prompt.

python examples/attention_maps.py --checkpoint out --prompt "ROMEO: But soft, what light"
python examples/attention_maps.py --model gpt2 --prompt "The cat sat because it was tired" --layer 5 --out heads.svg

A row of pictures is a layer, a column a head. In each, row t is what token t looks at: weights that sum to 1, and none
for the tokens after it, which stay blank. Names of tokens get smaller where there are many; where they would be too
small to read, every second, third, … token is named, and the picture says so.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPTError
from gpt.errors import reason, run_program
from gpt.loading import load_model
from gpt.options import add_device_option, add_model_options
from gpt.text.tokenizer import Tokenizer
from minigrad.serialization import write_atomically

SUFFIXES = (".png", ".svg", ".pdf")
LONGEST = 12  # characters of a token's label
LEAST, MOST = 1.4, 3.5  # inches of a picture's side
WIDTH = 14.0  # inches for all columns, where that leaves each its least
LARGEST, SMALLEST = 6.0, 4.0  # points of a label's letters
LINE = 0.11 / 6  # inches that a label takes along its axis, for each point of its letters
GAP, TITLE = 0.12, 0.25  # inches between columns, and above each picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the attention weights of every head over a prompt.")
    add_model_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="what the model reads")
    parser.add_argument(
        "--layer", metavar="N", type=int, help="this layer alone, larger; the first is 0 (default: all)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default="attention.png",
        help="a .png, .svg or .pdf (default: attention.png)",
    )
    add_device_option(parser)
    args = parser.parse_args()

    if args.out.suffix.lower() not in SUFFIXES:
        raise GPTError(f"--out {args.out}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not args.prompt:
        raise GPTError("--prompt is empty; expected at least one character")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise GPTError("drawing needs matplotlib, which is not installed (pip install matplotlib)") from error
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    n_layer, block_size = model.config.n_layer, model.config.block_size
    if args.layer is not None and not 0 <= args.layer < n_layer:
        raise GPTError(f"--layer {args.layer}: the model has layers 0 to {n_layer - 1}")
    ids = tokenizer.encode(args.prompt)  # (T,)
    if len(ids) > block_size:
        raise GPTError(f"--prompt has {len(ids)} tokens; the model's context has room for {block_size}")

    weights = [w.numpy()[0] for w in model.attention_weights(mg.Tensor(ids[None], device=args.device))]  # (nh, T, T)
    layers = range(n_layer) if args.layer is None else [args.layer]
    picture = draw(
        {layer: weights[layer] for layer in layers}, token_labels(tokenizer, ids), args.out.suffix[1:].lower()
    )
    try:
        write_atomically(args.out, picture)
    except OSError as error:
        raise GPTError(f"--out {args.out}: cannot be written ({reason(error)})") from error
    print(f"{args.out}: {len(layers)} x {model.config.n_head} heads (layers x heads) over {len(ids)} tokens")


def token_labels(tokenizer: Tokenizer, ids: Any) -> list[str]:
    """Each token as a short text in which all can be seen: a space as ␣, a line break as \\n, odd bytes as \\xe2."""
    return [visible(tokenizer.decode_bytes([int(token)]).decode("utf-8", "backslashreplace")) for token in ids]


def visible(text: str) -> str:
    """A short text, with an escape for each character that the picture's font does not have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    shown = "".join(
        "␣" if c == " " else c if c.isprintable() and ord(c) in glyphs else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def draw(weights: dict[int, Any], labels: list[str], format: str) -> bytes:
    """The heads' weights (nh, T, T) of some layers, by layer, as a grid; one layer alone fills a square.

    Every part has its place in inches: matplotlib's own layouts take half a minute for the 144 heads of GPT-2.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    n_head, n_tokens = len(next(iter(weights.values()))), len(labels)
    heads = [(layer, head) for layer in weights for head in range(n_head)]
    columns = n_head if len(weights) > 1 else math.ceil(math.sqrt(n_head))
    rows = math.ceil(len(heads) / columns)
    side = min(max(LINE * LARGEST * n_tokens, LEAST), max(WIDTH / columns, LEAST), MOST)
    every = math.ceil(LINE * SMALLEST * n_tokens / side)  # so many tokens share the room of the smallest label
    size = min(LARGEST, side / n_tokens * every / LINE)  # the largest that fits
    ticks, shown = range(0, n_tokens, every), labels[::every]
    thinned = f" (one token in {every} is named)" if every > 1 else ""
    margin = 0.4 + 0.07 * max(map(len, shown))  # for the labels, at the left and below
    width, height = margin + columns * (side + GAP) + 0.9, margin + rows * (side + TITLE) + 0.1

    figure = Figure(figsize=(width, height))
    scale = PowerNorm(0.5, 0, 1)  # the root, as most weights are small; the same in every picture
    future = np.triu(np.ones((n_tokens, n_tokens), bool), k=1)
    for i, (layer, head) in enumerate(heads):
        row, column = divmod(i, columns)
        left, bottom = margin + column * (side + GAP), height - (row + 1) * (side + TITLE)
        panel = figure.add_axes((left / width, bottom / height, side / width, side / height))
        image = panel.imshow(np.ma.array(weights[layer][head], mask=future), norm=scale)
        panel.set_title(f"layer {layer}, head {head}", fontsize=7, pad=2)
        lowest = i + columns >= len(heads)
        panel.set_xticks(ticks, shown if lowest else [""] * len(shown), rotation=90, fontsize=size, parse_math=False)
        panel.set_yticks(ticks, shown if column == 0 else [""] * len(shown), fontsize=size, parse_math=False)
        panel.tick_params(length=2, pad=1)
        panel.spines[:].set_visible(False)
    tall = min(height - margin - TITLE, MOST)
    bar = figure.add_axes(((width - 0.7) / width, (height - TITLE - tall) / height, 0.12 / width, tall / height))
    figure.colorbar(image, bar, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_title("weight", fontsize=7, pad=4)
    bar.tick_params(labelsize=7)
    figure.text(0.1 / width, 0.5, "this token", fontsize=8, rotation=90, va="center")
    figure.text(0.5, 0.1 / height, "looks at" + thinned, fontsize=8, ha="center")
    content = io.BytesIO()
    figure.savefig(content, format=format, dpi=150)
    return content.getvalue()


if __name__ == "__main__":
    run_program(main)
