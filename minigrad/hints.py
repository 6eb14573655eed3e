"""Hints for people who come from PyTorch: what is called differently here, and what takes its place.

Where the same thing has the same meaning, PyTorch's name simply works (`x.view`, `zero_grad(set_to_none=True)`).
Elsewhere these tables say what to write, in the error that Python raises in any case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

# What an attribute is called here, by the name that PyTorch has for it

IN_NUMPY = "make the array with NumPy: mg.Tensor(np.{}(…, dtype=np.float32))"
AS_DTYPE = 'convert with astype("{}")'
OF_NUMPY = "take the plain array: x.data.{}(…); it has no gradient"

MINIGRAD = {
    "tensor": "write mg.Tensor(a), which shares memory with an array a; mg.Tensor(a.copy()) does not",
    **dict.fromkeys(("as_tensor", "from_numpy", "FloatTensor"), "write mg.Tensor(a)"),
    "LongTensor": "write mg.Tensor(a); ids and targets can also be plain arrays of integers",
    **{name: IN_NUMPY.format(name) for name in ("zeros", "ones", "full", "empty", "eye", "linspace")},
    **{name: IN_NUMPY.format(name) for name in ("zeros_like", "ones_like", "full_like", "tril", "triu")},
    "arange": "make the array with NumPy: np.arange(…); functions take it as it is",
    "randint": "make the array with NumPy: np.random.default_rng(seed).integers(…)",
    "randn": "write mg.Tensor(mg.random.normal(shape))",
    "rand": "write mg.Tensor(mg.random.uniform(shape, 0, 1))",
    **{name: f'dtypes are NumPy\'s, or their names: dtype="{name}"' for name in ("float16", "float32", "float64")},
    **{name: f'dtypes are NumPy\'s, or their names: dtype="{name}"' for name in ("bfloat16", "int32", "int64")},
    "float": 'dtypes are NumPy\'s, or their names: dtype="float32"',
    "long": 'dtypes are NumPy\'s, or their names: dtype="int64"',
    "device": 'devices are named by strings: "cpu", "cuda" or "cuda:1"',
    "inference_mode": "write mg.no_grad()",
    "set_grad_enabled": "write mg.no_grad() or mg.enable_grad()",
    "Module": "write nn.Module",
    "Parameter": "write nn.Parameter",
    "cat": "write F.concatenate",
    "clamp": "write F.clip",
    "mm": "write a @ b",
    "bmm": "write a @ b",
    "einsum": "write it with @, transpose and reshape",
    "compile": "there is nothing to compile: operations run their kernels as they are called",
}

NN = {
    "functional": "write from minigrad import functional as F",
    "init": "write to the parameter's array: linear.weight.data[...] = mg.random.normal(shape, std)",
    "utils": "clipping is optim.clip_grad_norm",
    "CrossEntropyLoss": "write F.cross_entropy(logits, targets)",
    "NLLLoss": "write F.cross_entropy(logits, targets), which takes logits",
    "MSELoss": "write ((x - y) ** 2).mean()",
    "L1Loss": "write abs(x - y).mean()",
    "BCEWithLogitsLoss": "write (F.softplus(x) - x * y).mean()",
    "MultiheadAttention": "build it from nn.Linear and F.scaled_dot_product_attention",
    "DataParallel": "see minigrad.distributed",
    **{
        name: f"call F.{function} in the forward of a module of your own"
        for name, function in (
            *(("Tanh", "tanh"), ("Sigmoid", "sigmoid"), ("SiLU", "silu"), ("Softmax", "softmax")),
            ("LogSoftmax", "log_softmax"),
        )
    },
}

OPTIM = {
    "Adam": "optim.AdamW(params, lr, weight_decay=0) is Adam",
    "clip_grad_norm_": "write optim.clip_grad_norm",
    "lr_scheduler": 'set group["lr"] in optimizer.param_groups, for example to optim.warmup_cosine(…)',
}

FUNCTIONAL = {
    "mse_loss": "write ((x - y) ** 2).mean()",
    "l1_loss": "write F.abs(x - y).mean()",
    "nll_loss": "write F.cross_entropy(logits, targets), which takes logits",
    "binary_cross_entropy_with_logits": "write (F.softplus(x) - x * y).mean()",
    "cat": "write F.concatenate",
    "clamp": "write F.clip",
    "permute": "write F.transpose(x, *axes)",
    "amax": "write F.max",
    "amin": "write F.min",
    "std": "write F.var(x) ** 0.5",
    "norm": "write (x * x).sum() ** 0.5",
    "adaptive_avg_pool2d": "for one pixel write F.mean(x, (-2, -1), keepdims=True)",
    "one_hot": "write np.eye(n, dtype=np.float32)[ids]",
    "pow": "write F.power, or x ** y",
    "sub": "write F.subtract, or x - y",
    "mul": "write F.multiply, or x * y",
    "div": "write F.divide, or x / y",
    "neg": "write F.negative, or -x",
    **dict.fromkeys(("mm", "bmm"), "write F.matmul, or a @ b"),
    **dict.fromkeys(("squeeze", "unsqueeze", "flatten"), "write F.reshape"),
    **dict.fromkeys(("expand", "repeat", "tile"), "write F.broadcast_to"),
}

TENSOR = {
    **{
        name: FUNCTIONAL[name]
        for name in ("mm", "bmm", "amax", "amin", "std", "norm", "pow", "sub", "mul", "div", "neg")
    },
    "clamp": "write F.clip",
    "flatten": "write x.reshape(-1)",
    "ravel": "write x.reshape(-1)",
    "unsqueeze": "write x[None], x[:, None] … or x.reshape(…)",
    "squeeze": "write x.reshape(…), or index the axis: x[:, 0]",
    **dict.fromkeys(("expand", "expand_as", "repeat", "tile"), "write F.broadcast_to(x, shape)"),
    "t": "write x.T",
    "mT": "write x.swapaxes(-1, -2)",
    "dim": "write x.ndim",
    "numel": "write x.size",
    "cpu": 'write x.to("cpu")',
    "cuda": 'write x.to("cuda")',
    "float": AS_DTYPE.format("float32"),
    "double": AS_DTYPE.format("float64"),
    "half": AS_DTYPE.format("float16"),
    "bfloat16": AS_DTYPE.format("bfloat16"),
    "long": AS_DTYPE.format("int64"),
    "int": AS_DTYPE.format("int32"),
    "bool": AS_DTYPE.format("bool"),
    "type": AS_DTYPE.format("float32"),
    "contiguous": "there is no need for it: every function takes any memory layout",
    "clone": "write x + 0 for a copy with a gradient, mg.Tensor(x.data.copy()) for one without",
    "copy": "write x + 0 for a copy with a gradient, mg.Tensor(x.data.copy()) for one without",
    "tolist": "write x.data.tolist()",
    "requires_grad_": "set x.requires_grad = True",
    "is_leaf": "write x.origin is None",
    "grad_fn": "write x.origin: the node of the tape, and the number of its output",
    "retain_grad": "only leaves keep a gradient; to see another tensor's, add a leaf of zeros: h = h + zeros",
    "register_hook": "write an mg.Function whose forward returns x and whose backward sees the gradient",
    **{
        name: OF_NUMPY.format(name) for name in ("argmax", "argmin", "argsort", "sort", "any", "all", "cumsum", "round")
    },
}

MODULE = {
    "cpu": 'write model.to("cpu")',
    "cuda": 'write model.to("cuda")',
    "float": 'write model.to(dtype="float32")',
    "double": 'write model.to(dtype="float64")',
    "half": 'write model.to(dtype="float16")',
    "bfloat16": 'write model.to(dtype="bfloat16")',
    "requires_grad_": "set parameter.requires_grad for each of model.parameters()",
    "register_buffer": "assign a plain array to an attribute; it is not saved with the parameters",
    "register_parameter": "assign an nn.Parameter to an attribute",
    "add_module": "assign the module to an attribute",
}

IN_PLACE = (
    "inside mg.no_grad(), operators such as x += … change a leaf that requires gradients in place, and so does x[...] ="
)


def missing(owner: str, name: str, table: Mapping[str, str], functions: Container[str] = ()) -> AttributeError:
    """The error for an attribute that does not exist, with a hint if there is one.

    functions: the names of minigrad.functional, which may have what is looked for.
    """
    hint = table.get(name)
    if hint is None and name in functions and not name.startswith("_"):
        hint = f"write F.{name}(…), with F = minigrad.functional"
    if hint is None and table is TENSOR and name.endswith("_") and not name.startswith("_"):
        hint = IN_PLACE
    return AttributeError(f"{owner} has no attribute {name!r}" + (f": {hint}" if hint else ""), name=name)


def of_module(module: str, table: Mapping[str, str], functions: Container[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a Python module, which is asked for names that the module does not have."""

    def __getattr__(name: str) -> Any:
        raise missing(f"module {module!r}", name, table, functions)

    return __getattr__


