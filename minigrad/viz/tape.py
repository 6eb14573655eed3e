"""What `draw`, `trace` and `animate` read from a tape: its operations in forward order, names, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ..autograd import AutogradError, Context, Variable, count_uses
from ..backend import Array, is_array
from ..in_place import owner_of
from ..modes import Scope
from ..nn import Module


class Kept(NamedTuple):
    """What an operation saved for its backward: the shapes of the arrays, and the bytes not saved by earlier ones."""

    shapes: tuple[tuple[int, ...], ...]
    bytes: int


class Tape:
    """The tape that ends in `root`, found by one walk.

    nodes: its operations in forward order
    uses: for each leaf, in the order of first use, the operations that take it
    """

    def __init__(self, asked: str, root: Variable, model: Module | None = None) -> None:
        if not isinstance(root, Variable):
            raise TypeError(f"{asked}: expected a tensor, got {type(root).__name__}")
        if not root.requires_grad:
            raise AutogradError(
                f"{asked}: this tensor has no tape: it was computed inside no_grad, was detached, or depends on no "
                f"tensor that requires gradients"
            )
        self.root = root
        self.nodes = nodes_of(root)
        self.uses: dict[Variable, list[Context]] = {} if root.origin else {root: []}
        for node in self.nodes:
            for parent in node.parents:
                if isinstance(parent, Variable):
                    self.uses.setdefault(parent, []).append(node)
        self._calls: dict[int, tuple[Scope, ...]] = {}
        self._name(model)

    def names(self, asked: str, given: Mapping[str, Any] | None) -> dict[Any, str]:
        """The names of leaves and of outputs, (node, number): paths of parameters, and those that the user gives."""
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f'{asked}: expected names as a mapping such as {{"x": x}}, got {type(given).__name__}')
        names: dict[Any, str] = dict(self.parameter_names)
        for name, tensor in (given or {}).items():
            if not isinstance(name, str) or not isinstance(tensor, Variable):
                raise TypeError(
                    f"{asked}: expected names that map str to tensor, got {name!r}: {type(tensor).__name__}"
                )
            names[tensor.origin or tensor] = name
        return names

    def calls(self, scope: Scope | None) -> tuple[Scope, ...]:
        """The module calls around `scope`, the outermost first and `scope` itself last."""
        inner: list[Scope] = []
        while scope is not None and id(scope) not in self._calls:
            inner.append(scope)
            scope = scope.outer
        calls = self._calls[id(scope)] if scope is not None else ()
        for scope in reversed(inner):
            calls = self._calls[id(scope)] = (*calls, scope)
        return calls

    def _name(self, model: Module | None) -> None:
        """Name modules and parameters by their paths in `model` and in the outermost modules that were called."""
        outermost = {id(module): module for module in self._outermost()}
        inside = {id(part) for module in outermost.values() for part in module.modules() if part is not module}
        roots = [module for key, module in outermost.items() if key not in inside and module is not model]
        self.roots = [*([] if model is None else [model]), *roots]
        self.module_names: dict[int, str] = {}
        self.parameter_names: dict[Variable, str] = {}
        kinds: dict[str, int] = {}
        for module in self.roots:
            kind = type(module).__name__
            kinds[kind] = kinds.get(kind, 0) + 1
            prefix = "" if len(self.roots) == 1 or module is model else kind + f"_{kinds[kind]}" * (kinds[kind] > 1)
            for name, part in module.named_modules(prefix):
                self.module_names.setdefault(id(part), name)
            for name, parameter in module.named_parameters():
                self.parameter_names.setdefault(parameter, f"{prefix}.{name}" if prefix else name)

    def _outermost(self) -> list[Module]:
        scopes = {id(calls[0]): calls[0] for node in self.nodes if (calls := self.calls(node.scope))}
        return [module for scope in scopes.values() if (module := scope.module()) is not None]

    def path(self, scope: Scope | None) -> str:
        """The path of the called module, as "h.0.attn", or its class if it has no path."""
        if scope is None:
            return ""
        module = scope.module()
        return (self.module_names.get(id(module)) if module is not None else None) or scope.kind

    def title(self, scope: Scope) -> str:
        """The path and the class of the called module, as "h.0.attn (CausalSelfAttention)"."""
        path = self.path(scope)
        return path if path == scope.kind else f"{path} ({scope.kind})"

    def kept(self) -> dict[Context, Kept]:
        """What each operation saved.

        Memory counts once, at the first operation that saved any part of it; a view counts as the whole array that it
        belongs to. Leaves and the modules' parameters do not count: they exist without the tape.
        """
        held = [*self.uses, *(parameter for module in self.roots for parameter in module.parameters())]
        counted = {id(owner_of(variable.data)) for variable in held}
        result = {}
        for node in self.nodes:
            arrays = saved_arrays(node)
            new = {id(owner): owner.nbytes for owner in map(owner_of, arrays) if id(owner) not in counted}
            counted.update(new)
            result[node] = Kept(tuple(array.shape for array in arrays), sum(new.values()))
        return result


def nodes_of(root: Variable) -> list[Context]:
    """All nodes of the tape that ends in `root`, in forward order."""
    return sorted(count_uses(root.origin[0]) if root.origin else (), key=lambda node: node.started)


def saved_arrays(kept: Any) -> list[Array]:
    """The arrays that a node keeps for its backward, or that are in one value it keeps, however deeply nested."""
    arrays, seen = [], set()
    waiting: list[Any] = [kept]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        inside: Iterable[Any] = ()
        if isinstance(value, Context):  # a kernel may keep several contexts, one for each piece of its work
            inside = (*value._saved, *value.__dict__.values())
        elif isinstance(value, Variable):
            inside = (value.data,)
        elif is_array(value):
            arrays.append(value)
        elif isinstance(value, (tuple, list)):
            inside = value
        elif isinstance(value, dict):
            inside = value.values()
        elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, ModuleType):
            inside = vars(value).values()
        waiting.extend(reversed(list(inside)))
    return arrays


def norm(*arrays: Array) -> float:
    """The Euclidean norm of all elements of all arrays, in float64."""
    return sum(float((array.astype("float64") ** 2).sum()) for array in arrays) ** 0.5


def short_number(value: float) -> str:
    """Three significant digits, as in "0.0123", "12.3" and "1.23e-08"."""
    return f"{value:.3g}"


def short_bytes(count: float) -> str:
    """Bytes with a unit, as in "96 B", "1.57 MB" and "24.1 GB". 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:#.3g} {unit}"
