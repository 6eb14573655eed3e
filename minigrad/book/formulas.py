"""The docstrings' plain-text formulas as HTML: mu becomes μ, x_hat x̂, x^2 x², dL/dx a fraction.

A formula is parsed by the small grammar below and is left as it is written if it does not parse: `formula` then raises
`NotAFormula`. What the eye does not need, such as the ^ of a power, stays in the HTML with font size 0. So a formula
that is copied from the page, read aloud or stripped of its tags is again what the docstring says.

    relation  sum (= sum)*                    also < > <= >=
    sum       quotient (+ quotient)*          also - ± …
    quotient  product ( / product)?           the slash between spaces divides all that stands before it
    product   factor+                         side by side; a `sum_j` or `sum of` takes in all that follows
    factor    postfix (/postfix)?             the slash without spaces binds closer than side by side
    postfix   atom, then _subscript ^power (arguments) [index] '
    atom      number, name, (relation, …), [relation, …], |sum|

Where it could mean two things, as in a / b c, it is no formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "theta": "θ", "lambda": "λ", "mu": "μ",
    "pi": "π", "rho": "ρ", "sigma": "σ", "phi": "φ", "omega": "ω", "Delta": "Δ", "Phi": "Φ", "Sigma": "Σ", "Omega": "Ω",
}  # fmt: skip
FUNCTIONS = frozenset("exp ln log sqrt tanh cos sin erf max min mean sign softmax sigmoid dropout target".split())
WORDS = frozenset("var loss base offset correction scale bias weight low high size ids index value mask axes".split())
DIFFERENTIABLE = frozenset([*GREEK, *WORDS, "mean"])
RELATIONS = {"->": "→", "=": "=", "<": "&lt;", ">": "&gt;", "<=": "≤", ">=": "≥"}
ADDITIONS = {"+": "+", "-": "−", "±": "±", "…": "…"}
BRACKETS = {"(": ")", "[": "]"}
LONGEST_SUBSCRIPT = 2  # W_oi is a formula, n_embd is the name of a variable in code
NARROW = "\u202f"  # between factors: a narrow space at which no line breaks
FIRM = "\u00a0"  # after +, = and /: lines break before them

TOKEN = re.compile(r"(\s*)(?:(\d+(?:,\d{3})*(?:\.\d+)?)|([A-Za-z]+)|(<=|>=|->|[-+=<>/^_'()\[\]|,@±…]))")


class NotAFormula(ValueError):
    """The text does not follow the grammar, or could mean two things."""


class Token(NamedTuple):
    text: str
    kind: str  # "number", "name", "sign" or, at the end of the text, ""
    spaced: bool  # is there a space before it?


class Node(NamedTuple):
    """A piece of a formula as HTML."""

    html: str
    bare: str | None = None  # without its brackets, where a fraction bar or a raised place says the same
    factors: int = 1
    is_sum: bool = False


END = Token("", "", True)


def hidden(text: str) -> str:
    return f'<span class="src">{escape(text, quote=False)}</span>'


def tokens_of(text: str) -> list[Token]:
    tokens, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = TOKEN.match(text, place)
        if not match:
            raise NotAFormula(f"{text[place:]!r} in {text!r}")
        space, number, name, sign = match.groups()
        tokens.append(Token(number or name or sign, "number" if number else "name" if name else "sign", bool(space)))
        place = match.end()
    return tokens


class Parser:
    def __init__(self, text: str, stacked: bool, strict: bool) -> None:
        self.text, self.tokens, self.place = text, tokens_of(text), 0
        self.stacked = stacked  # fractions with a bar; else with a slash
        self.strict = strict  # in a sentence: a word next to a factor is more likely English than a product
        self.depth = 0  # how many brackets, powers and subscripts are open
        self.in_bars = False

    def fail(self) -> NotAFormula:
        return NotAFormula(f"{self.text!r}, at {self.next.text!r}")

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else END

    @property
    def after_next(self) -> Token:
        return self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else END

    def take(self, *texts: str) -> Token:
        token = self.next
        if not token.kind or (texts and token.text not in texts):
            raise self.fail()
        self.place += 1
        return token

    def tight(self, text: str) -> bool:
        """Does `text` come next, without a space before it?"""
        return self.next.text == text and not self.next.spaced

    # The grammar, from the loosest to the closest

    def whole(self) -> str:
        node = self.relation()
        if self.next is not END:
            raise self.fail()
        return node.html

    def relation(self) -> Node:
        node = self.sum()
        while self.next.text in RELATIONS:
            relation = RELATIONS[self.take().text]
            node = Node(f"{node.html} {relation}{FIRM}{self.sum().html}", factors=2)
        return node

    def sum(self) -> Node:
        node = self.quotient()
        while self.next.text in ADDITIONS:
            before, after = self.next.spaced, self.after_next.spaced
            if before != after or not (before or self.depth):  # "1-D" and "x -1" are not differences
                raise self.fail()
            sign, right = ADDITIONS[self.take().text], self.quotient().html
            node = Node(f"{node.html} {sign}{FIRM}{right}" if before else f"{node.html}{sign}{right}", factors=2)
        return node

    def quotient(self) -> Node:
        if self.next.text in ("-", "±"):
            sign = ADDITIONS[self.take().text]
            if self.next.spaced:
                raise self.fail()
            node = self.quotient()
            return Node(sign + node.html, factors=node.factors)
        left = self.product()
        if self.next.text == "@" and self.next.spaced:
            self.take()
            left = Node(f"{left.html} @{FIRM}{self.product().html}", factors=2)
        if self.next.text == "/" and self.next.spaced and self.after_next.spaced:
            self.take()
            right = self.product()
            if right.factors > 1 and not right.is_sum:
                raise self.fail()  # a / b c
            left = self.fraction(left, right, spaced=True)
            if self.next.text == "/":
                raise self.fail()
        return left

    def product(self) -> Node:
        if self.next.text == "sum" and not (self.after_next.text == "(" and not self.after_next.spaced):
            return self.summation()
        words = 1 if self.is_bare_word() else 0
        factors = [self.factor()]
        while self.starts_factor():
            digit_before = self.tokens[self.place - 1].kind == "number"
            if not (self.next.spaced or (digit_before and self.next.kind == "name")):
                raise self.fail()
            space = NARROW if self.next.spaced else ""
            if self.next.text == "sum":
                before = "".join(factor.html for factor in factors)
                return Node(before + space + self.summation().html, factors=2)
            words += self.is_bare_word()
            node = self.factor()
            factors.append(Node(space + node.html))
        if len(factors) == 1:
            return factors[0]
        if words and self.strict:
            raise self.fail()
        return Node("".join(f.html for f in factors), factors=len(factors))

    def is_bare_word(self) -> bool:
        called = self.after_next.text in ("(", "[", "_", "^") and not self.after_next.spaced
        return self.next.text in (FUNCTIONS | WORDS) - {"cos", "sin"} and not called and not self.is_prefix()

    def is_prefix(self) -> bool:
        """A function that is named before its argument without brackets, as in tanh x?"""
        argument = self.after_next
        return self.next.text in FUNCTIONS and argument.spaced and argument.kind in ("name", "number")

    def starts_factor(self) -> bool:
        token = self.next
        if token.text in ("of", "over"):
            return False
        return token.kind in ("name", "number") or token.text in BRACKETS or (token.text == "|" and not self.in_bars)

    def summation(self) -> Node:
        """sum_j, sum of, and sum over rows of."""
        self.take("sum")
        if self.tight("_"):
            sign = "∑" + self.subscript()
        elif self.next.text == "over":
            self.take()
            over = self.take()
            if over.kind != "name":
                raise self.fail()
            self.take("of")
            sign = f"∑{hidden(' over ')}<sub>{over.text}</sub>{hidden(' of')}"
        else:
            self.take("of")
            sign = f"∑{hidden(' of')}"
        if not self.next.spaced:
            raise self.fail()
        return Node(f'<span class="sum">{sign}</span>{NARROW}{self.product().html}', factors=2, is_sum=True)

    def factor(self) -> Node:
        left = self.postfix()
        if self.tight("/"):
            self.take()
            if self.next.spaced:
                raise self.fail()
            left = self.fraction(left, self.postfix(), spaced=False)
            if self.tight("/"):
                raise self.fail()
        return left

    def fraction(self, above: Node, below: Node, spaced: bool) -> Node:
        slash = " / " if spaced else "/"
        if not self.stacked or self.depth:
            slash = f" /{FIRM}" if spaced else slash
            return Node(f"{above.html}{slash}{below.html}", factors=2 if spaced else 1)
        above_html, below_html = above.bare or above.html, below.bare or below.html
        parts = f'<span class="above">{above_html}</span>{hidden(slash)}<span class="below">{below_html}</span>'
        return Node(f'<span class="fraction">{parts}</span>', factors=2 if spaced else 1)

    def postfix(self) -> Node:
        prefix = self.is_prefix()
        token = self.next
        if prefix and token.text in ("cos", "sin"):
            raise self.fail()  # a cos b: is it the cosine of b?
        node = self.atom()
        if prefix:
            argument = self.postfix().html
            return Node(root(" ", argument) if token.text == "sqrt" else node.html + NARROW + argument)
        raised = False
        while not self.next.spaced and self.next.text in ("_", "^", "'", "(", "["):
            if self.next.text == "_":
                if raised or (token.text in FUNCTIONS and self.tokens[self.place - 1] is token):
                    raise self.fail()
                if self.after_next.text == "hat" and not self.after_next.spaced:
                    self.place += 2
                    node = Node(self.with_hat(token.text))
                else:
                    node = Node(node.html + self.subscript())
            elif self.next.text == "^" and not raised:
                node, raised = Node(node.html + self.power()), True
            elif self.next.text == "'":
                self.take()
                node = Node(node.html + "′")
            elif token.kind == "name" or (token.text == "1" and self.next.text == "["):  # 1[i = j] is 1 where i = j
                inside = self.bracket()
                if token.text == "sqrt":
                    node = Node(root("", inside.bare or ""))
                else:
                    node = Node(node.html + inside.html)
            else:
                raise self.fail()
        if token.kind == "name" and self.next.kind == "number" and not self.next.spaced:
            raise self.fail()  # float32
        return node

    def atom(self) -> Node:
        token = self.next
        if token.text in BRACKETS:
            return self.bracket()
        if token.text == "|" and not self.in_bars:
            self.take()
            self.in_bars = True
            inside = self.sum().html
            self.take("|")
            self.in_bars = False
            return Node(f"|{inside}|")
        if token.kind == "number" or token.text == "…":
            return Node(self.take().text)
        if token.kind != "name":
            raise self.fail()
        return Node(self.name(self.take().text))

    def name(self, name: str) -> str:
        if name in FUNCTIONS or name in WORDS or name == "sum":
            return name
        if name == "inf":
            return "∞"
        if name in GREEK or len(name) == 1:
            return f"<i>{GREEK.get(name, name)}</i>"
        if is_name(name):
            return "d" + self.name(name[1:])
        raise self.fail()

    def with_hat(self, name: str) -> str:
        if len(name) == 2 and name[0] == "d":
            return "d" + self.with_hat(name[1])
        if name not in GREEK and not re.fullmatch("[A-Za-z]", name):
            raise self.fail()
        return f"<i>{GREEK.get(name, name)}\u0302</i>"

    def bracket(self) -> Node:
        opening = self.take("(", "[").text
        self.depth += 1
        items = []
        while True:
            items.append(self.relation())
            if self.next.text != ",":
                break
            self.take()
            if self.next.text == BRACKETS[opening]:  # (C,)
                items.append(Node(""))
                break
            if not self.next.spaced:
                raise self.fail()
        self.depth -= 1
        closing = self.take(BRACKETS[opening]).text
        inside = ", ".join(item.html for item in items).rstrip(" ")
        return Node(f"{opening}{inside}{closing}", f"{hidden(opening)}{inside}{hidden(closing)}")

    def subscript(self) -> str:
        self.take("_")
        if self.next.spaced:
            raise self.fail()
        self.depth += 1
        if self.next.text == "(":
            inside = self.bracket().bare or ""
        else:
            token = self.take()
            if token.kind == "sign" or (token.kind == "name" and len(token.text) > LONGEST_SUBSCRIPT):
                raise self.fail()
            inside = f"<i>{token.text}</i>" if token.kind == "name" else token.text
            while self.tight(",") and self.after_next.kind == "name" and not self.after_next.spaced:
                self.take()
                inside += "," + self.postfix().html
        self.depth -= 1
        return f"{hidden('_')}<sub>{inside}</sub>"

    def power(self) -> str:
        self.take("^")
        if self.next.spaced:
            raise self.fail()
        self.depth += 1
        sign = ADDITIONS[self.take().text] if self.next.text == "-" else ""
        if self.next.spaced:
            raise self.fail()
        token = self.next
        node = self.atom()
        self.depth -= 1
        inside = "T" if token.text == "T" else node.bare or node.html
        return f"{hidden('^')}<sup>{sign}{inside}</sup>"


def is_name(name: str) -> bool:
    """A letter, Latin or Greek, a word of formulas, or the differential of one of them, as dx and dmu."""
    if name[0] == "d" and len(name) > 1 and name != "do" and (len(name) == 2 or name[1:] in DIFFERENTIABLE):
        return True
    return len(name) == 1 or name in GREEK or name in FUNCTIONS or name in WORDS


def root(space: str, html: str) -> str:
    return f'{hidden("sqrt" + space)}<span class="root">{html}</span>'  # the style sheet draws the sign


def formula(text: str, stacked: bool = True, strict: bool = False) -> str:
    """A formula as HTML, with fraction bars or, `stacked` being false, with slashes. Raises `NotAFormula`."""
    return f'<span class="math">{Parser(text, stacked, strict).whole()}</span>'


# Sentences

WORD = re.compile(r"\S+")
NAME = re.compile(r"(?<![A-Za-z_])[A-Za-z]+")
MARK = re.compile(r"\b[b-zB-HJ-Z]\b|[_^=<>|']|\bd[A-Za-z]\b|\b(?:inf|" + "|".join(GREEK) + r")\b")
ARTICLE = re.compile(r"^[aAI](?:$|\s+[^-+=<>/\s(])|[^-+=<>/\s]\s+[aAI]$")
NO_ARTICLE = re.compile(r"\s+(?:and|or|is)\b")  # after "a", which is then a letter
PART_BEFORE = re.compile(r"(?:[-+=</^*_]|(?<!-)>)\s*$|(?:[+=</*]|(?<!-)>)\s+[^\s.,;:]+\s+$")
PART_AFTER = re.compile(r"^(?:\s+(?:[+=<>/*]|-\s)|[-+=<>/^*_(\[]|\s+[^\s.,;:]+\s+[+=<>/*])")


class Run(NamedTuple):
    """A stretch of a sentence."""

    kind: str  # "words", "formula" or "code"
    source: str
    html: str


def sentence(text: str) -> str:
    """A sentence as HTML: `backticks` are code, and words that are plainly formulas are set as such."""
    return "".join(run.html for run in runs(text))


def runs(text: str) -> Iterator[Run]:
    parts = re.split(r"(`[^`]+`)", text)
    for part in parts:
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            yield Run("code", part, f"<code>{escape(part[1:-1], quote=False)}</code>")
        else:
            yield from words_and_formulas(part)


def words_and_formulas(text: str) -> Iterator[Run]:
    words = list(WORD.finditer(text))
    place, i = 0, 0
    while i < len(words):
        found = longest_formula(text, words, i)
        if found is None:
            i += 1
            continue
        start, end, i, html = found
        if start > place:
            yield Run("words", text[place:start], escape(text[place:start], quote=False))
        yield Run("formula", text[start:end], html)
        place = end
    if place < len(text):
        yield Run("words", text[place:], escape(text[place:], quote=False))


def longest_formula(text: str, words: list[re.Match[str]], i: int) -> tuple[int, int, int, str] | None:
    """The longest formula that starts at word i: where it starts, where it ends, the next word, and its HTML."""
    first = words[i]
    opening = len(first.group()) - len(first.group().lstrip("("))
    longest = i
    while longest < len(words) and may_be_of_a_formula(words[longest].group(), words[longest - 1].group()):
        longest += 1
    for j in range(longest - 1, i - 1, -1):
        last = words[j].group()
        closing = len(last) - len(last.rstrip(").,;:"))
        for start in range(first.start(), first.start() + opening + 1):
            for end in range(words[j].end(), words[j].end() - closing - 1, -1):
                run = text[start:end]
                if plainly_a_formula(run, text[:start], text[end:]):
                    try:
                        return start, end, j + 1, formula(run, stacked=False, strict=True)
                    except NotAFormula:
                        pass
    return None


def may_be_of_a_formula(word: str, before: str) -> bool:
    """Are all names in it known to formulas? A quick answer, before the parser's."""
    names = NAME.findall(word)
    return before == "over" or all(name in ("sum", "of", "over", "inf") or is_name(name) for name in names)


def plainly_a_formula(run: str, before: str, after: str) -> bool:
    """Not an article, not a bare number or word, and no part of something longer that does not parse."""
    if run == "a" and NO_ARTICLE.match(after):
        return not PART_BEFORE.search(before)
    if not run or run[-1] in ",.;:" or not MARK.search(run) or run.startswith("sum o"):
        return False
    if ARTICLE.search(run) and (before or run[0] != "a" or len(run) == 1):  # no sentence begins with a small "a"
        return False
    return not PART_BEFORE.search(before) and not PART_AFTER.search(after)
