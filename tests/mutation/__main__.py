"""Change the code in one place at a time, run the tests of that file, and list the changes that no test notices.

    python -m tests.mutation --sample 100 --seed 1           # a random sample of all mutants
    python -m tests.mutation minigrad/ops/shape.py           # all mutants of a file
    python -m tests.mutation gpt/trainer.py:120              # those of a line

Nothing is written to the source files. The tests are collected once. For each mutant the process forks, the changed
functions get their new code, and the tests run up to the first failure, the quick ones first. TARGETS says which tests
belong to a file. A survivor is to be killed by a new test, or explained in equivalent.md. With --log a run can be
stopped and continued; signals are tested, so don't start it with nohup.
"""

import argparse
import ast
import contextlib
import gc
import importlib.abc
import importlib.util
import inspect
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis
import pytest

from .mutants import Mutant, mutants

ENGINE = "engine/test_survivors engine/test_autograd engine/test_calls engine/test_hints engine/test_nn \
    engine/test_peer_bugs engine/test_random_programs gpt/test_errors"
OPS = "engine/test_survivors engine/test_calls engine/test_gradcheck engine/test_half_precision engine/test_peer_bugs \
    engine/test_random_programs engine/test_ops_elementwise engine/test_ops_indexing engine/test_ops_matmul \
    engine/test_ops_network engine/test_ops_reduce engine/test_ops_shape engine/test_kernels engine/test_autograd \
    gpt/test_errors cuda/test_fake_cupy cuda/test_bfloat16_stacks cuda/test_packed_gradients"
FORKED = "engine/test_survivors engine/test_distributed gpt/test_divergence cuda/test_training"
TARGETS = {  # the files that are changed, and the tests that run for each, besides those that have its name
    "minigrad/ops/*.py": OPS,
    "minigrad/kernels/cpu/*.py": "engine/test_survivors engine/test_kernels engine/test_kernel_choice \
        engine/test_threads engine/test_accumulate engine/test_autograd engine/test_half_precision engine/test_muon \
        engine/test_optim engine/test_random engine/test_ops_convolution engine/test_ops_network",
    "minigrad/autograd.py": ENGINE + " engine/test_viz",
    "minigrad/accumulate.py": ENGINE,
    "minigrad/node.py": ENGINE + " engine/test_viz",
    "minigrad/hooks.py": "engine/test_hooks engine/test_random_programs",
    "minigrad/in_place.py": ENGINE,
    "minigrad/modes.py": ENGINE + " engine/test_viz",
    "minigrad/nn/*.py": ENGINE
    + " engine/test_serialization engine/test_viz \
        engine/test_ops_convolution gpt/test_model",
    "minigrad/optim/*.py": "engine/test_survivors engine/test_accumulate engine/test_hints engine/test_muon \
        engine/test_optim engine/test_serialization gpt/test_errors gpt/test_precision \
        gpt/test_survivors gpt/test_training_precision cuda/test_fake_cupy cuda/test_with_kernels",
    **{f"minigrad/distributed/{name}.py": FORKED for name in ("data_parallel", "shared_loss", "workers")},
    "minigrad/distributed/*.py": "distributed/test_buckets distributed/test_control distributed/test_diloco \
        distributed/test_nccl distributed/test_ranks distributed/test_training cuda/test_distributed_on_gpu",
    "gpt/model.py": "gpt/test_survivors gpt/test_model_options gpt/test_attention_maps gpt/test_errors \
        gpt/test_evaluate gpt/test_lora gpt/test_pretrained gpt/test_sample gpt/test_seq2seq",
    "gpt/sample.py": "gpt/test_survivors gpt/test_seq2seq gpt/test_translate",
    "gpt/trainer.py": "gpt/test_survivors gpt/test_divergence gpt/test_logging gpt/test_speedrun \
        gpt/test_survival gpt/test_training_precision cuda/test_fake_cupy cuda/test_captured_forward \
        cuda/test_graph",
}
ROOT = Path(__file__).parents[2]
OPTIONS = "-p no:cacheprovider -p no:terminal -o addopts= -W ignore::pytest.PytestAssertRewriteWarning -m".split()
OPTIONS.append("not parity")
PATIENCE = 10  # seconds that any test may take, besides 10 times those it takes without a mutant


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


def suite_of(path: Path) -> list[str]:
    """The tests of a file, those that have its name first."""
    pattern = next(pattern for pattern in TARGETS if path.match(pattern))
    files = [f"tests/{name}.py" for name in TARGETS[pattern].split()]
    own = [f"tests/{folder}/test_{name}.py" for folder in ("engine", "gpt") for name in (f"ops_{path.stem}", path.stem)]
    return list(dict.fromkeys(file for file in [*own, *files] if (ROOT / file).exists()))


