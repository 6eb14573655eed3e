"""LoRA: fine-tuning with low-rank adapters while the model's own weights stay frozen (Hu et al., 2021).

add_adapters(model, rank=8)                        # from now on only the adapters are trained
save_adapters(model, "adapters.safetensors")
load_adapters(model, "adapters.safetensors")       # later, onto the same weights
merge(model)                                       # a plain GPT, with the adapters added to its weights
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.serialization import load_with_metadata

from .checkpoint import exact_weights
from .config import check_tensors
from .errors import CheckpointError, ConfigError
from .model import GPT
from .options import number_or_nan

VERSION = 2  # of the file of adapters


class Frozen(mg.Tensor):
    """A weight that is not trained: a constant, which `parameters()`, `state_dict()` and `to()` skip."""

    __slots__ = ()


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trainable adapter of low rank.

        y = x W^T + b + (alpha / r) (x A^T) B^T        that is, a linear layer with the weight W + (alpha / r) B A

    Shapes: x (…, I), W (O, I), b (O,) or None, A (r, I), B (O, r), y (…, O). A starts as the weight of a linear layer
    does, uniform within ±1/sqrt(I), and B at zero, so at first the layer computes the same as before.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        outputs, inputs = linear.weight.shape
        _check_rank(rank, inputs, outputs)
        if not 0 < number_or_nan(alpha) < math.inf:
            raise ConfigError(f"the alpha of the adapters is {alpha!r}; expected a number above 0")
        self.linear, self.rank, self.alpha = linear, rank, alpha
        self.base = ""  # the fingerprint of the model that it is put on
        dtype, device = linear.weight.dtype, linear.weight.device
        bound = 1 / math.sqrt(inputs)
        a, b = mg.random.uniform((rank, inputs), -bound, bound), [[0.0] * rank] * outputs
        self.lora_A = nn.Parameter(mg.Tensor(a, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(mg.Tensor(b, dtype=dtype, device=device))
        _exchange(linear, nn.Parameter, Frozen)

    def forward(self, x: Any) -> mg.Tensor:
        low = F.linear(x, self.lora_A) * (self.alpha / self.rank)  # (…, r)
        return self.linear(x) + F.linear(low, self.lora_B)

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        linear = copy.copy(self.linear)
        with mg.no_grad():
            linear.weight = nn.Parameter(linear.weight + self.lora_B @ self.lora_A * (self.alpha / self.rank))
        _exchange(linear, Frozen, nn.Parameter)
        return linear


def add_adapters(model: GPT, rank: int, alpha: float = 16.0, layers: Sequence[str] = ("attn.c_attn",)) -> GPT:
    """Freeze a model and put adapters on the named linear layers of its blocks. Returns the model.

    layers: endings of the layers' names: "attn.c_attn" is that layer of every block, "h.0.attn.c_attn" the first
        block's.

    Move the model to its device before, not after. Raises `ConfigError`, and changes nothing, if no layer has one of
    the names, and for a bad rank or alpha.
    """
    if any(_layers(model, LoRALinear)):
        raise ConfigError("this model has adapters already")
    chosen = _chosen(model, layers)
    base = _fingerprint(model)
    adapted = [(parent, attribute, LoRALinear(linear, rank, alpha)) for _, parent, attribute, linear in chosen]
    _exchange(model, nn.Parameter, Frozen)
    for parent, attribute, adapter in adapted:
        adapter.base = base
        setattr(parent, attribute, adapter)
    return model


def _chosen(model: GPT, layers: Sequence[str]) -> list[tuple[str, nn.Module, str, Any]]:
    """The linear layers of the blocks that have these names. Raises `ConfigError` if no layer has one of them."""
    linears = list(_layers(model.h, nn.Linear, "h."))
    chosen = [found for found in linears if any(_ends(found[0], layer) for layer in layers)]
    for layer in layers or [""]:
        if not any(_ends(name, layer) for name, *_ in chosen):
            known = dict.fromkeys(name.split(".", 2)[2] for name, *_ in linears)
            raise ConfigError(f"no linear layer of the blocks is called {layer!r}; they are {', '.join(known)}")
    return chosen


def _adapter_shapes(chosen: list[tuple[str, nn.Module, str, Any]], rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the parameters of adapters on these layers. Raises `ConfigError` for a bad rank."""
    for name, _, _, linear in chosen:
        outputs, inputs = linear.weight.shape
        _check_rank(rank, inputs, outputs)
        yield f"{name}.lora_A", (rank, inputs)
        yield f"{name}.lora_B", (outputs, rank)


