"""The base class of all optimizers, SGD and AdamW, and gradient clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .. import hints, kernels
from ..backend import Array, as_array, get_array_module, to_device
from ..in_place import mark_written
from ..kernels.cpu import in_pieces, in_whole, squared_norm
from ..kernels.cuda import graph
from ..kernels.cuda import optimizer as fused
from ..memory import keep_freed_memory
from ..tensor import Tensor

MASTER = "master"  # the slot of the float32 copy of a 16-bit parameter
LEAST = {"lr": 0, "momentum": 0, "eps": 0, "weight_decay": 0, "ns_steps": 1, "split": 1}  # of settings with these names


class Optimizer:
    """What all optimizers share: groups of parameters with settings, and state that can be saved.

    `params` is an iterable of tensors, or of dicts {"params": one or several, setting: value, …} whose settings
    override the defaults for that group. Subclasses name in `slots` the arrays they keep for each parameter.

    Small updates of a 16-bit parameter would be rounded away: those below a thousandth of its value in bfloat16, and
    below a five-thousandth in float16. So a float32 copy, the "master", is updated instead, with float32 moments, and
    rounded back into the parameter (Micikevicius et al., 2018).
    """

    slots: tuple[str, ...] = ()
    elementwise = False  # is each element updated independently, so that a large parameter can be cut into pieces?

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        keep_freed_memory()  # training starts here
        if hasattr(params, "parameters"):
            name, given_name = type(self).__name__, type(params).__name__
            raise TypeError(
                f"{name}: expected parameters, got the module {given_name}; write {name}(model.parameters(), …)"
            )
        given = list(params)
        if not given:
            raise ValueError(f"{type(self).__name__}: got no parameters")
        groups = given if isinstance(given[0], Mapping) else [{"params": given}]
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            if "params" not in group:
                raise ValueError(f"{type(self).__name__}: a group has no params, only {sorted(group)}")
            unknown = set(group) - {"params"} - set(settings)
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: unknown settings {sorted(unknown)}; known: {sorted(settings)}"
                )
            members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            self.param_groups.append({**settings, **group, "params": members})
            self.check_settings(self.param_groups[-1])
        self.params: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        if any(not isinstance(p, Tensor) or p.origin is not None or not p.requires_grad for p in self.params):
            kinds = sorted({type(p).__name__ for p in self.params if not isinstance(p, Tensor)})
            others = f", got {' and '.join(kinds)}" if kinds else ""
            raise TypeError(f"{type(self).__name__}: expected leaf tensors that require gradients{others}")
        if len(set(self.params)) != len(self.params):
            raise ValueError(f"{type(self).__name__}: a parameter appears twice")
        self.steps = [0] * len(self.params)  # the number of updates of each
        self.state: list[dict[str, Array]] = [{} for _ in self.params]

    def check_settings(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a setting with which training cannot work."""
        for name, least in LEAST.items():
            if name in group and not group[name] >= least:  # NaN is not
                raise ValueError(f"{type(self).__name__}: expected {name} of at least {least}, got {group[name]}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None."""
        hints.check_set_to_none(set_to_none)
        for p in self.params:
            p.zero_grad()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        changed = [i for i, p in enumerate(self.params) if p.grad is not None]
        graph.each_step(functools.partial(self.count, changed))
        numbers = iter(range(len(self.params)))
        jobs: list[tuple[Callable[..., Any], list[Array]]] = []  # functions, and the arrays to call them with
        for group in self.param_groups:
            members = []  # (parameter, its number, what is kept for it)
            for p in group["params"]:
                i = next(numbers)
                if p.grad is not None:
                    members.append((p, i, self.kept_for(p, i, group)))
                    mark_written(p.data)
            if members and not self.update_together(group, members):
                graph.refuse(f"{type(self).__name__} has no kernel for these parameters that asks the host for nothing")
                for p, i, state in members:
                    update = functools.partial(self.update_piece, tuple(state), group, self.steps[i])
                    jobs.append((update, [p.data, p.grad, *state.values()]))
        if jobs and kernels.in_use() and isinstance(jobs[0][1][0], np.ndarray):
            (in_pieces if self.elementwise else in_whole)(jobs)
        else:
            for job, arrays in jobs:
                job(*arrays)

    def clip_grad_norm(self, max_norm: float, loss_scale: float = 1.0) -> Any:
        """`clip_grad_norm` of this optimizer's parameters."""
        return clip_grad_norm(self.params, max_norm, loss_scale)

    def count(self, changed: Iterable[int]) -> None:
        """Count an update of the parameters with these numbers."""
        for i in changed:
            self.steps[i] += 1

    def update_together(self, group: dict[str, Any], members: list[Any]) -> bool:
        """Update all parameters of a group at once if there is a kernel for that. Returns whether there was one.

        `members` has (parameter, its number, its state) for each parameter with a gradient.
        """
        return False

    def kept_for(self, p: Tensor, i: int, group: dict[str, Any]) -> dict[str, Array]:
        """The state of a parameter: arrays by slot, created on first use."""
        state, xp = self.state[i], get_array_module(p.data)
        slots = self.slots_of(group)
        if any(slot not in state for slot in slots):
            graph.refuse("a parameter has its first gradient")  # every replay would make its arrays again
        if p.dtype.itemsize == 2 and MASTER not in state:
            state[MASTER] = p.data.astype("float32")
        for slot in slots:
            if slot not in state:
                state[slot] = xp.zeros_like(state.get(MASTER, p.data))
        return state

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the arrays in the state of each parameter of this group; they start as zeros."""
        return self.slots

    def update_piece(self, slots: tuple[str, ...], group: dict[str, Any], t: int, *arrays: Array) -> None:
        w, g, *kept = arrays
        state = dict(zip(slots, kept, strict=True))
        master = state.pop(MASTER, None)
        if master is None:
            self.update(w, g, state, group, t)
        else:
            self.update(master, g.astype("float32"), state, group, t)
            w[...] = master

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict[str, Any], t: int) -> None:
        """Update the array w in place for the t-th time, given its gradient g, which must not be changed.

        `state` has an array like w for each slot, to be updated in place too. If the class says `elementwise`, w, g and
        the state may be one piece of a parameter.
        """
        raise TypeError(f"{type(self).__name__} must define update(…)")

    def start_masters(self, exact: Mapping[Tensor, Array]) -> None:
        """Start the masters of 16-bit parameters from these exact float32 values.

        Without this call the first step creates the masters from the rounded values.
        """
        for p, state in zip(self.params, self.state, strict=True):
            if p in exact and p.dtype.itemsize == 2:
                state[MASTER] = exact[p].astype("float32")

    def masters(self) -> dict[Tensor, Array]:
        """The float32 masters of 16-bit parameters, by parameter."""
        return {p: state[MASTER] for p, state in zip(self.params, self.state, strict=True) if MASTER in state}

    def state_dict(self) -> dict[str, Tensor]:
        """The number of updates of each parameter and its state, to be saved; settings are not included."""
        arrays = {f"{i}.{slot}": Tensor(a) for i, state in enumerate(self.state) for slot, a in state.items()}
        return {"steps": Tensor(self.steps), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned. ValueError if it belongs to another optimizer."""
        loaded: list[dict[str, Array]] = [{} for _ in self.params]
        for name, value in state.items():
            if name == "steps":
                continue
            number, _, slot = name.partition(".")
            array = as_array(value.data if isinstance(value, Tensor) else value)
            fits = number.isdigit() and int(number) < len(self.params) and slot in (*self.slots, MASTER)
            if not fits or array.shape != self.params[int(number)].shape:
                raise ValueError(f"{type(self).__name__}.load_state_dict: {name} {array.shape} fits no parameter")
            parameter = self.params[int(number)]
            is_half = parameter.dtype.itemsize == 2
            if slot == MASTER and not is_half:
                continue  # saved by a run in 16 bits
            dtype = "float32" if is_half else parameter.dtype
            loaded[int(number)][slot] = to_device(array.astype(dtype), parameter.device)
        steps = Tensor(state.get("steps", ())).numpy()
        if steps.shape != (len(self.params),) or steps.dtype.kind not in "iu" or (steps < 0).any():
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: expected a number of steps for each of {len(self.params)} "
                f"parameters, got {steps.tolist()}"
            )
        groups = [group for group in self.param_groups for _ in group["params"]]
        for i, (t, kept, group) in enumerate(zip(steps, loaded, groups, strict=True)):
            missing = [slot for slot in self.slots_of(group) if slot not in kept]
            if t and missing:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: parameter {i} has no {' and no '.join(missing)} after "
                    f"{t} steps"
                )
        self.steps, self.state = [int(t) for t in steps], loaded


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and L2 weight decay if they are not 0.

    g = grad + weight_decay w
    v = momentum v + g
    w = w - lr v
    """

    slots = ("momentum",)
    elementwise = True

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.slots if group["momentum"] else ()

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict[str, Any], t: int) -> None:
        if group["weight_decay"]:
            g = g + group["weight_decay"] * w
        if group["momentum"]:
            v = state["momentum"]
            v *= group["momentum"]
            v += g
            g = v
        w -= group["lr"] * g


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma and Ba, 2014; Loshchilov and Hutter, 2017).

        m = beta1 m + (1 - beta1) grad            a running mean of the gradient
        v = beta2 v + (1 - beta2) grad^2          and of its square
        w = w - lr weight_decay w                 decay is applied to the weight, not mixed into the gradient
        w = w - lr (m / c1) / (sqrt(v / c2) + eps)

    with c1 = 1 - beta1^t and c2 = 1 - beta2^t at the parameter's step t, which correct for m and v starting at 0.

    The square of a float32 gradient above 1.8e19 overflows: v is infinite from then on, and the weight only decays.
    """

    slots = ("m", "v")
    elementwise = True

    def __init__(
        self,
        params_or_groups: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params_or_groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check_settings(self, group: dict[str, Any]) -> None:
        super().check_settings(group)
        betas = group["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"AdamW: expected two betas, at least 0 and less than 1, got {betas}")

    def update_together(self, group: dict[str, Any], members: list[Any]) -> bool:
        if not fused.usable([p.data for p, _, _ in members], [p.grad for p, _, _ in members]):
            return False
        numbers = [i for _, i, _ in members]
        if len({self.steps[i] for i in numbers}) != 1:
            return False
        arrays = [[p.data, p.grad, state["m"], state["v"], state.get(MASTER)] for p, _, state in members]
        settings = group["betas"], group["eps"], group["weight_decay"]
        fused.adamw(arrays, lambda: group["lr"], *settings, lambda: self.steps[numbers[0]])
        return True

    def update(self, w: Array, g: Array, state: dict[str, Array], group: dict[str, Any], t: int) -> None:
        xp = get_array_module(w)
        m, v = state["m"], state["v"]
        beta1, beta2 = group["betas"]
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        change = as_array(g * (1 - beta1))  # a scratch array, used again below
        m *= beta1
        m += change
        xp.multiply(g, g, out=change)
        change *= 1 - beta2
        v *= beta2
        v += change
        xp.sqrt(v, out=change)  # then (m / c1) / (sqrt(v / c2) + eps), with the constants drawn together
        change += group["eps"] * math.sqrt(c2)
        xp.divide(m, change, out=change)
        change *= group["lr"] * math.sqrt(c2) / c1
        if group["weight_decay"]:
            w *= 1 - group["lr"] * group["weight_decay"]
        w -= change


def clip_grad_norm(params: Iterable[Tensor], max_norm: float, loss_scale: float = 1.0) -> Any:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`. Returns the norm before that.

    The global norm is the square root of the sum of the squares of all gradients of all parameters: a Python float on
    the CPU, and on a GPU an array that stays there, so that the host does not wait for it.

    loss_scale: what the loss was multiplied by, see `GradScaler`. The gradients are divided by it first; 16-bit ones
    become float32, since they may be too small for 16 bits without it.
    """
    with_grad = _with_gradient(params)
    if not with_grad:
        return 0.0
    if loss_scale != 1:
        widen_gradients(with_grad)
    data, grads = [p.data for p in with_grad], [p.grad for p in with_grad]
    if fused.usable(data, grads):
        for g in grads:
            mark_written(g)
        return fused.clip_grad_norm(data, grads, max_norm, loss_scale)
    return clip_gradients(with_grad, squared_gradient_norm(with_grad), max_norm, loss_scale)


def _with_gradient(params: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in ([params] if isinstance(params, Tensor) else params) if p.grad is not None]


def squared_gradient_norm(params: Iterable[Tensor]) -> Any:
    """The sum of the squares of all gradients; on a GPU it stays there. 0.0 if there are none."""
    grads: list[Array] = [p.grad for p in _with_gradient(params)]
    if not grads:
        return 0.0
    wide = [g.astype("float32") if g.dtype.itemsize == 2 else g for g in grads]  # whose squares do not overflow
    in_pieces_too = kernels.in_use() and isinstance(wide[0], np.ndarray)
    return squared_norm(wide) if in_pieces_too else sum(get_array_module(g).vdot(g, g) for g in wide)


def clip_gradients(params: Iterable[Tensor], squares: Any, max_norm: float, loss_scale: float = 1.0) -> Any:
    """What `clip_grad_norm` does, given `squares`, the sum of the squares of these gradients and perhaps of others."""
    xp = get_array_module(squares)
    norm = xp.sqrt(squares) / loss_scale
    factor = xp.minimum(max_norm / (norm + 1e-6), 1) / loss_scale
    if xp is not np or not factor >= 1:
        for p in _with_gradient(params):
            g: Array = p.grad
            if g.dtype.itemsize == 2:
                g[...] = g * factor  # in float32: in half precision the factor could be 0
            else:
                g *= factor.astype(g.dtype)
            mark_written(g)
    return float(norm) if xp is np else norm


def widen_gradients(params: Iterable[Tensor]) -> None:
    """Convert 16-bit gradients to float32, so that adding more to them does not round every sum to 16 bits."""
    for p in params:
        if p.grad is not None and p.grad.dtype.itemsize == 2:
            p.grad = p.grad.astype("float32")
