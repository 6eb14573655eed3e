"""Look into a trained model in the browser: what it predicts, and how each prediction comes about.

    python examples/playground.py --checkpoint out
    python examples/playground.py --checkpoint out --compare out-fast       # two models side by side
    python examples/playground.py --checkpoint gpt2
    python examples/playground.py --checkpoint out --live                   # follow a run that is training
    python examples/playground.py --checkpoint out --export page.html       # one file, with the model inside

The page is local: the server listens on this machine alone, and the page loads nothing from the network. It needs the
extra `playground` (starlette and uvicorn); --export needs nothing.
"""

from __future__ import annotations

import argparse
import threading
import webbrowser
from pathlib import Path

from gpt import ConfigError
from gpt.errors import run_program
from gpt.loading import load_model
from gpt.options import MODEL_SOURCES, Parser, add_device_option, add_model_options
from playground.address import PORT, address_of, check_extra, listen
from playground.analysis import Model


def main() -> None:
    parser = Parser(description="Look into a trained model in the browser.")
    add_model_options(parser)
    parser.add_argument("--compare", metavar="MODEL", help=f"a second model, beside the first: {MODEL_SOURCES}")
    parser.add_argument("--live", action="store_true", help="follow the run in the folder --checkpoint while it trains")
    parser.add_argument(
        "--export", metavar="FILE", type=Path, help="write one HTML file with the model inside, and end"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page; 0: any free one (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="print the page's address and open no browser")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # end with this process
    add_device_option(parser)
    args = parser.parse_args()
    if args.export:
        export(args)
    else:
        show(args)


def show(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    check_extra()
    from playground import live, server

    models = [] if args.live else [load(args.checkpoint, args.adapters, args.device)]
    if args.compare:
        models.append(load(args.compare, None, args.device))
    with listen(args.port) as listener:
        follower = None
        if args.live:
            follower = live.Follower(Path(args.checkpoint), args.parent)
            follower.start()
        address = address_of(listener.getsockname()[1])
        if args.parent is None:
            print(f"{address}   (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        server.new_server(models, follower).run(sockets=[listener])


def export(args: argparse.Namespace) -> None:
    """Write one HTML file with the model inside."""
    from playground.export import write_page

    if args.compare or args.live:
        raise ConfigError("--export writes one model; expected neither --compare nor --live")
    name = Path(args.checkpoint).resolve().name
    write_page(args.export, name, *load_model(args.checkpoint, args.adapters, dropout=0.0))
    print(f"{args.export}: {args.export.stat().st_size:,} bytes; open it in a browser")


def load(name: str, adapters: str | None, device: str) -> Model:
    return Model(name, *load_model(name, adapters, device, dropout=0.0))  # dropout is for training


if __name__ == "__main__":
    run_program(main)
