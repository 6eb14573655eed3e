"""The mutants of a few lines, and that a changed file takes the place of the real one."""

import ast
import importlib
import sys
from pathlib import Path

import numpy as np

from tests.mutation.__main__ import ROOT, TARGETS, Hook, suite_of
from tests.mutation.mutants import mutants


def changes(source, tmp_path):
    path = tmp_path / "source.py"
    path.write_text(source, encoding="utf-8")
    found = list(mutants(path))
    for mutant in found:
        assert ast.unparse(mutant.changed()) != ast.unparse(ast.parse(source))
        compile(mutant.changed(), "source.py", "exec")
    return [f"{mutant.line}: {str(mutant).partition(' → ')[2]}" for mutant in found]


def test_one_place_is_changed_at_a_time(tmp_path):
    source = (
        "def f(x):\n    y = x.T - 2\n    y += 1\n    if y < 3 and -x:\n        print(y)\n    return y.sum(axis=-1)\n"
    )
    assert changes(source, tmp_path) == [
        "2: x.T + 2", "2: x.T", "2: x", "2: 3",
        "3: y = 1", "3: y -= 1", "3: pass", "3: 2",
        "4: if True:", "4: if False:", "4: y < 3 or -x", "4: -x", "4: y < 3", "4: y <= 3", "4: y > 3", "4: 4",
        "4: x", "5: pass", "6: axis=0", "6: 1", "6: 2",
    ]  # fmt: skip


def test_annotations_docstrings_and_messages_are_left_alone(tmp_path):
    source = 'def f(x: "1 + 1") -> int | None:\n    """1 + 1"""\n    raise ValueError(f"{x + 1}", 2)\n'
    assert changes(source, tmp_path) == ["3: pass"]


def test_a_changed_file_is_imported_in_place_of_the_real_one(monkeypatch):
    path = Path("minigrad/ops/shape.py")
    mutant = next(mutant for mutant in mutants(ROOT / path) if str(mutant).endswith(" → g.shape != shape"))
    before = sys.modules.pop("minigrad.ops.shape")
    monkeypatch.setattr(sys, "meta_path", [Hook(path, mutant.changed()), *sys.meta_path])
    try:
        changed = importlib.import_module("minigrad.ops.shape")
    finally:
        sys.modules["minigrad.ops.shape"] = before
        sys.modules["minigrad.ops"].shape = before
    g = np.ones((2, 3))
    assert before.sum_to(g, (2, 3)) is g
    assert changed.sum_to(g, (2, 3)) is not g


def test_every_file_has_tests():
    for pattern, names in TARGETS.items():
        assert list(ROOT.glob(pattern))
        assert all((ROOT / f"tests/{name}.py").exists() for name in names.split())
    assert suite_of(Path("minigrad/ops/shape.py"))[0] == "tests/engine/test_ops_shape.py"
