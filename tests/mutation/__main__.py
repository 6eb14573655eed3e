"""Change the code in one place at a time, run the tests of that file, and list the changes that no test notices.

    python -m tests.mutation --sample 100 --seed 1           # a random sample of all mutants
    python -m tests.mutation minigrad/ops/shape.py           # all mutants of a file
    python -m tests.mutation gpt/trainer.py:120              # those of a line

Nothing is written to the source files: each mutant is a fork of this process with an import hook, which compiles the
changed file. TARGETS says which tests belong to a file. A survivor is to be killed by a new test, or explained in
equivalent.md.
"""

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from .mutants import Mutant, mutants

ENGINE = "engine/test_survivors engine/test_random_programs engine/test_peer_bugs engine/test_calls engine/test_nn"
OPS = (
    "engine/test_survivors engine/test_calls engine/test_half_precision engine/test_random_programs "
    "engine/test_peer_bugs engine/test_gradcheck cuda/test_fake_cupy"
)
NETWORK = ["activation", "attention", "dropout", "embedding", "loss", "normalization", "precision", "softmax"]
TARGETS = {  # the files that are changed, and the tests that run for each, besides those that have its name
    **{f"minigrad/ops/{name}.py": OPS + " engine/test_ops_network" for name in NETWORK},
    "minigrad/ops/*.py": OPS,
    "minigrad/kernels/cpu/*.py": "engine/test_survivors engine/test_kernels engine/test_threads engine/test_optim "
    "engine/test_kernel_choice engine/test_muon engine/test_half_precision",
    "minigrad/autograd.py": ENGINE + " engine/test_viz",
    "minigrad/accumulate.py": "engine/test_autograd " + ENGINE,
    "minigrad/node.py": "engine/test_autograd engine/test_viz " + ENGINE,
    "minigrad/hooks.py": "engine/test_hooks engine/test_random_programs",
    "minigrad/in_place.py": "engine/test_autograd " + ENGINE,
    "minigrad/modes.py": "engine/test_autograd engine/test_viz " + ENGINE,
    "minigrad/nn/*.py": ENGINE + " engine/test_autograd engine/test_viz gpt/test_model",
    "minigrad/optim/*.py": "engine/test_optim engine/test_muon gpt/test_training_precision gpt/test_survivors "
    "gpt/test_trainer cuda/test_fake_cupy",
    "minigrad/distributed/*.py": "distributed/test_buckets distributed/test_training engine/test_distributed "
    "engine/test_survivors gpt/test_trainer",
    "gpt/model.py": "gpt/test_model gpt/test_survivors gpt/test_model_options gpt/test_sample gpt/test_pretrained "
    "gpt/test_attention_maps gpt/test_trainer",
    "gpt/sample.py": "gpt/test_sample gpt/test_survivors gpt/test_translate",
    "gpt/trainer.py": "gpt/test_trainer gpt/test_survivors gpt/test_training_precision gpt/test_speedrun",
}
ROOT = Path(__file__).parents[2]


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from the changed tree."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path, self.tree = path, tree
        self.name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != self.name:
            return None
        inside = [str(ROOT / self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, ROOT / self.path, loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of what cannot work, such as 1[0]
            code = compile(self.tree, ROOT / self.path, "exec")
        exec(code, module.__dict__)


class WithoutShrinking:
    """A failure is enough: it need not be made small."""

    def pytest_configure(self) -> None:
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", hypothesis.settings.get_profile("minigrad"), phases=phases)
        hypothesis.settings.load_profile("mutants")


def suite_of(path: Path) -> list[str]:
    """The tests of a file, those that have its name first."""
    pattern = next(pattern for pattern in TARGETS if path.match(pattern))
    files = [f"tests/{name}.py" for name in TARGETS[pattern].split()]
    own = [f"tests/{folder}/test_{name}.py" for folder in ("engine", "gpt") for name in (f"ops_{path.stem}", path.stem)]
    return list(dict.fromkeys(file for file in [*own, *files] if (ROOT / file).exists()))


def start(path: Path, tree: ast.Module, seconds: float) -> int:
    """Run the tests of a file in a new process, with the changed tree in its place. Returns the process's id."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    signal.alarm(int(seconds) + 1)  # which ends the process
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.meta_path.insert(0, Hook(path, tree))
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not parity",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    os._exit(pytest.main([*options, *suite_of(path)], plugins=[WithoutShrinking()]))


def finish(pid: int) -> bool:
    """Wait for a process of `start`, end what it left running, and say whether its tests passed."""
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="files, or FILE:LINE; without any, all of TARGETS")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()
    os.chdir(ROOT)
    names = options.files or [str(path) for pattern in TARGETS for path in sorted(Path().glob(pattern))]
    found: list[Mutant] = []
    for name in names:
        file, _, line = name.partition(":")
        found += [mutant for mutant in mutants(Path(file)) if not line or mutant.line == int(line)]
    if options.sample:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
        found.sort(key=lambda mutant: (str(mutant.path), mutant.line))
    if options.list:
        print(*found, sep="\n")
        return

    seconds: dict[frozenset[str], float] = {}  # what a set of tests takes without a mutant
    survivors = []
    for number, mutant in enumerate(found, start=1):
        tests = frozenset(suite_of(mutant.path))
        if tests not in seconds:
            began = time.monotonic()
            unchanged = ast.parse(mutant.path.read_text(encoding="utf-8"))
            if not finish(start(mutant.path, unchanged, 1800)):
                sys.exit(f"the tests of {mutant.path} fail without a mutant")
            seconds[tests] = time.monotonic() - began
        survived = finish(start(mutant.path, mutant.changed(), 3 * seconds[tests] + 20))
        print(f"{number}/{len(found)} {'SURVIVED' if survived else 'killed'} {mutant}", flush=True)
        survivors += [mutant] * survived
    print(
        f"\n{len(found)} mutants, {len(found) - len(survivors)} killed, {len(survivors)} survived", *survivors, sep="\n"
    )


if __name__ == "__main__":
    main()