def _check_rank(rank: Any, inputs: int, outputs: int) -> None:
    if type(rank) is not int or not 1 <= rank <= min(inputs, outputs):
        raise ConfigError(f"the rank of the adapters is {rank!r:.100}; expected 1 to {min(inputs, outputs)}")


def merge(model: GPT) -> GPT:
    """Add the adapters to the weights, and make all weights trainable again. Returns the model, a plain GPT."""
    for _, parent, attribute, adapter in _layers(model, LoRALinear):
        setattr(parent, attribute, adapter.merged())
    _exchange(model, Frozen, nn.Parameter)
    return model


def convert(model: GPT, dtype: Any) -> GPT:
    """Convert a model with adapters to a floating dtype: the adapters, as `to` does, and the frozen weights."""
    frozen = {value for part in model.modules() for value in vars(part).values() if type(value) is Frozen}
    model.to(dtype=dtype)
    for weight in frozen:
        weight.data = mg.Tensor(weight.data, dtype=dtype).data
    return model


def save_adapters(model: GPT, path: str | os.PathLike[str] | None, optimizer: Any = None) -> None:
    """Write the adapters alone to a safetensors file, with a fingerprint of the model they belong to.

    path: None on ranks that do not write, see `checkpoint.save`.

    optimizer: if it trains them in 16 bits, its float32 masters are written, see `checkpoint.exact_weights`.
    """
    adapters = {name: adapter for name, _, _, adapter in _layers(model, LoRALinear)}
    if not adapters:
        raise ConfigError("this model has no adapters to save")
    one = next(iter(adapters.values()))
    about = {"version": VERSION, "rank": one.rank, "alpha": one.alpha, "layers": list(adapters), "base": one.base}
    weights = exact_weights(model, optimizer)
    if path is not None:
        mg.save(weights, path, metadata={"minigrad_lora": json.dumps(about)})


def load_adapters(model: GPT, path: str | os.PathLike[str]) -> GPT:
    """Put the adapters of a file on the model that they were trained on; returns the model.

    Raises `CheckpointError`, and leaves the model as it was, for a file that is missing, damaged or something else, and
    for adapters of other weights.
    """
    try:
        tensors, metadata = load_with_metadata(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    try:
        about = json.loads(metadata["minigrad_lora"])
        version = about.get("version", 1)
        rank, alpha, layers, base = about["rank"], float(about["alpha"]), list(map(str, about["layers"])), about["base"]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: a safetensors file, but not one of this project's adapters") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path}: adapters of version {version!r}, expected {VERSION}, which says more about their "
            "weights; train them again"
        )
    try:
        with _as_before_an_error(model):
            check_tensors(_adapter_shapes(_chosen(model, layers), rank), tensors)
            add_adapters(model, rank, alpha, layers)
            if any(adapter.base != base for *_, adapter in _layers(model, LoRALinear)):
                raise ValueError("these adapters were trained on other weights")
            model.load_state_dict(tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model


@contextlib.contextmanager
def _as_before_an_error(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of a model's modules, parameters included, if an error is raised inside this context."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        raise


def _fingerprint(model: GPT) -> str:
    """A hash of the first and the last row of each parameter, which identifies the weights of a plain model.

    Adapters store the fingerprint of the model they were put on, so `convert` does not change it.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(mg.Tensor(parameter.data[[0, -1]]).numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _ends(name: str, end: str) -> bool:
    """Whether a dotted name ends with these parts."""
    return f".{name}".endswith(f".{end}")


def _layers(module: nn.Module, kind: type, prefix: str = "") -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Every module of a kind inside another: its dotted name, the parent, its name in the parent, and itself."""
    for name, child in list(module.children()):
        if isinstance(child, kind):
            yield prefix + name, module, name, child
        else:
            yield from _layers(child, kind, f"{prefix}{name}.")


def _exchange(module: nn.Module, old: type[mg.Tensor], new: type[mg.Tensor]) -> None:
    """Replace every attribute of class `old` by one of class `new` with the same array; shared ones stay shared."""
    made: dict[mg.Tensor, mg.Tensor] = {}
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if type(value) is old:
                setattr(part, name, made.setdefault(value, new(value.data)))
