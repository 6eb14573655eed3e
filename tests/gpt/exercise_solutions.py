"""The exercises solved, as a student would write it: what takes the place of `raise NotImplementedError`.

A mistake is a solution with one piece of it exchanged, so that tests can say what a student might have written.
"""

from pathlib import Path

import pytest

EXERCISES = Path(__file__).parents[2] / "examples" / "exercises"
UNWRITTEN = '    raise NotImplementedError("not written yet")\n'

SUM_TO = """
    if g.shape == shape:
        return g
    new = g.ndim - len(shape)
    g = g.sum(axis=tuple(range(new)))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
"""

# For the exercises of plain functions: what stands in each of them.
FUNCTIONS = {
    "ex00_slopes.py": {
        "derivative": """
    return (f(x + h) - f(x - h)) / (2 * h)
""",
        "gradient": """
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[place] += h
        below[place] -= h
        slopes[place] = (f(above) - f(below)) / (2 * h)
    return slopes
""",
        "count_pairs": """
    counts = np.zeros((V, V), int)
    for a, b in zip(ids[:-1], ids[1:]):
        counts[a, b] += 1
    return counts
""",
        "probabilities": """
    more = counts + 1
    return more / more.sum(axis=1, keepdims=True)
""",
    },
    "ex11_walk.py": {
        "order": """
    uses, found = {root: 0}, [root]
    for node in found:
        for x in node.inputs:
            if x not in uses:
                found.append(x)
                uses[x] = 0
            uses[x] += 1
    listed, ready = [], [root]
    while ready:
        node = ready.pop()
        listed.append(node)
        for x in node.inputs:
            uses[x] -= 1
            if uses[x] == 0:
                ready.append(x)
    return listed
""",
        "backward": """
    grads = {root: g}
    for node in order(root):
        g = grads.pop(node)
        if not node.inputs:
            node.grad = g.copy() if node.grad is None else node.grad + g
            continue
        for x, new in zip(node.inputs, node.backward(g)):
            grads[x] = grads[x] + new if x in grads else new
""",
    },
}

BACKWARD = {
    "ex01_add.py": """
        return sum_to(g, a_shape), sum_to(g, b_shape)
""",
    "ex02_multiply.py": """
        return sum_to(g * b, a_shape), sum_to(g * a, b_shape)
""",
    "ex03_gelu.py": """
        dt = 1 - t * t
        du = c * (1 + 3 * a * x * x)
        return g * (0.5 * (1 + t) + 0.5 * x * dt * du)
""",
    "ex04_matmul.py": """
        da = sum_to(g @ b.swapaxes(-1, -2), a.shape)
        db = sum_to(a.swapaxes(-1, -2) @ g, b.shape)
        return da.reshape(a_shape), db.reshape(b_shape)
""",
    "ex05_linear.py": """
        rows = x.reshape(-1, x.shape[-1])
        g_rows = g.reshape(-1, g.shape[-1])
        return (g_rows @ weight).reshape(x.shape), g_rows.T @ rows, g_rows.sum(axis=0)
""",
    "ex06_embedding.py": """
        dW = np.zeros(ctx.shape, g.dtype)
        np.add.at(dW, ids, g)
        return None, dW
""",
    "ex07_softmax.py": """
        return y * (g - (g * y).sum(axis=ctx.axis, keepdims=True)), None
""",
    "ex08_cross_entropy.py": """
        g_row = g.reshape(-1, 1)
        if ctx.reduction == "mean":
            g_row = g_row / ctx.n
        dx = (p - q) * g_row * counted[:, None]
        return dx.reshape(ctx.shape), None, None, None, None
""",
    "ex09_layer_norm.py": """
        g_hat = g * gamma
        dx = r * (g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat))
        return dx, sum_to(g * x_hat, gamma.shape), sum_to(g, gamma.shape), None
""",
    "ex10_attention.py": """
        da = g @ v.swapaxes(-1, -2)
        dp = drop(da, ctx.dropout)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
        dq = ctx.scale * ds @ k
        dk = ctx.scale * ds.swapaxes(-1, -2) @ q
        dv = drop(p, ctx.dropout).swapaxes(-1, -2) @ g
        return sum_to(dq, q.shape), sum_to(dk, k.shape), sum_to(dv, v.shape), None, None, None
""",
}


def handed_out(file: str) -> str:
    """The text of an exercise. Skips the test that asks for it if somebody has solved it, as is their good right."""
    text = (EXERCISES / file).read_text(encoding="utf-8")
    if text.count(UNWRITTEN) != len(FUNCTIONS.get(file, [0])) + (file == "ex01_add.py"):
        pytest.skip(f"{file} has been worked on; this test wants it as it was handed out")
    return text


def with_backward(file: str, body: str) -> str:
    """The text of an exercise with this body, indented as above, in its backward; and with `sum_to` of the first."""
    text = handed_out(file)
    if file == "ex01_add.py":
        text = text.replace(UNWRITTEN, SUM_TO.removeprefix("\n"), 1)
    assert text.endswith("    " + UNWRITTEN)
    return text.removesuffix("    " + UNWRITTEN) + body.removeprefix("\n")


def with_functions(file: str, bodies: dict[str, str]) -> str:
    """The text of an exercise of plain functions, with these bodies in them."""
    text = handed_out(file)
    for name, body in bodies.items():
        start = text.index(f"def {name}(")
        text = text[:start] + text[start:].replace(UNWRITTEN, body.removeprefix("\n"), 1)
    return text


def write_solutions(folder: Path) -> None:
    """All exercises, solved, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    for file, body in BACKWARD.items():
        (folder / file).write_text(with_backward(file, body), encoding="utf-8")
    for file, bodies in FUNCTIONS.items():
        (folder / file).write_text(with_functions(file, bodies), encoding="utf-8")
