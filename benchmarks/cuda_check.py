"""What only an NVIDIA card can show, in two calls, each with one report.

    python -m benchmarks.cuda_check correctness                 # at most 400 s, to the folder cuda-report (or $OUT)
    python -m benchmarks.cuda_check speed --data input.txt      # at most 330 s
    python -m benchmarks.cuda_check speed --only table,cuda-baby --limit table=90 --out FOLDER
    python -m benchmarks.cuda_check correctness --dry-run       # say what would run

correctness   proof       python -m minigrad.kernels.cuda.proof: every kernel against its reference
              kernels     the kernels' tests on the card (tests/cuda/kernels)
              gpu         all other tests marked `cuda`
              settings    those of them again that MINIGRAD_KERNELS decides about
              steps       a few training steps of baby and of GPT-2 124M
              racecheck, memcheck    two steps of a one-layer model, watched by NVIDIA's compute-sanitizer
speed         table       python -m benchmarks.ops --device cuda: the time of each kernel, against PyTorch's
              profile     where the time of a training step goes
              cuda-baby, cuda-124m, cuda-124m-tf32    a training step against PyTorch's
              recipe      examples/train_shakespeare.py --preset baby with 1,500 steps

Each part has a process and a limit of its own. A part that fails, or that takes longer, does not stop the others. A
call leaves three files: CALL.md, the report; CALL.json, all figures; CALL.log, all output. Everything else goes to a
temporary folder. Wheels in a folder .whl are installed to a temporary folder first.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CALLS = {  # seconds for each part
    "correctness": dict(proof=60, kernels=90, gpu=90, settings=20, steps=40, racecheck=45, memcheck=45),  # noqa: C408
    "speed": {"table": 50, "profile": 40, "cuda-baby": 65, "cuda-124m": 65, "cuda-124m-tf32": 45, "recipe": 65},
}
GRACE = 5  # seconds of a limit in which a part that was interrupted may write what it has
PACKAGES = "numpy cupy ml_dtypes tqdm regex safetensors tiktoken torch triton pytest hypothesis xdist pytest_timeout"
LOG_BYTES = 2 << 20  # of a part's output at most, its end
OF_KERNELS = "tests/cuda/kernels"


def versions() -> dict[str, str]:
    """The machine, its card and driver, and the packages."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    card = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which(asked[0]) else "missing"
    found = {"system": platform.platform(), "Python": platform.python_version(), "card, driver, memory": card}
    installed = importlib.metadata.packages_distributions()
    for name in PACKAGES.split():
        found[name] = importlib.metadata.version(installed[name][0]) if name in installed else "missing"
    return found


def commands(data: Path | None, work: Path, known: dict[str, str]) -> dict[str, list[str]]:
    """What each part runs; settings for its environment come first."""
    on, off, module = "MINIGRAD_KERNELS=cuda", "MINIGRAD_KERNELS=reference", [sys.executable, "-m"]
    pytest = "pytest -q --tb=short -m cuda --continue-on-collection-errors -p no:benchmark -p no:cacheprovider"
    # Plug-ins that warn about others would make every test an error.
    tests = [*module, *pytest.split()]
    tests += ["-n", str(min(8, os.cpu_count() or 1))] if known["xdist"] != "missing" else []
    tests += ["--timeout", "60", "--timeout-method=thread"] if known["pytest_timeout"] != "missing" else []
    # Those in tests/cuda choose their kernels themselves; about the others the setting decides.
    files = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("tests/*/test_*.py"))]
    marked = [name for name in files if "mark.cuda" in (ROOT / name).read_text("utf-8")]
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin") or "compute-sanitizer"
    watched = ["--error-exitcode", "1", *module, *"benchmarks.cuda_steps cuda-layer --steps 2 --no-graph".split()]
    against = ["--rounds", "3", "--against", "none" if known["torch"] == "missing" else "torch"]
    table = "benchmarks.ops --device cuda --dtype bfloat16 --quick"
    recipe = "examples/train_shakespeare.py --device cuda --preset baby --dtype bfloat16 --max-iters 1500"
    recipe += f" --lr-decay-iters 1500 --out {work / 'recipe'}"
    figures = {part: ["--json", str(work / f"{part}.json")] for part in CALLS["speed"]}
    rows = [part for part in figures if "cuda-" in part]
    return {
        "proof": [*module, "minigrad.kernels.cuda.proof"],
        "kernels": [on, *tests, OF_KERNELS],
        "gpu": [off, *tests, *marked],
        "settings": [on, *tests, *(name for name in marked if not name.startswith("tests/cuda/"))],
        "steps": [on, *module, "benchmarks.cuda_steps", "cuda-baby,cuda-124m", "--steps", "6"],
        "racecheck": [on, tool, "--tool", "racecheck", *watched],
        "memcheck": [on, tool, "--tool", "memcheck", *watched],
        "table": [on, *module, *table.split(), *against[2:], *figures["table"]],
        "profile": [on, *module, "benchmarks.cuda_steps", "cuda-baby,cuda-124m", "--profile"],
        **{part: [on, *module, "benchmarks.train_step", "--rows", part, *against, *figures[part]] for part in rows},
        "recipe": [on, sys.executable, *recipe.split(), *(["--data", str(data.resolve())] if data else [])],
    }


