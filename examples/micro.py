"""The whole idea in one file: backpropagation, a GPT, Adam and sampling, with Python's standard library alone.

    python examples/micro.py                    # learn the names below, then invent new ones
    python examples/micro.py --words FILE       # learn the words of a file

Read it from top to bottom; docs/micro.md goes on to the engine. Shapes: T tokens, C channels, V different characters.
"""

import argparse
import math
import random
from pathlib import Path

NAMES = """ada agnes aisha alan albert alexander alfred alina amelia amina amir amy andrew angela anita anna anton
astrid audrey aurora barbara beatrice bernard bertha bianca camille carol caroline catherine cecilia charles charlotte
clara claudia daniel delia diego dora doris edgar edith edmund elena ella elliot emily evelyn felix fernando frances
frida gilbert gordon grace gregory greta hanna harriet hassan hazel hugo ida ines irene isaac ivan jacob james jasmine
jasper jean jeremy jerome joan jonathan joseph joshua judith julian karl kate kenneth kiran laura leah lena leon leonard
linda lorenzo louis lucia lucy malcolm manuel marco maria marian marina mario matthew melanie michael mila miriam mona
monica morris muriel nadia naomi nathan nina noah nora oliver oscar otto owen pablo pamela patrick paul paula pedro
priya ralph raphael rebecca rita roland roman rosa rupert sandra sara selma sharon sofia sonia stephen susan sylvia
teresa theodore thomas tristan ursula vanessa victor viola vivian walter wanda xavier yasmin yolanda yvonne zara zoe"""


class Value:
    """A number that knows the inputs it was computed from, and its slope with respect to each of them: when an input
    grows by a small h, the number grows by slope * h. After loss.backward(), grad is the slope of the loss with respect
    to this number."""

    __slots__ = ("data", "grad", "inputs", "slopes")

    def __init__(self, data, inputs=(), slopes=()):
        self.data, self.grad, self.inputs, self.slopes = data, 0.0, inputs, slopes

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n):
        return Value(self.data**n, (self,), (n * self.data ** (n - 1),))

    def __truediv__(self, other):
        return self * other**-1

    __radd__, __rmul__ = __add__, __mul__

    def exp(self):
        y = math.exp(self.data)
        return Value(y, (self,), (y,))

    def log(self):
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def relu(self):
        return Value(max(self.data, 0.0), (self,), (float(self.data > 0),))

    def backward(self):
        """Add the slope of this number with respect to x to x.grad, for every x that it was computed from.

        By the chain rule, x.grad is a sum over the uses of x: the slope there times the grad of the result. The sum is
        complete when all these results have been visited. Only then is x visited, and passes its grad on to its inputs.
        """
        found, uses = [self], {self: 0}
        for number in found:  # the list grows until it holds every number
            for x in number.inputs:
                if x not in uses:
                    found.append(x)
                uses[x] = uses.get(x, 0) + 1
        self.grad, complete = 1.0, [self]
        while complete:
            number = complete.pop()
            for x, slope in zip(number.inputs, number.slopes):
                x.grad += slope * number.grad
                uses[x] -= 1
                if uses[x] == 0:
                    complete.append(x)


def dot(a, b):
    """a_0 b_0 + a_1 b_1 + ..., as one number with many inputs. Most of the work is in these sums."""
    x, y = [each.data for each in a], [each.data for each in b]
    return Value(sum(i * j for i, j in zip(x, y)), (*a, *b), (*y, *x))


def linear(x, weight):  # (T, I), (O, I) -> (T, O)
    return [[dot(token, row) for row in weight] for token in x]


def add(x, y):  # (T, C), (T, C) -> (T, C)
    return [[a + b for a, b in zip(*tokens)] for tokens in zip(x, y)]


def rms_norm(x, weight):  # (T, C), (1, C) -> (T, C)
    """Divide each token by the root of its mean square, and multiply each channel by its weight."""
    scales = [(dot(token, token) / len(token) + 1e-5) ** -0.5 for token in x]
    return [[a * scale * w for a, w in zip(token, weight[0])] for token, scale in zip(x, scales)]


def softmax(x):
    """Numbers to probabilities. Subtracting the largest changes no probability, and keeps exp from overflowing."""
    largest = max(a.data for a in x)
    powers = [(a + -largest).exp() for a in x]
    scale = sum(powers) ** -1
    return [power * scale for power in powers]


def attention(x, c_attn, c_proj, n_head):  # (T, C) -> (T, C)
    """Each token compares its query with the keys of all tokens up to itself, and takes a mean of their values."""
    C, hs, qkv, y = len(x[0]), len(x[0]) // n_head, linear(x, c_attn), [[] for _ in x]
    for head in range(0, C, hs):  # the first channel of each head
        q, k, v = ([token[i : i + hs] for token in qkv] for i in (head, C + head, 2 * C + head))  # (T, hs) each
        for t in range(len(x)):
            p = softmax([dot(q[t], k[u]) / math.sqrt(hs) for u in range(t + 1)])
            y[t] += [dot(p, channel) for channel in zip(*v[: t + 1])]
    return linear(y, c_proj)


