"""`python -m minigrad.gradcheck`: check the engine's operations and print a table. Exits with status 1 if one fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..autograd import AutogradError
from ..kernels.cpu import get_num_threads
from . import GradcheckError, largest_error
from .cases import cases, operations


def main(arguments: Sequence[str] = ()) -> int:
    names = sorted({operation.__name__ for operation in operations()})
    parser = argparse.ArgumentParser(
        prog="python -m minigrad.gradcheck",
        description="Check the engine's operations. To check your own, call minigrad.gradcheck(fn, inputs).",
        epilog=f"The operations: {', '.join(names)}",
    )
    parser.add_argument("operation", nargs="*", help="the operations to check (default: all)")
    chosen = set(parser.parse_args(arguments).operation)
    if unknown := chosen - set(names):
        parser.error(
            f"expected operations of the engine, got {', '.join(sorted(unknown))}; the engine has {', '.join(names)}"
        )

    try:
        get_num_threads()
    except ValueError as error:  # about MINIGRAD_NUM_THREADS
        parser.error(str(error))

    failures, missing = [], set(chosen or names)
    print(f"{'operation':<14} {'case':<22} largest error (float64, against derivatives of the forward)")
    for case in cases():
        if chosen and case.operation not in chosen:
            continue
        missing.discard(case.operation)
        try:
            result = f"{largest_error(case.fn, case.inputs):.1e}"
        except (GradcheckError, AutogradError) as error:
            failures.append(f"{case.operation} {case.what}: {error}")
            result = "WRONG"
        print(f"{case.operation:<14} {case.what:<22} {result}")
    failures += [f"{name}: has no case" for name in sorted(missing)]
    print("\n".join(failures) or "every backward pass agrees with its forward")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
