"""The helpers that do the work: run both libraries on the same numbers and compare everything that comes out.

Importing this module skips the importing test file where PyTorch is missing.
"""

import numpy as np
import pytest

import minigrad as mg

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


def assert_close(ours, theirs, what, scale=None):
    """Shape and dtype agree, and every element to 1e-9 of its magnitude.

    Rounding leaves something like 1e-17 where the exact result is 0, so an element also passes when it is as close as
    1e-13 of `scale`, which is the largest element unless it is given.
    """
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert isinstance(ours, np.ndarray), f"{what}: expected a plain array, got {type(ours)}"
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, PyTorch's is {theirs.shape}"
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, PyTorch's is {theirs.dtype}"
    scale = largest(theirs) if scale is None else scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13 * scale, err_msg=what)


def largest(*arrays):
    """The largest finite magnitude in the arrays."""
    return max((np.max(np.abs(a), initial=0, where=np.isfinite(a)) for a in map(np.asarray, arrays)), default=0)


def assert_parity(ours_fn, torch_fn, inputs):
    """`ours_fn(*inputs)` equals `torch_fn(*inputs)`, and the gradients of all floating inputs are equal too.

    Arrays among the inputs, also inside lists and tuples, become tensors of each library: floating ones require
    gradients, integer and boolean ones (ids, targets, masks, indices) stay plain arrays in minigrad. Anything else is
    passed on as it is.
    """
    our_leaves, torch_leaves = [], []
    our_outputs = ours_fn(*_replace_arrays(inputs, lambda array: _our_tensor(array, our_leaves)))
    torch_outputs = torch_fn(*_replace_arrays(inputs, lambda array: _torch_tensor(array, torch_leaves)))
    assert isinstance(our_outputs, tuple) == isinstance(torch_outputs, tuple)
    our_outputs = our_outputs if isinstance(our_outputs, tuple) else (our_outputs,)
    torch_outputs = torch_outputs if isinstance(torch_outputs, tuple) else (torch_outputs,)

    rng = np.random.default_rng(1)
    upstream = []
    for i, (y, expected) in enumerate(zip(our_outputs, torch_outputs, strict=True)):
        assert_close(y.data, expected, f"output {i}")
        upstream.append(rng.standard_normal(y.shape).astype(y.dtype))
    if len(our_outputs) == 1:
        our_outputs[0].backward(upstream[0])
    else:  # one walk for all outputs: the sum of y g has the gradient g for y
        sum((y * g).sum() for y, g in zip(our_outputs, upstream, strict=True)).backward()
    torch.autograd.backward(torch_outputs, [torch.tensor(g) for g in upstream])

    scale = largest(*(leaf.grad for leaf in torch_leaves))  # of all: softmax of one score has a gradient of exactly 0
    for i, (ours, theirs) in enumerate(zip(our_leaves, torch_leaves, strict=True)):
        assert_close(ours.grad, theirs.grad, f"gradient of input {i}", scale=scale)


def assert_same_layer(ours, theirs, *inputs):
    """Two modules agree from the same weights: output, gradients of the inputs and gradients of the parameters.

    The weights are drawn at random and copied to PyTorch's module by name: names and layouts agree too.
    """
    ours.to(dtype="float64")
    theirs.double()
    randomize(ours)
    copy_weights(ours, theirs)
    assert_parity(ours, theirs, inputs)
    assert_same_gradients(ours, theirs)


def assert_same_gradients(ours, theirs):
    """Every parameter of a minigrad module has the gradient of its namesake in a PyTorch module."""
    for name, parameter, torch_parameter in parameter_pairs(ours, theirs):
        assert_close(parameter.grad, torch_parameter.grad, f"gradient of {name}")


def assert_same_losses_and_gradients(ours, theirs, ids, targets):
    """Two language models agree in their logits, their loss, and its gradients for all parameters."""
    logits, loss = ours(ids, targets)
    torch_logits, torch_loss = theirs(torch.tensor(ids), torch.tensor(targets))
    assert_close(logits.data, torch_logits, "logits")
    assert_close(loss.data, torch_loss, "loss")
    loss.backward()
    torch_loss.backward()
    assert_same_gradients(ours, theirs)


def assert_same_weights(ours, theirs, when):
    """Every parameter of a minigrad module equals its namesake in a PyTorch module."""
    for name, parameter, torch_parameter in parameter_pairs(ours, theirs):
        assert_close(parameter.data, torch_parameter, f"{name} {when}")


def parameter_pairs(ours, theirs):
    """(name, minigrad's parameter, PyTorch's parameter) of two modules, whose names must be the same."""
    our_parameters, torch_parameters = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert our_parameters.keys() == torch_parameters.keys()
    return [(name, parameter, torch_parameters[name]) for name, parameter in our_parameters.items()]


def randomize(module):
    """Draw all parameters anew: with layer norms of 1 and biases of 0, mistakes in their use would not show."""
    rng = np.random.default_rng(2)
    for parameter in module.parameters():
        parameter.data[...] = 0.5 * rng.standard_normal(parameter.shape)


def copy_weights(ours, theirs):
    """Write the parameters of a minigrad module into a PyTorch module."""
    with torch.no_grad():
        for _, parameter, torch_parameter in parameter_pairs(ours, theirs):
            assert parameter.shape == torch_parameter.shape
            torch_parameter.copy_(torch.tensor(parameter.data))


def _replace_arrays(value, tensor_of):
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_arrays(part, tensor_of) for part in value)
    return tensor_of(value) if isinstance(value, np.ndarray) else value


def _our_tensor(array, leaves):
    if array.dtype.kind != "f":
        return array
    leaves.append(mg.Tensor(array.copy(), requires_grad=True))
    return leaves[-1]


def _torch_tensor(array, leaves):
    if array.dtype.kind != "f":
        return torch.tensor(array)
    leaves.append(torch.tensor(array, requires_grad=True))
    return leaves[-1]
