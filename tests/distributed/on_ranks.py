"""A program for several ranks: `python -m tests.distributed.on_ranks FOLDER MODULE …` runs checks.

Every function of the modules whose name begins with `check_` is called on all ranks with the communicator. Each rank
writes to the folder what became of each check: the error, or "". The first failure ends all ranks.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path

from minigrad.distributed import communicator


def names_of_checks(modules):
    return [f"{module.__name__}.{name}" for module in modules for name in vars(module) if name.startswith("check_")]


def main(folder, *names):
    ranks, report = communicator(), {}
    for check in names_of_checks(map(importlib.import_module, names)):
        module, _, name = check.rpartition(".")
        try:
            getattr(sys.modules[module], name)(ranks)
            report[check] = ""
        except Exception:
            report[check] = traceback.format_exc()
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(report), encoding="utf-8")
        if report[check]:
            ranks.abort(f"{check} failed")
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
