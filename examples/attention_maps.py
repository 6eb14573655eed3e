"""Draw a model's attention weights, for every head, over a prompt.

python examples/attention_maps.py --checkpoint out --prompt "ROMEO: But soft, what light"
python examples/attention_maps.py --model gpt2 --prompt "The cat sat because it was tired" --layer 5 --out heads.svg

Each row of panels is a layer, and each column a head. In a panel, row t has the weights of token t on the tokens up to
itself, which sum to 1; later tokens are blank. The more tokens, the smaller their labels. If labels would be too small
to read, only every second, third, … token is labeled, and the picture says so.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPTError
from gpt.errors import reason, run_program
from gpt.loading import load_model
from gpt.options import Parser, add_device_option, add_model_options
from gpt.text.tokenizer import Tokenizer
from minigrad.serialization import write_atomically

SUFFIXES = (".png", ".svg", ".pdf")
LONGEST = 12  # characters of a token's label
LEAST, MOST = 1.4, 3.5  # inches: the side of a panel
WIDTH = 14.0  # inches: all columns together, unless that makes panels smaller than LEAST
LARGEST, SMALLEST = 6.0, 4.0  # points: the font size of labels
LINE = 0.11 / 6  # inches per point of font size: the room of a label along its axis
GAP, TITLE = 0.12, 0.25  # inches: between columns, and above each panel


def main() -> None:
    parser = Parser(description="Draw the attention weights of every head over a prompt.")
    add_model_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the text that the model reads")
    parser.add_argument(
        "--layer", metavar="N", type=int, help="draw only this layer, larger; the first is 0 (default: all)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default="attention.png",
        help="a .png, .svg or .pdf file (default: attention.png)",
    )
    add_device_option(parser)
    args = parser.parse_args()

    if args.out.suffix.lower() not in SUFFIXES:
        raise GPTError(f"--out is {args.out}; expected a name that ends in {' or '.join(SUFFIXES)}")
    if not args.prompt:
        raise GPTError("--prompt is empty; expected at least one character")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise GPTError("drawing needs matplotlib, which is not installed (pip install matplotlib)") from error
    model, tokenizer = load_model(args.checkpoint, args.adapters, args.device, dropout=0.0)  # dropout is for training
    n_layer, block_size = model.config.n_layer, model.config.block_size
    if args.layer is not None and not 0 <= args.layer < n_layer:
        raise GPTError(f"--layer is {args.layer}; expected 0 to {n_layer - 1}")
    ids = tokenizer.encode(args.prompt)  # (T,)
    if len(ids) > block_size:
        raise GPTError(f"--prompt has {len(ids)} tokens; expected at most the model's block_size {block_size}")

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
    """A label for each token with only visible characters: a space is ␣, a line break \\n, an invalid byte \\xe2."""
    return [visible(tokenizer.decode_bytes([int(token)]).decode("utf-8", "backslashreplace")) for token in ids]


def visible(text: str) -> str:
    """The text, shortened, with escapes for spaces and for all characters that the font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    shown = "".join(
        "␣" if c == " " else c if c.isprintable() and ord(c) in glyphs else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def draw(weights: dict[int, Any], labels: list[str], format: str) -> bytes:
    """Draw the weights (nh, T, T) of some layers, by layer, as a grid of panels. The heads of one layer form a square.

    Positions are computed in inches because matplotlib's layouts take half a minute for the 144 heads of GPT-2.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    n_head, n_tokens = len(next(iter(weights.values()))), len(labels)
    heads = [(layer, head) for layer in weights for head in range(n_head)]
    columns = n_head if len(weights) > 1 else math.ceil(math.sqrt(n_head))
    rows = math.ceil(len(heads) / columns)
    side = min(max(LINE * LARGEST * n_tokens, LEAST), max(WIDTH / columns, LEAST), MOST)
    every = math.ceil(LINE * SMALLEST * n_tokens / side)  # tokens per label, so that the smallest label fits
    size = min(LARGEST, side / n_tokens * every / LINE)  # the largest font size that fits
    ticks, shown = range(0, n_tokens, every), labels[::every]
    thinned = f" (one token in {every} is labeled)" if every > 1 else ""
    margin = 0.4 + 0.07 * max(map(len, shown))  # for the labels, at the left and below
    width, height = margin + columns * (side + GAP) + 0.9, margin + rows * (side + TITLE) + 0.1

    figure = Figure(figsize=(width, height))
    scale = PowerNorm(0.5, 0, 1)  # square root, as most weights are small; the same in every panel
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
    figure.text(0.5, 0.1 / height, "attends to" + thinned, fontsize=8, ha="center")
    content = io.BytesIO()
    figure.savefig(content, format=format, dpi=150)
    return content.getvalue()


if __name__ == "__main__":
    run_program(main)
