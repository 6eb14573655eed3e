"""Check the CUDA kernels on a GPU and print a table. Exits with 1 if one of them failed, with 2 if none could run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from . import answers, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minigrad.kernels.cuda.proof", description=__doc__)
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (default: 0)")
    parser.add_argument("--json", action="store_true", help="check in this process, and print a line of JSON for each")
    parser.add_argument("--skip", action="append", default=[], metavar="UNIT", help='leave out "LayerNorm float32", …')
    args = parser.parse_args(arguments)
    if args.json:
        run.check_all(args.device, args.skip, lambda message: print(json.dumps(message), flush=True))
        return 0
    try:
        key, _ = answers.describe(args.device)
        for name, value in key.items():
            print(f"{name}: {value}")
        print(f"\n{'kernel':<18}{'dtype':<10}{'error':>10}{'seconds':>9}  result", flush=True)
        with answers.locked(key):
            results = run.prove(args.device, print_row)
            answers.keep(key, {unit: result.failure for unit, result in results.items()})
    except Exception as problem:
        print(f"the kernels could not be checked: {problem}", file=sys.stderr)
        return 2
    failed = sum(bool(result.failure) for result in results.values())
    print(f"\n{len(results) - failed} passed, {failed} failed. Errors are shares of the largest number of a result.")
    return 1 if failed else 0


def print_row(unit: str, result: run.Result) -> None:
    kernel, dtype = unit.split()
    error = "" if result.error is None else f"{result.error:.1e}"
    print(f"{kernel:<18}{dtype:<10}{error:>10}{result.seconds:>9.2f}  {result.failure or 'passed'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
