"""Kernels that prove themselves on the GPU that they are about to run on.

A kernel is right or wrong on a card, and only that card can tell. So when a GPU is first used, every kernel runs there
on small arrays, and is compared with the operation that it replaces, computed by NumPy: cases.py has the arrays,
check.py the comparison. This happens in another process (run.py), since a broken kernel can do worse than return wrong
numbers: it can crash, hang, or leave the GPU in an error that its process never gets rid of.

A kernel that has passed runs from then on; one that has failed stays off, and one line says so. The answer is kept in
the user's cache folder (answers.py) under all that it depends on: the card, the driver, the libraries, and the sources
of the kernels. Where there is no answer, since the card's memory is full, say, all kernels stay off for this process.

Some numbers are compiled into a kernel, such as how many channels there are. If a call needs others than the check had,
the kernel is checked with these, in this process, before it runs.

    python -m minigrad.kernels.cuda.proof       # check all kernels now, and print a table
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from .. import graph
from . import answers
from .cases import SUBJECTS, Subject
from .check import largest_error
from .run import is_unrelated

_lock = threading.RLock()
_answers: dict[str, dict[str, str]] = {}  # by device: for "LayerNorm float32", … how it failed, or "" if it passed
_allowed: dict[Any, bool] = {}  # by kernel, device, dtype and the numbers compiled into the kernel


def allows(kernel: Any, device: str, arguments: Any) -> bool:
    """May this kernel run on this GPU for these arguments, which fit it?"""
    subject = SUBJECTS.get(kernel)
    if subject is None:  # somebody else's kernel, which nothing here can check
        return False
    key = kernel, device, _floating_dtype(arguments), subject.text_of(*arguments)
    allowed = _allowed.get(key)
    return _decide(subject, *key) if allowed is None else allowed


def passed(device: str, dtype: Any = None, *names: str) -> bool:
    """Have these kernels passed for arrays of this dtype? Without names: all kernels? Without a dtype: any?"""
    results = _answer(device) or {}
    if dtype is None:
        return "" in results.values()
    asked = [f"{name} {dtype}" for name in names] or [unit for unit in results if unit.endswith(f" {dtype}")]
    return bool(asked) and all(results.get(unit) == "" for unit in asked)


def _floating_dtype(arguments: Any) -> Any:
    for argument in arguments:
        dtype = getattr(argument, "dtype", None)
        if dtype is not None and dtype.kind in "fV":  # "V" is bfloat16
            return dtype
    return None


def _decide(subject: Subject, kernel: Any, device: str, dtype: Any, text: tuple[Any, ...]) -> bool:
    key = kernel, device, dtype, text
    with _lock:
        if key in _allowed:
            return _allowed[key]
        results = _answer(device)
        allowed = results is not None and results.get(f"{subject.name} {dtype}") == ""
        if graph.is_capturing() and (results is None or text not in subject.texts):
            return False  # nothing runs now that could be compared
        if allowed and text not in subject.texts:
            allowed = _passes(subject, device, str(dtype), text)
        _allowed[key] = allowed
        return allowed


def _passes(subject: Subject, device: str, dtype: str, text: tuple[Any, ...]) -> bool:
    try:
        largest_error(subject, dtype, [text])
    except Exception as error:
        which, words = f"{subject.name} {dtype}, compiled for {text},", f"{type(error).__name__}: {error}"
        if is_unrelated(error):
            answers.say(f"the CUDA kernel {which} could not be checked on {device}, so it stays off for now ({words})")
        else:
            answers.say_failed(which, device, words)
        return False
    return True


def _answer(device: str) -> dict[str, str] | None:
    """What the check of a GPU found. None if there has been none, and there can be none now: a step is captured."""
    if device == "cuda":
        device = f"cuda:{importlib.import_module('cupy').cuda.Device().id}"
    if device not in _answers:
        with _lock:
            if device not in _answers:
                if graph.is_capturing():
                    return None
                _answers[device] = answers.answer(int(device.partition(":")[2]))
    return _answers[device]