def run(command: list[str], limit: int, log: Any) -> str:
    """What became of a command, whose output goes to the log. All processes that it has started end with it."""
    child = None
    settings = dict(word.split("=", 1) for word in command[:1] if word.startswith("MINIGRAD"))
    given: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "start_new_session": True}
    try:
        child = subprocess.Popen(command[len(settings) :], cwd=ROOT, env={**os.environ, **settings}, **given)
        status = child.wait(limit - GRACE)
        return "done" if status == 0 else f"failed (status {status})"
    except FileNotFoundError:
        return "left out: there is no such program"
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        return f"stopped at its limit of {limit} s"
    finally:
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def call(name: str, todo: dict[str, list[str]], limits: dict[str, int], out: Path, work: Path) -> None:
    """Run the parts, one after the other; the report is written again after each, and if the call is stopped."""
    out.mkdir(parents=True, exist_ok=True)
    report, figures, log_file = (out / f"{name}.{ending}" for ending in ("md", "json", "log"))
    parts: dict[str, dict[str, Any]] = {}
    about = versions()
    with log_file.open("w+b") as log:
        for part, command in todo.items():
            print(f"{part}, at most {limits[part]} s …", flush=True)
            log.write(f"\n===== {part}: {' '.join(command)}\n".encode())
            log.flush()
            start, begun, verdict = log.tell(), time.monotonic(), "stopped from outside"
            try:
                verdict = run(command, limits[part], log)
            finally:
                log.seek(start)
                output = log.read()[-LOG_BYTES:]
                log.truncate(start)
                log.seek(start)
                log.write(output)
                text = output.decode("utf-8", "replace").replace("```", "'''")
                lines = [line.rpartition("\r")[2] for line in text.splitlines()]
                if verdict == "done" and " skipped" in "".join(lines[-1:]) and " passed" not in lines[-1]:
                    verdict = "failed (not one test ran)"
                measured = work / f"{part}.json"
                found = json.loads(measured.read_text("utf-8")) if measured.exists() else None
                seconds = round(time.monotonic() - begun)
                parts[part] = {"verdict": verdict, "seconds": seconds, "figures": found, "output": lines[-200:]}
                print(f"{part}: {verdict}, {seconds} s", flush=True)
                report.write_text(markdown(about, parts), "utf-8")
                figures.write_text(json.dumps({"versions": about, "parts": parts}, indent=1), "utf-8")
    print(f"the report is {report}")


def markdown(about: dict[str, str], parts: dict[str, dict[str, Any]]) -> str:
    """The report, for people. The output of a part that only tested is shown if it failed; else its last lines are."""
    lines = ["# What the card showed", "", "| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in about.items())]
    lines += ["", "| part | | seconds | last line |", "| --- | --- | ---: | --- |"]
    for name, part in parts.items():
        lines.append(f"| {name} | {part['verdict']} | {part['seconds']} | {''.join(part['output'][-1:])} |")
    for name, part in parts.items():
        brief = part["verdict"] == "done" and part["figures"] is None and name != "proof"
        lines += ["", f"## {name}", "", "```", *part["output"][-10 if brief else 0 :], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What only an NVIDIA card can show, in two calls.")
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--only", metavar="PART,…", help="some of the call's parts")
    parser.add_argument("--limit", action="append", default=[], metavar="PART=SECONDS", help="another limit for a part")
    parser.add_argument("--data", type=Path, metavar="FILE", help="the recipe's text (default: Tiny Shakespeare)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "cuda-report"), metavar="FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    args = parser.parse_args()
    limits, parts = dict(CALLS[args.call]), args.only.split(",") if args.only else list(CALLS[args.call])
    for part, seconds in [text.partition("=")[::2] for text in args.limit] + [(part, "60") for part in parts]:
        if part not in limits or not seconds.isdigit() or int(seconds) <= GRACE:
            parser.error(f"expected a part of {', '.join(limits)}, and more than {GRACE} s; got {part} {seconds}")
    limits |= {part: int(seconds) for part, seconds in (text.split("=") for text in args.limit)}
    if args.data and not args.data.is_file():
        parser.error(f"--data {args.data}: there is no such file")
    if "recipe" in parts and not args.data:
        print("recipe: without --data it needs the network, unless Tiny Shakespeare is in the cache. Without either it")
        print("trains on the language reference that Python carries, and its loss cannot be compared with the goal.")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script may have switched off, for children too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a machine whose time is up: the report stays
    os.environ["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site), os.environ.get("PYTHONPATH", "")])
        if (wheels := list(map(str, ROOT.glob(".whl/*.whl")))) and not args.dry_run:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
            subprocess.run([*pip, str(site), *wheels])
            sys.path.append(str(site))
        known = versions()
        print("missing:", ", ".join(name for name, version in known.items() if version == "missing") or "nothing")
        todo = {part: commands(args.data, Path(folder), known)[part] for part in parts}
        if not args.dry_run:
            call(args.call, todo, limits, args.out.resolve(), Path(folder))
        for part in parts if args.dry_run else []:
            print(f"{part}, at most {limits[part]} s: {' '.join(todo[part])}")


if __name__ == "__main__":
    main()
