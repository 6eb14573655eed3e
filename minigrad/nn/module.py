"""Module: a tree of layers whose leaves are parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import hints
from ..backend import as_dtype, kind_of, to_device
from ..in_place import mark_written
from ..modes import call_in_scope
from ..tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module learns. It requires gradients, and `Module.parameters()` finds it."""

    __slots__ = ()

    def __init__(self, array_like: Any) -> None:
        super().__init__(array_like, requires_grad=True)


class Module:
    """A layer, or a model made of layers.

    Define `forward`, and call the module like a function. Assigning a `Parameter` or a `Module` to an attribute
    registers it under the attribute's name; put a list of modules into a `ModuleList`. The state of a call, such as a
    dropout mask, lives on the tape and never on the module, so a module can be used several times in one graph.
    """

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} must define forward(…)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call_in_scope(self, self.forward, args, kwargs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, with their names."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module, named "", and all modules inside it with their dotted names. A shared module appears once."""
        seen: set[Module] = set()
        for name, module in self._tree(prefix):
            if module not in seen:
                seen.add(module)
                yield name, module

    def _tree(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.children():
            yield from child._tree(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all modules inside it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its dotted name. A shared parameter appears once, under its first name."""
        seen: set[Parameter] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and value not in seen:
                    seen.add(value)
                    yield f"{path}.{name}" if path else name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter, once."""
        return (parameter for _, parameter in self.named_parameters())

    def num_parameters(self) -> int:
        """The number of elements in all parameters."""
        return sum(parameter.size for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by name, as tensors that share their memory."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy values into the parameters, in place.

        Everything is checked before anything is written. ValueError lists every name that is missing or unexpected,
        every shape that differs, and every value that a tensor cannot hold. Values are converted to the parameters'
        dtype and device.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {np.shape(state[name])}, expected {parameter.shape}"
            for name, parameter in own.items()
            if name in state and np.shape(state[name]) != parameter.shape
        ]
        for name, value in state.items():
            try:
                Tensor(value)
            except TypeError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError(f"{type(self).__name__}.load_state_dict: {'; '.join(problems)}")
        for name, parameter in own.items():
            parameter.data[...] = Tensor(state[name], dtype=parameter.dtype, device=parameter.device).data
            mark_written(parameter.data)

    def train(self, mode: bool = True) -> Self:
        """Switch this module and all modules inside it to training mode (dropout on) or, with False, to evaluation."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode (dropout off)."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside this context. Afterwards all modules are in the mode that this one was in before."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def to(self, device: str | None = None, dtype: Any = None) -> Self:
        """Move the parameters to a device and convert them to a floating dtype. Gradients are set to None."""
        if dtype is not None and kind_of(as_dtype(dtype)) != "f":
            raise TypeError(f"{type(self).__name__}.to: expected a floating dtype, got {as_dtype(dtype)}")
        for parameter in self.parameters():
            array = parameter.data if device is None else to_device(parameter.data, device)
            parameter.data = array if dtype is None else array.astype(as_dtype(dtype), copy=False)
            parameter.grad = None
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None."""
        hints.check_set_to_none(set_to_none)
        for parameter in self.parameters():
            parameter.zero_grad()

    def __repr__(self) -> str:
        """The module with the shapes of its parameters and its settings, and the modules inside it."""
        own = [
            f"{name}={value.shape if isinstance(value, Parameter) else value!r}"
            for name, value in vars(self).items()
            if isinstance(value, (Parameter, bool, int, float, str, type(None))) and name != "training"
        ]
        inside = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        if not inside:
            return f"{type(self).__name__}({', '.join(own)})"
        return "\n  ".join([f"{type(self).__name__}(", *filter(None, [", ".join(own)]), *inside]) + "\n)"

    if not TYPE_CHECKING:  # or every attribute would exist

        def __getattr__(self, name: str) -> Any:
            raise hints.missing(type(self).__name__, name, hints.MODULE)


class ModuleList(Module):
    """A list of modules, named "0", "1", …"""

    def __init__(self, modules: Any = ()) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"{type(self).__name__}: expected modules, got {type(module).__name__} at index {i}")
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Any]:
        return (child for _, child in self.children())

    def __getitem__(self, i: int) -> Any:
        return list(self)[i]


class Sequential(ModuleList):
    """Modules applied one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
