"""Make the guide's picture of the playground, docs/playground.png, from a trained model.

python docs/screenshot.py --checkpoint out        (extras playground and browser, and Chromium)
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the guide's picture of the playground.")
    parser.add_argument("--checkpoint", metavar="MODEL", default="out", help="a trained model (default: out)")
    checkpoint = Path(parser.parse_args().checkpoint).resolve()
    options = ["--checkpoint", checkpoint.name, "--port", "0", "--no-browser"]
    with (
        subprocess.Popen(
            [sys.executable, ROOT / "examples/playground.py", *options],
            cwd=checkpoint.parent,  # so that the picture shows no path
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.goto(address)
        page.wait_for_selector(".heads figure")
        page.fill("#length", "30")
        page.click("#generate")
        page.wait_for_selector("#stop[disabled]")
        page.fill("article .layer", "1")
        page.wait_for_timeout(1000)  # until the last answer is drawn
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        picture.quantize(method=Image.Quantize.FASTOCTREE).save(ROOT / "docs/playground.png", optimize=True)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
