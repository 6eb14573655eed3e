"""Contestants of the benchmarks without processes of their own.

As `benchmarks.workers.Worker`, and as strict as its pipe: what is asked and answered goes through JSON, and a method
that raises answers in the same way. What it does not have is another environment: all contestants run in this process,
with its threads and its kernels.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from typing import Any

from benchmarks import workers
from benchmarks.contestants import CONTESTANTS


class LocalWorker(workers.Worker):
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name, benchmark = module, name, importlib.import_module(module)
        make = getattr(benchmark, "contestant", None) or benchmark.Contestant
        self.contestant = make(CONTESTANTS[name][0])

    def call(self, method: str, **arguments: Any) -> Any:
        answer = workers.answer_to(self.contestant, method, json.loads(json.dumps(arguments)))
        return workers.result_of(self.name, json.loads(json.dumps(answer)))

    def close(self) -> None:
        self.contestant = None


def run_here(monkeypatch: Any, benchmark: Any, *options: object) -> tuple[str, str]:
    """What a benchmark's command prints, on standard output, and the error line that it ends with, if it fails."""
    monkeypatch.setattr(workers, "Worker", LocalWorker)
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, *map(str, options)])
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            benchmark.main()
    except SystemExit as error:
        return output.getvalue(), str(error)
    return output.getvalue(), ""