class Quick:
    """A plugin of pytest that runs the quick tests first, and ends the process at a test that hangs.

    times: how many seconds each test takes without a mutant. word: tests with this word in their name, or in that of
    their file, come before all others.
    """

    def __init__(self, times: dict[str, float], word: str = "") -> None:
        self.times, self.word = times, word

    def pytest_configure(self) -> None:
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # a failure need not be made small
        hypothesis.settings.register_profile("mutants", hypothesis.settings.get_profile("minigrad"), phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        return self.run(session.items)

    def run(self, items: list[pytest.Item]) -> bool:
        """Run tests up to the first that fails. Returns whether all passed."""
        items = sorted(items, key=lambda item: (self.word not in item.nodeid, self.times.get(item.nodeid, 0)))
        for item, following in zip(items, [*items[1:], None], strict=True):
            signal.alarm(PATIENCE + int(10 * self.times.get(item.nodeid, 60)))
            began = time.monotonic()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            self.times.setdefault(item.nodeid, time.monotonic() - began)
            if item.session.testsfailed:
                return False
        return True


class Runner(Quick):
    """Once the tests are collected, it runs those of each mutant in a fork, and calls `result(mutant, survived)`."""

    def __init__(self, found: list[Mutant], result: Callable[[Mutant, bool], None]) -> None:
        super().__init__({})
        self.found, self.result = found, result

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            items.setdefault(item.nodeid.partition("::")[0], []).append(item)
        for mutant in self.found:
            files = suite_of(mutant.path)
            for file in files:
                self.measure(items[file])
            self.word = mutant.path.stem
            self.result(mutant, self.passes(mutant, [item for file in files for item in items[file]]))
        return True

    def measure(self, items: list[pytest.Item]) -> None:
        """Find out how long the tests of a file take, if that is not known."""
        if items[0].nodeid in self.times:
            return
        with tempfile.NamedTemporaryFile("r") as file:
            if not in_fork(lambda: self.run(items) and bool(Path(file.name).write_text(json.dumps(self.times)))):
                raise RuntimeError(f"{items[0].nodeid.partition('::')[0]} fails without a mutant")
            self.times |= json.load(file)

    def passes(self, mutant: Mutant, items: list[pytest.Item]) -> bool:
        """Do these tests pass with a mutant?

        If it changes functions, they get its code. If it changes what the import of the file does, such as a constant,
        everything is imported again.
        """
        functions = changed_functions(mutant)

        def with_changed_functions() -> bool:
            for function, code in functions or []:
                function.__code__ = code
            return self.run(items)

        def imported_again() -> bool:
            for name in [name for name in sys.modules if name.partition(".")[0] in ("minigrad", "gpt", "tests")]:
                del sys.modules[name]
            sys.meta_path.insert(0, Hook(mutant.path, mutant.changed()))
            return pytest.main([*OPTIONS, *suite_of(mutant.path)], plugins=[Quick(self.times, self.word)]) == 0

        return in_fork(imported_again if functions is None else with_changed_functions)


def changed_functions(mutant: Mutant) -> list[tuple[Any, CodeType]] | None:
    """The functions that a mutant changes, with their new code; None if it changes something outside functions."""
    path = ROOT / mutant.path
    old, rest = functions_of(compile(mutant.tree, path, "exec"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of what cannot work, such as 1[0]
        new, new_rest = functions_of(compile(mutant.changed(), path, "exec"))
    codes = {name: code for name, code in new.items() if code != old[name]}
    living = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__code__.co_filename == str(path)]
    found = [(f, codes[key_of(f.__code__)]) for f in living if key_of(f.__code__) in codes]
    exchangeable = all(len(f.__code__.co_freevars) == len(code.co_freevars) for f, code in found)
    outer = {name for name in codes if "<locals>" not in name[0]}  # those inside may not exist yet
    all_found = outer <= {key_of(f.__code__) for f, _ in found}
    return found if rest == new_rest and all_found and exchangeable else None


def functions_of(code: CodeType) -> tuple[dict[Any, CodeType], list[Any]]:
    """The code of a module's functions and methods, and what else it does when it is imported."""
    functions: dict[Any, CodeType] = {}
    rest: list[Any] = [code.co_code, code.co_names]
    for constant in code.co_consts:
        if not isinstance(constant, CodeType) or constant.co_name.startswith("<"):
            rest.append((type(constant), constant))
        elif constant.co_flags & inspect.CO_OPTIMIZED:
            functions |= {key_of(constant): constant, **functions_of(constant)[0]}
        else:  # a class
            more, inside = functions_of(constant)
            functions |= more
            rest += inside
    return functions, rest


def key_of(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def in_fork(work: Callable[[], bool]) -> bool:
    """What `work` returns in a new process that prints nothing; False if the process ends in another way."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        signal.alarm(PATIENCE)  # until the first test
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # with what its tests left running
    return os.waitstatus_to_exitcode(status) == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="files, or FILE:LINE; without any, all of TARGETS")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--log", type=Path, help="add the results to this file; mutants that it has are left out")
    options = parser.parse_args()
    os.chdir(ROOT)
    names = options.files or sorted({str(path) for pattern in TARGETS for path in Path().glob(pattern)})
    found: list[Mutant] = []
    for name in names:
        file, _, line = name.partition(":")
        found += [mutant for mutant in mutants(Path(file)) if not line or mutant.line == int(line)]
    if options.sample:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    if options.log and options.log.exists():
        done = {line.partition(" ")[2] for line in options.log.read_text(encoding="utf-8").splitlines()}
        found = [mutant for mutant in found if str(mutant) not in done]
    if options.list:
        print(*found, sep="\n")
        return

    killed, survivors = [], []
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as screen, tempfile.TemporaryDirectory() as folder:

        def result(mutant: Mutant, survived: bool) -> None:
            (survivors if survived else killed).append(mutant)
            line = f"{'SURVIVED' if survived else 'killed'} {mutant}"
            print(line, file=screen)
            if options.log:
                with options.log.open("a", encoding="utf-8") as log:
                    print(line, file=log)

        files = {file for mutant in found for file in suite_of(mutant.path)}
        pytest.main([*OPTIONS, f"--basetemp={folder}/tests", *sorted(files)], plugins=[Runner(found, result)])
        print(f"{len(found)} mutants, {len(killed)} killed, {len(survivors)} survived", file=screen)
        print(*survivors, sep="\n", file=screen)


if __name__ == "__main__":
    main()
