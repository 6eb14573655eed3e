"""A fake CuPy, for machines without a GPU: after `install(monkeypatch)`, `import cupy` finds it.

Its arrays hold NumPy arrays but are not NumPy arrays. It is at least as strict as CuPy 14, whose source it follows:

- an array becomes a NumPy array only through `.get()`, `asnumpy` or `.item()`, and no operation mixes the two;
- what makes the host wait for the GPU (`get`, `item`, `float`, `bool`, `nonzero`, boolean indices) is counted in
  `synchronizations`, and raises inside `cupyx.allow_synchronize(False)`, as it does in CuPy;
- only the functions, methods and keyword arguments that are listed here exist; tests/cuda/test_fake_cupy.py compares
  the lists with CuPy where it is installed;
- a stream that captures runs nothing: the work given to it is put on a tape, which `Graph.launch` plays on the same
  memory. What makes the host wait, or copies arrays to the GPU, raises during a capture;
- results without axes are arrays, not scalars; integer arrays as indices wrap around; new arrays are made on the
  current GPU, of which there are two; half precision is summed in single; there is no long double.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

GPUS = 2
SCALARS = (bool, int, float, complex, np.generic)
DTYPES = "?bBhHiIlLqQefdFDE"  # the last is bfloat16

synchronizations = 0
_may_synchronize = True


class OfThread(threading.local):
    """What CuPy keeps for each thread."""

    def __init__(self) -> None:
        self.gpu = 0  # the current GPU
        self.streams = [Stream(null=True)]  # the last is the current one


cupy: Any = types.ModuleType("cupy")
cupyx: Any = types.ModuleType("cupyx")


def install(monkeypatch: Any) -> None:
    """Let `import cupy` and `import cupyx` find the fake until the test ends."""
    global synchronizations, _capturing, _tape, _allocate_pinned
    synchronizations = _of_thread.gpu = 0
    _capturing = _tape = _allocate_pinned = None
    for module in (cupy, cupyx, cupyx.scipy, cupyx.scipy.special):
        monkeypatch.setitem(sys.modules, module.__name__, module)


class DeviceSynchronized(RuntimeError):
    """The host would wait for the GPU where `allow_synchronize(False)` forbids it."""


def _synchronize() -> None:
    global synchronizations
    if _capturing is not None:
        raise CaptureError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
    synchronizations += 1
    if not _may_synchronize:
        raise DeviceSynchronized("Device synchronization was detected while disallowed.")


@contextlib.contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    global _may_synchronize
    before, _may_synchronize = _may_synchronize, allow
    try:
        yield
    finally:
        _may_synchronize = before


# Streams, and what they capture


class CaptureError(RuntimeError):
    """Something was done that a stream cannot capture."""


_capturing: Stream | None = None
_tape: list[Callable[[], Any]] | None = None  # of the capture; None inside of what is on it as a whole


def is_capturing() -> bool:
    """Does a stream capture now?"""
    return _capturing is not None


def submit(work: Callable[[], Any]) -> None:
    """Give work to the current stream: it runs, or is captured."""
    if _tape is None:
        work()
    else:
        _tape.append(work)


def _in_stream(function: Callable[..., Any], writes_to: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function as work for the current stream.

    What writes to an array that is there (`writes_to` says to which) is put on the tape and not run. What makes a new
    array runs, on whatever the memory holds, since its shape is asked for; a replay runs it again into that array.
    The pool of a capture gives memory that is free again to the next who asks, so in a replay a new array of `empty`
    holds what earlier work has left there.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _tape
        if _tape is None:
            return function(*args, **kwargs)
        written = None if writes_to is None else writes_to(*args, **kwargs)
        if written is not None:
            _tape.append(lambda: function(*args, **kwargs))
            return written
        tape, _tape = _tape, None
        try:
            result = function(*args, **kwargs)
        finally:
            _tape = tape
        if isinstance(result, ndarray) and result.base is None and not any(result is x for x in args):
            makes_empty, from_pool_of_capture = function.__name__.startswith("empty"), _pools[-1] is _pool_of_capture

            def again() -> None:
                if not makes_empty:
                    result._host[...] = function(*args, **kwargs)._host
                elif from_pool_of_capture:
                    result._host.reshape(-1).view(np.uint8)[...] = 0xFF  # NaN, or -1

            tape.append(again)  # it also keeps the memory of the result, as the pool of a capture does
        return result

    return call


class Graph:
    """As cupy.cuda.Graph."""

    def __init__(self, tape: list[Callable[[], Any]]) -> None:
        self.tape = tape

    def launch(self, stream: Any = None) -> None:
        for work in self.tape:
            work()


_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


def streams() -> list[Stream]:
    """All streams that there are."""
    return list(_streams)


class Stream:
    """As cupy.cuda.Stream."""

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.null, self.non_blocking, self.waits_for = null, non_blocking, []
        self.ptr = 0 if null else id(self)
        _streams.add(self)

    def __enter__(self) -> Stream:
        _of_thread.streams.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _of_thread.streams.pop()

    def record(self, event: Any = None) -> Any:
        if self is _capturing:
            raise CaptureError("an event of a stream that captures")
        event = event or Event()
        event.stream = self
        return event

    def wait_event(self, event: Any) -> None:
        self.waits_for.append(event.stream)

    def synchronize(self) -> None:
        _synchronize()

    def begin_capture(self, mode: Any = None) -> None:
        global _capturing, _tape, _pool_of_capture
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        assert _of_thread.streams[-1] is self, "what is to be captured would go to another stream"
        _capturing, _tape, _pool_of_capture = self, [], _pools[-1]

    def end_capture(self) -> Graph:
        global _capturing, _tape
        assert _capturing is self
        assert _tape is not None
        graph, _capturing, _tape = Graph(_tape), None, None
        return graph


class Event:
    """As cupy.cuda.Event. What a stream is given runs at once here, so that every recorded event is done."""

    done = True

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream: Stream | None = None


_of_thread = OfThread()


class MemoryPointer(types.SimpleNamespace):
    """As cupy.cuda.MemoryPointer: an address in `mem`, the bytes of a NumPy array, which it keeps."""

    @property
    def ptr(self) -> int:
        return self.mem.ctypes.data + self.offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(mem=self.mem, offset=self.offset + offset)


class MemoryPool:
    """As cupy.cuda.MemoryPool, in name: memory here is NumPy's, and a graph's tape keeps what the graph needs."""

    def __init__(self, allocator: Any = None) -> None:
        self.allocator = allocator

    def malloc(self, size: int) -> Any:
        raise NotImplementedError


_pools: list[Any] = [None]  # that memory comes from; None is the default pool
_pool_of_capture: MemoryPool | None = None  # that was in use when the capture began


@contextlib.contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    _pools.append(allocator.__self__)
    try:
        yield
    finally:
        _pools.pop()


_allocate_pinned: Any = None


def set_pinned_memory_allocator(allocator: Any) -> None:
    global _allocate_pinned
    _allocate_pinned = allocator


def _upload(host: np.ndarray) -> np.ndarray:
    """Numbers on their way to the GPU, through pinned memory; CuPy fills arrays without axes instead."""
    if host.ndim:
        if _allocate_pinned is not None:
            _allocate_pinned(host.nbytes)
        if _capturing is not None:
            raise CaptureError("replays would read host memory that is no longer what it was")
    return host


# Arrays


def _host(value: Any) -> Any:
    """The NumPy array inside an argument of an operation, on the current GPU; scalars as they are."""
    if isinstance(value, ndarray):
        if value.device.id != _of_thread.gpu:
            raise ValueError(
                f"The device where the array resides ({value.device.id}) is different from the current device "
                f"({_of_thread.gpu}). Peer access is unavailable between these devices."
            )
        return value._host
    if isinstance(value, SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _array(host: Any, base: ndarray | None = None) -> Any:
    """An array of the GPU around a NumPy array; a view, if it shares the memory of `base`."""
    if isinstance(host, tuple):
        return tuple(_array(part) for part in host)
    host = np.asarray(host)
    if host.dtype.char not in DTYPES:
        raise ValueError(f"Unsupported dtype {host.dtype}")
    made = object.__new__(ndarray)
    made._host = host
    made.base = None if base is None else base if base.base is None else base.base
    made._gpu = _of_thread.gpu if base is None else base._gpu
    return made


class ndarray:
    """As cupy.ndarray. The methods that NumPy's arrays have too are added below, from the list METHODS."""

    __slots__ = ("_host", "base", "_gpu")
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100
    _host: np.ndarray
    base: Any
    _gpu: int

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        ours = getattr(cupy, function.__name__, None)
        ours = ours if method == "__call__" else getattr(ours, method, None)
        if ours is None:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return ours(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = getattr(cupy, function.__name__, None)
        return NotImplemented if ours is None else ours(*args, **kwargs)

    # What it is

    @property
    def data(self) -> Any:
        flat = self._host.reshape(-1).view(np.uint8) if self.flags.c_contiguous else self._host
        return MemoryPointer(mem=flat, offset=0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def dtype(self) -> Any:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def flags(self) -> Any:
        return self._host.flags

    @property
    def device(self) -> Device:
        return Device(self._gpu)

    @property
    def T(self) -> Any:
        return _array(self._host.T, base=self)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # To the host, which waits for it

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        _synchronize()
        return self._host.copy(order)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous.")
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    # Indices

    def __getitem__(self, index: Any) -> Any:
        parts = self._index(index)
        if any(isinstance(part, np.ndarray) for part in parts):
            _host(self)
            return _array(self._host[parts])
        return _array(self._host[(*parts, *([] if Ellipsis in parts else [Ellipsis]))], base=self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _host(self)
        self._host[self._index(index)] = value if isinstance(value, np.ndarray) else _host(value)

    def _index(self, index: Any) -> tuple[Any, ...]:
        """An index for the NumPy array inside, its integer arrays wrapped around."""
        parts = [
            part._host if isinstance(part, ndarray) else np.asarray(part) if isinstance(part, list) else part
            for part in (index if isinstance(index, tuple) else (index,))
        ]
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in parts):
            _synchronize()  # to learn how many elements there are
        parts = [part.astype(np.int32) if isinstance(part, np.ndarray) and not part.size else part for part in parts]
        widths = [_width(part) for part in parts]
        if ... not in [part if part is Ellipsis else None for part in parts]:
            parts, widths = [*parts, ...], [*widths, 0]
        axis, rest = 0, self.ndim - sum(widths)
        for i, (part, width) in enumerate(zip(parts, widths, strict=True)):
            if isinstance(part, np.ndarray) and part.dtype.kind in "iu":
                parts[i] = part % max(self.shape[axis], 1)
            axis += rest if part is Ellipsis else width
        return tuple(parts)


def _width(part: Any) -> int:
    """How many axes a part of an index stands for, an ellipsis aside."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1


# Elementwise functions and operators


class ufunc:
    """As cupy.ufunc: of NumPy's keyword arguments it knows `out`, `dtype` and `casting`."""

    def __init__(self, function: np.ufunc) -> None:
        self.function, self.__name__, self.nin = function, function.__name__, function.nin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        *inputs, out = args if len(args) > self.nin else (*args, kwargs.pop("out", None))
        allowed = {name: kwargs.pop(name) for name in ("dtype", "casting") if name in kwargs}
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        with np.errstate(all="ignore"):  # a GPU does not warn
            if out is None:
                return _array(self.function(*map(_host, inputs), **allowed))
            if not isinstance(out, ndarray):
                raise TypeError("Output arguments type must be cupy.ndarray")
            self.function(*map(_host, inputs), out=_host(out), **allowed)
            return out

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("CuPy subtracts running totals, which loses digits: do without")

    def at(self, *args: Any) -> Any:
        raise NotImplementedError("CuPy adds in another order every time: do without")


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    def operator(x: ndarray, *others: Any) -> Any:
        if others and not isinstance(others[0], ndarray) and getattr(others[0], "__array_ufunc__", 0) is None:
            return NotImplemented
        return getattr(cupy, name)(*others, x) if reflected else getattr(cupy, name)(x, *others)

    return operator


def _in_place(name: str) -> Callable[..., Any]:
    return lambda x, other: getattr(cupy, name)(x, other, x)


OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
for _short, _name in OPERATORS.items():
    setattr(ndarray, f"__{_short}__", _operator(_name))
    setattr(ndarray, f"__r{_short}__", _operator(_name, reflected=True))
    if _short != "matmul":
        setattr(ndarray, f"__i{_short}__", _in_place(_name))
COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
UNARY = {"neg": "negative", "abs": "absolute", "invert": "invert"}
for _short, _name in (COMPARISONS | UNARY).items():
    setattr(ndarray, f"__{_short}__", _operator(_name))

UFUNCS = (
    "exp log sqrt tanh sin cos sign maximum minimum isfinite isnan square reciprocal divide logical_and logical_or "
    "logical_not copysign rint floor ceil hypot log1p expm1 exp2 log2"
).split()
for _name in {*UFUNCS, *OPERATORS.values(), *COMPARISONS.values(), *UNARY.values()} - {"matmul"}:
    setattr(cupy, _name, ufunc(getattr(np, _name)))
cupy.abs = cupy.absolute


# Functions and methods, with the parameters that CuPy's have. What NumPy's function of that name does, these do.

FUNCTIONS = {
    "all": "(a, axis=None, out=None, keepdims=False)",
    "any": "(a, axis=None, out=None, keepdims=False)",
    "arange": "(start, stop=None, step=1, dtype=None)",
    "argmax": "(a, axis=None, dtype=None, out=None, keepdims=False)",
    "argsort": "(a, axis=-1, kind=None)",
    "ascontiguousarray": "(a, dtype=None)",
    "atleast_1d": "(*arys)",
    "broadcast_to": "(array, shape)",
    "clip": "(a, a_min, a_max, out=None)",
    "concatenate": "(tup, axis=0, out=None, *, dtype=None, casting='same_kind')",
    "cumsum": "(a, axis=None, dtype=None, out=None)",
    "dot": "(a, b, out=None)",
    "empty": "(shape, dtype=float, order='C')",
    "empty_like": "(prototype, dtype=None, order='K', subok=None, shape=None)",
    "expand_dims": "(a, axis)",
    "eye": "(N, M=None, k=0, dtype=float, order='C')",
    "full": "(shape, fill_value, dtype=None, order='C')",
    "linspace": "(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0)",
    "max": "(a, axis=None, out=None, keepdims=False)",
    "mean": "(a, axis=None, dtype=None, out=None, keepdims=False)",
    "min": "(a, axis=None, out=None, keepdims=False)",
    "ndim": "(a)",
    "ones": "(shape, dtype=float, order='C')",
    "ones_like": "(a, dtype=None, order='K', subok=None, shape=None)",
    "searchsorted": "(a, v, side='left', sorter=None)",
    "shape": "(a)",
    "stack": "(tup, axis=0, out=None, *, dtype=None, casting='same_kind')",
    "sum": "(a, axis=None, dtype=None, out=None, keepdims=False)",
    "swapaxes": "(a, axis1, axis2)",
    "take": "(a, indices, axis=None, out=None)",
    "transpose": "(a, axes=None)",
    "tril": "(m, k=0)",
    "triu": "(m, k=0)",
    "vdot": "(a, b)",
    "zeros": "(shape, dtype=float, order='C')",
    "zeros_like": "(a, dtype=None, order='K', subok=None, shape=None)",
}
METHODS = {
    "all": "(self, axis=None, out=None, keepdims=False)",
    "any": "(self, axis=None, out=None, keepdims=False)",
    "argmax": "(self, axis=None, out=None, dtype=None, keepdims=False)",
    "argsort": "(self, axis=-1, kind=None)",
    "clip": "(self, min=None, max=None, out=None)",
    "copy": "(self, order='C')",
    "cumsum": "(self, axis=None, dtype=None, out=None)",
    "flatten": "(self, order='C')",
    "max": "(self, axis=None, out=None, keepdims=False)",
    "mean": "(self, axis=None, dtype=None, out=None, keepdims=False)",
    "min": "(self, axis=None, out=None, keepdims=False)",
    "prod": "(self, axis=None, dtype=None, out=None, keepdims=None)",
    "ravel": "(self, order='C')",
    "reshape": "(self, *shape, order='C', copy=None)",
    "squeeze": "(self, axis=None)",
    "sum": "(self, axis=None, dtype=None, out=None, keepdims=False)",
    "swapaxes": "(self, axis1, axis2)",
    "take": "(self, indices, axis=None, out=None)",
    "transpose": "(self, *axes)",
    "var": "(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False)",
}
VIEWS = "reshape ravel squeeze swapaxes transpose broadcast_to expand_dims".split()
HOST_RESULTS = "shape ndim".split()


def _like_numpy(name: str, parameters: str, owner: Any) -> Callable[..., Any]:
    """NumPy's function, or method, of this name, for arrays of the GPU, with these parameters and no others."""
    scope: dict[str, Any] = {}
    exec(f"def {name}{parameters}: pass", {"float": float}, scope)  # the signature, as Python understands it
    signature = inspect.signature(scope[name])

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        out = given.pop("out", None)
        owner_array: Any = args[0] if args else None
        if name == "argsort" and given.get("kind") not in (None, "stable"):
            raise ValueError("kind can only be None or 'stable'")
        if name in ("sum", "cumsum") and "dtype" not in given and owner_array.dtype == np.float16:
            return call(*args, **kwargs, dtype=np.float32).astype(np.float16)  # added up in single precision
        values = {key: _deep_host(value) if key not in ("shape",) else value for key, value in given.items()}
        with np.errstate(all="ignore"):
            result = _call(name, owner, signature, values)
        if name in HOST_RESULTS:
            return result
        if out is not None:
            out[...] = _array(result)
            return out
        is_view = name in VIEWS and (np.may_share_memory(result, owner_array._host) or not result.size)
        return _array(result, base=owner_array if is_view else None)

    call.__name__, call.__signature__ = name, signature  # type: ignore[attr-defined]
    call = _in_stream(call, writes_to=lambda *args, out=None, **kwargs: out)
    return call


def _deep_host(value: Any) -> Any:
    """Arrays of the GPU, alone or in a list, as the NumPy arrays inside; settings, such as axes, as they are."""
    if isinstance(value, (list, tuple)) and any(isinstance(part, (ndarray, np.ndarray)) for part in value):
        return [_host(part) for part in value]
    return _host(value) if isinstance(value, (ndarray, np.ndarray)) else value


def _call(name: str, owner: Any, signature: inspect.Signature, values: dict[str, Any]) -> Any:
    positional, named = [], {}
    for key, parameter in signature.parameters.items():
        if key not in values:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            positional += values[key]
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY or len(positional) < _before(signature, key):
            named[key] = values[key]
        else:
            positional.append(values[key])
    return getattr(owner, name)(*positional, **named)


def _before(signature: inspect.Signature, key: str) -> int:
    """How many parameters come before this one; an earlier one left out forces the later ones to be named."""
    return list(signature.parameters).index(key)


def _from_allocator(make_empty: Callable[..., Any]) -> Callable[..., Any]:
    """`empty` and its like, whose memory comes from the allocator in use if that is a function of the program's own."""

    @functools.wraps(make_empty)
    def call(*args: Any, **kwargs: Any) -> Any:
        made = make_empty(*args, **kwargs)
        allocator = _pools[-1]
        if allocator is not None and not isinstance(allocator, MemoryPool):
            pointer = allocator.malloc(made.nbytes)
            own = np.ndarray(made.shape, made.dtype, pointer.mem, pointer.offset, made.strides)
            made = _array(own)
        return made

    return call


for _name, _parameters in FUNCTIONS.items():
    setattr(cupy, _name, _like_numpy(_name, _parameters, np))
cupy.empty, cupy.empty_like = _from_allocator(cupy.empty), _from_allocator(cupy.empty_like)
for _name, _parameters in METHODS.items():
    setattr(ndarray, _name, _like_numpy(_name, _parameters, np.ndarray))


# Functions and methods that differ from NumPy's


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    return _array(_upload(np.array(a, dtype)))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    return _array(np.array(obj._host, dtype) if isinstance(obj, ndarray) else _upload(np.array(obj, dtype)))


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None and y is None:
        return nonzero(condition)
    chosen = np.where(_host(condition.astype("?", copy=False)), _host(x), _host(y))
    return _array(chosen.astype("f4") if str(chosen.dtype) == "bfloat16" else chosen)  # CuPy has no loop for it


def nonzero(a: Any) -> Any:
    _synchronize()
    return _array(np.nonzero(_host(a)))


def flatnonzero(a: Any) -> Any:
    return nonzero(a.ravel())[0]


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if isinstance(src, np.ndarray) and src.size != 1:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    source = src if isinstance(src, np.ndarray) else _host(src)
    np.copyto(_host(dst), source, casting=casting, where=True if where is None else _host(where))  # type: ignore[arg-type]


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    for operand in (a, b):
        if not isinstance(operand, ndarray):
            raise TypeError(f"Unsupported type {type(operand)}")
    if max(a.ndim, b.ndim) > 2 and a.size and b.size and "bfloat16" in (str(a.dtype), str(b.dtype)):
        raise TypeError("CuPy multiplies stacks of bfloat16 matrices as integers, and its kernel does not compile")
    with np.errstate(all="ignore"):
        wide = [_host(x).astype(np.promote_types(x.dtype, "f") if x.dtype.char == "e" else x.dtype) for x in (a, b)]
        product = _array(np.matmul(*wide).astype(np.promote_types(a.dtype, b.dtype), copy=False))
    if out is None:
        return product
    out[...] = product
    return out


def astype(
    self: Any, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
) -> ndarray:
    if not copy and self.dtype == np.dtype(dtype):
        return self
    with np.errstate(all="ignore"):
        return _array(_host(self).astype(dtype, order))


def view(self: Any, dtype: Any = None, type: Any = None) -> ndarray:
    return _array(self._host.view() if dtype is None else self._host.view(dtype), base=self)


def fill(self: Any, value: Any) -> None:
    self[...] = value


for _function in (asarray, array, where, nonzero, flatnonzero):
    setattr(cupy, _function.__name__, _in_stream(_function))
cupy.asnumpy, cupy.copyto = asnumpy, _in_stream(copyto, writes_to=lambda dst, *_, **__: dst)
cupy.matmul = _in_stream(matmul, writes_to=lambda a, b, out=None: out)
ndarray.astype, ndarray.view, ndarray.nonzero = _in_stream(astype), view, _in_stream(nonzero)  # type: ignore
ndarray.fill = fill  # type: ignore[attr-defined]
ndarray.__getitem__ = _in_stream(ndarray.__getitem__)  # type: ignore[method-assign]
ndarray.__setitem__ = _in_stream(ndarray.__setitem__, writes_to=lambda x, *_: x)  # type: ignore[method-assign]
ufunc.__call__ = _in_stream(  # type: ignore[method-assign]
    ufunc.__call__, writes_to=lambda f, *args, out=None, **_: args[f.nin] if len(args) > f.nin else out
)
for _name in "inf nan pi newaxis bool_ int8 uint8 int32 int64 uint16 uint32 uint64 float16 float32 float64".split():
    setattr(cupy, _name, getattr(np, _name))
cupy.ndarray, cupy.ufunc, cupy.__version__ = ndarray, ufunc, "14.2.0"


# The GPUs


class Device:
    """As cupy.cuda.Device."""

    def __init__(self, device: int | None = None) -> None:
        self.id = _of_thread.gpu if device is None else int(device)

    def use(self) -> Device:
        _of_thread.gpu = self.id
        return self

    def __enter__(self) -> Device:
        self.before = _of_thread.gpu
        return self.use()

    def __exit__(self, *exception: object) -> None:
        Device(self.before).use()

    def synchronize(self) -> None:
        _synchronize()

    compute_capability = "90"
    mem_info = (3 * 2**30, 8 * 2**30)  # free, and in all


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""


class Memory:
    """As cupy.cuda.Memory, which asks CUDA for memory."""

    def __init__(self, size: int) -> None:
        if size > 8 * 2**30:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")


cupy.cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    MemoryPool=MemoryPool,
    using_allocator=using_allocator,
    set_pinned_memory_allocator=set_pinned_memory_allocator,
    Memory=Memory,
    MemoryPointer=lambda memory, offset: memory,
    get_current_stream=lambda: _of_thread.streams[-1],
    is_available=lambda: True,
    get_cublas_handle=lambda: 1,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (12, 9)),
    runtime=types.SimpleNamespace(
        driverGetVersion=lambda: 12080,
        runtimeGetVersion=lambda: 12090,
        getDeviceCount=lambda: GPUS,
        getDeviceProperties=lambda device: {"name": b"A card that is not there"},
        CUDARuntimeError=CUDARuntimeError,
    ),
)
cupy.get_default_pinned_memory_pool = lambda: types.SimpleNamespace(malloc=lambda size: None)
_default_pool: Any = MemoryPool()
_default_pool.total_bytes, _default_pool.used_bytes = lambda: 5 * 2**30, lambda: 2**30
_default_pool.free_all_blocks = lambda: None
cupy.get_default_memory_pool = lambda: _default_pool


def _erf(x: ndarray) -> ndarray:
    """float16 gives float64, as in CuPy."""
    dtype = np.float32 if x.dtype == np.float32 else np.float64
    return _array(np.vectorize(math.erf, otypes=[dtype])(_host(x)))


cupyx.scipy = types.ModuleType("cupyx.scipy")
cupyx.scipy.special = types.ModuleType("cupyx.scipy.special")
cupyx.scipy.special.erf = _in_stream(_erf)
cupyx.allow_synchronize, cupyx.DeviceSynchronized = allow_synchronize, DeviceSynchronized