class Size(int):
    """The number of elements of a tensor. A call, as in PyTorch's x.size(), is an error that says what to write."""

    def __call__(self, *axis: Any) -> Any:
        raise TypeError(
            "size is a property, the number of elements; for x.size() write x.shape, for x.size(0) x.shape[0]"
        )


# What a keyword argument is called here

KEYWORDS = {
    "dim": "axis",
    "keepdim": "keepdims",
    "unbiased": "correction",
    "target": "targets",
    "is_causal": "causal",
    "attn_mask": "mask",
}

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def keywords(function: Decorated) -> Decorated:
    """Decorate a function so that PyTorch's keyword arguments raise a TypeError that says what they are called here."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            for name in kwargs:
                if name in KEYWORDS and f"unexpected keyword argument {name!r}" in str(error):
                    message = f"{function.__name__}: {name}= is called {KEYWORDS[name]}= here"
                    raise TypeError(message) from error
            raise

    return call  # type: ignore[return-value]


# Arguments


def check_set_to_none(set_to_none: bool) -> None:
    """Raise ValueError for PyTorch's `zero_grad(set_to_none=False)`."""
    if not set_to_none:
        raise ValueError("zero_grad: gradients are always set to None; expected set_to_none=True")


def check_no_normalized_shape(operation: str, weight: tuple[Any, ...]) -> None:
    """Raise TypeError where PyTorch's second argument of layer_norm, a shape, was given as the weight."""
    if all(isinstance(n, int) for n in weight):
        raise TypeError(
            f"{operation}: expected a weight of shape (C,) or None, got {weight!r}; there is no normalized_shape: "
            f"the last axis is normalized"
        )
