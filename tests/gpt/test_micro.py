"""The GPT in one file: the same loss and gradients as the engine's GPT, and it learns."""

import ast
import functools
import re
import sys
import types

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig
from tests.programs import EXAMPLES, load_program

SOURCE = (EXAMPLES / "micro.py").read_text(encoding="utf-8")
SIZE = {"vocab_size": 7, "block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 4}
WORDS = [[0, 3, 1, 3, 5, 0], [0, 6, 0]]  # the targets are the same, one place further


@pytest.fixture
def micro():
    return load_program("micro")


def data_of(weight):
    return np.array([[p.data for p in row] for row in weight])


def gradients_of(module, word):
    """The loss of the one-file GPT for a word, and its weights and gradients by name."""
    module.random.seed(5)
    model = module.GPT(**SIZE)
    for name, weight in model.weights.items():
        if "ln" in name:  # they begin at 1, which would hide a missing factor
            weight[0] = [module.Value(module.random.uniform(0.5, 1.5)) for _ in weight[0]]
    loss = model.loss(word[:-1], word[1:])
    loss.backward()
    grads = {name: np.array([[p.grad for p in row] for row in weight]) for name, weight in model.weights.items()}
    return loss.data, {name: data_of(weight) for name, weight in model.weights.items()}, grads


def differences(module):
    """How far the loss and each gradient are from the engine's, for the same weights and words, in float64."""
    found = {}
    for word in WORDS:
        loss, weights, grads = gradients_of(module, word)
        engine = GPT(GPTConfig(**SIZE, bias=False, norm="rms", activation="relu2")).to(dtype="float64")
        parameters = dict(engine.named_parameters())
        assert {f"{name}.weight" for name in weights} == set(parameters)
        engine.load_state_dict({name: weights[name[:-7]].reshape(p.shape) for name, p in parameters.items()})
        _, expected = engine(mg.Tensor([word[:-1]]), mg.Tensor([word[1:]]))
        expected.backward()
        found["loss", *word] = abs(loss - expected.item())
        for name, p in parameters.items():
            found[name, *word] = np.abs(grads[name[:-7]].reshape(p.shape) - p.grad).max()
    return found


def test_loss_and_gradients_are_the_engines(micro):
    found = differences(micro)
    assert len(found) == 2 * 16
    assert max(found.values()) < 1e-10
    assert all(np.abs(grad).max() > 1e-3 for grad in gradients_of(micro, WORDS[0])[2].values())


WRONG = {
    "(self, other), (1.0, 1.0)": "(self, other), (1.0, -1.0)",
    "(other.data, self.data)": "(self.data, other.data)",
    "n * self.data ** (n - 1)": "self.data ** (n - 1)",
    "(self,), (y,)": "(self,), (1 + y,)",
    "1 / self.data,": "self.data,",
    "float(self.data > 0)": "2.0",
    "(*y, *x)": "(*x, *y)",
    "x.grad += slope * number.grad": "x.grad = slope * number.grad",
    "if uses[x] == 0:": "if uses[x] == 1:",
    "complete.pop()": "complete.pop(); self.grad = 2.0",
    "range(t + 1)": "range(len(x))",
    "(head, C + head, 2 * C + head)": "(head, 2 * C + head, C + head)",
    "/ math.sqrt(hs)": "/ hs",
    "1e-5": "1e-6",
    'x, w[h + "ln_2"]': 'x, w[h + "ln_1"]',
}


@pytest.mark.parametrize("right", WRONG)
def test_a_wrong_derivative_or_formula_is_noticed(right):
    assert SOURCE.count(right) >= 1
    module = types.ModuleType("wrong")
    exec(compile(SOURCE.replace(right, WRONG[right]), "micro.py", "exec"), vars(module))
    assert max(differences(module).values()) > 1e-6


def test_a_long_chain_needs_no_recursion(micro):
    x = y = micro.Value(0.5)
    for _ in range(20_000):
        y = y + x
    y.backward()
    assert x.grad == 20_001


def test_it_learns(micro, capsys):
    micro.random.seed(0)
    model = micro.GPT(4, block_size=4, n_embd=8, n_head=2)
    micro.train(model, [[0, 1, 2, 3, 0]], 200)
    first, last = map(float, re.findall(r"loss (\S+)", capsys.readouterr().out))
    assert first > 2 * last
    assert micro.sample(model) == [0, 1, 2, 3]  # as many as fit


def test_the_program_learns_the_words_of_a_file(micro, tmp_path, monkeypatch, capsys):
    words = tmp_path / "words.txt"
    words.write_text("öl ei\nsupercalifragilistic\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["micro.py", "--words", str(words), "--steps", "2"])
    monkeypatch.setattr(micro, "GPT", functools.partial(micro.GPT, block_size=6, n_embd=4))
    micro.main()
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"3 words, {len(set('ölei supercalifragilistic'))} characters, 284 parameters"
    assert set(last) <= set("ölei supercalifragilistic")


def test_it_is_short_and_needs_the_standard_library_alone():
    assert len(SOURCE.splitlines()) <= 200
    imported = {
        name.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for name in node.names
    }
    modules = {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    assert imported | modules <= set(sys.stdlib_module_names)