def mlp(x, c_fc, c_proj):  # (T, C) -> (T, C)
    """Each token by itself: to four times as many channels, squared ReLU, and back."""
    return linear([[a.relu() ** 2 for a in token] for token in linear(x, c_fc)], c_proj)


class GPT:
    """The model of gpt/model.py with RMS norm, squared ReLU and no biases. The weights have the same names there."""

    def __init__(self, vocab_size, block_size=16, n_layer=1, n_head=4, n_embd=16):
        C, self.block_size, self.n_layer, self.n_head = n_embd, block_size, n_layer, n_head
        shapes = {"wte": (vocab_size, C), "wpe": (block_size, C), "ln_f": (1, C)}
        for h in (f"h.{i}." for i in range(n_layer)):
            shapes |= {h + "ln_1": (1, C), h + "attn.c_attn": (3 * C, C), h + "attn.c_proj": (C, C)}
            shapes |= {h + "ln_2": (1, C), h + "mlp.c_fc": (4 * C, C), h + "mlp.c_proj": (C, 4 * C)}
        self.weights = {
            name: [[Value(random.gauss(0, 0.2) if rows > 1 else 1.0) for _ in range(columns)] for _ in range(rows)]
            for name, (rows, columns) in shapes.items()
        }
        self.parameters = [p for weight in self.weights.values() for row in weight for p in row]

    def logits(self, ids):  # (T,) -> (T, V)
        """After each token, a number for every possible next token: the larger, the more likely."""
        w = self.weights
        x = add([w["wte"][i] for i in ids], w["wpe"])  # what each token is, and where it stands
        for h in (f"h.{i}." for i in range(self.n_layer)):
            x = add(x, attention(rms_norm(x, w[h + "ln_1"]), w[h + "attn.c_attn"], w[h + "attn.c_proj"], self.n_head))
            x = add(x, mlp(rms_norm(x, w[h + "ln_2"]), w[h + "mlp.c_fc"], w[h + "mlp.c_proj"]))
        return linear(rms_norm(x, w["ln_f"]), w["wte"])

    def loss(self, ids, targets):
        """How much the targets surprise the model: the mean of -ln p(target)."""
        surprises = [-1 * softmax(row)[target].log() for row, target in zip(self.logits(ids), targets)]
        return sum(surprises) / len(surprises)


def train(model, words, steps, lr=0.005, b1=0.9, b2=0.99):
    """Adam (Kingma and Ba, 2015), one word a step. m and v are running means of each gradient and of its square."""
    m, v, recent = [0.0] * len(model.parameters), [0.0] * len(model.parameters), []
    for step in range(1, steps + 1):
        ids = random.choice(words)
        loss = model.loss(ids[:-1], ids[1:])
        loss.backward()
        for i, p in enumerate(model.parameters):
            m[i] += (1 - b1) * (p.grad - m[i])
            v[i] += (1 - b2) * (p.grad**2 - v[i])
            mean, square = m[i] / (1 - b1**step), v[i] / (1 - b2**step)  # m and v begin at 0; this makes up for it
            p.data -= lr * (1 - step / steps) * mean / (math.sqrt(square) + 1e-8)
            p.grad = 0.0
        recent = [*recent[-99:], loss.data]
        if step % 100 == 0:
            print(f"step {step}: loss {sum(recent) / 100:.2f}", flush=True)


def sample(model, temperature=0.6):
    """The tokens of a new word. A lower temperature makes the likely characters more likely."""
    ids = [0]
    while len(ids) == 1 or (ids[-1] != 0 and len(ids) < model.block_size):
        p = softmax([logit / temperature for logit in model.logits(ids)[-1]])
        ids += random.choices(range(len(p)), [each.data for each in p])
    return ids


def main():
    parser = argparse.ArgumentParser(description="Train a tiny GPT on words and let it invent new ones.")
    parser.add_argument("--words", metavar="FILE", type=Path, help="a text file (default: the names in this program)")
    parser.add_argument("--steps", type=int, default=800, help="training steps, one word each (default: 800)")
    options = parser.parse_args()
    random.seed(1)
    words = (options.words.read_text(encoding="utf-8") if options.words else NAMES).split()
    characters = ["\n", *sorted(set("".join(words)))]  # token 0 begins and ends a word
    model = GPT(len(characters))
    print(f"{len(words)} words, {len(characters)} characters, {len(model.parameters)} parameters")
    tokens = [[characters.index(c) for c in f"\n{word}\n"][: model.block_size + 1] for word in words]
    train(model, tokens, options.steps)
    print(*("".join(characters[i] for i in sample(model)).strip() for _ in range(20)))


if __name__ == "__main__":
    main()
