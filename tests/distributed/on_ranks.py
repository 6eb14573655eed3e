"""Run checks on several real MPI ranks: `python -m tests.distributed.on_ranks FOLDER MODULE …` under mpirun.

Every function of the modules whose name begins with `check_` is called on all ranks with the communicator. Each rank
writes to the folder what became of each check. The first failure ends all ranks.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).parent / "mpirun"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MINIGRAD_NUM_THREADS": "1"}


def names_of_checks(modules):
    return [f"{module.__name__}.{name}" for module in modules for name in vars(module) if name.startswith("check_")]


def run_on_ranks(modules, size, folder):
    """Start `size` ranks. Returns their output, and for each of them {name of a check: the error, or ""}."""
    if not MPIRUN.exists():
        pytest.skip("mpirun is not installed: pip install 'minigrad[distributed]'")
    command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", size, sys.executable, "-m", __name__]
    command = [*map(str, command), str(folder), *(module.__name__ for module in modules)]
    environment = {**os.environ, **ONE_THREAD}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    reports = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return {"output": process.stdout + process.stderr, "reports": reports}


def main(folder, *names):
    from minigrad.distributed import communicator

    ranks, report = communicator(), {}
    for check in names_of_checks(map(importlib.import_module, names)):
        module, _, name = check.rpartition(".")
        try:
            getattr(sys.modules[module], name)(ranks)
            report[check] = ""
        except BaseException:
            report[check] = traceback.format_exc()
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(report))
        if report[check]:
            ranks.abort(f"{check} failed")
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
