"""`python -m minigrad.gradcheck`: check every operation and print a table; exits with 1 if one fails."""

from __future__ import annotations

import sys

from ..autograd import AutogradError
from . import GradcheckError, largest_error
from .cases import cases, operations


def main() -> int:
    failures = []
    missing = {operation.__name__ for operation in operations()}
    print(f"{'operation':<14} {'case':<22} largest error (float64, against central differences)")
    for case in cases():
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
    sys.exit(main())
