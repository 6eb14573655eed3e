"""The docstrings' plain-text formulas as HTML: mu becomes μ, x_hat x̂, x^2 x², dL/dx a fraction.

A formula is parsed by the grammar below. `formula` raises `NotAFormula` if the text does not parse, and the page then
shows it as it is written. What a reader does not need to see, such as the ^ of a power, stays in the HTML with font
size 0. A formula that is copied from the page, read aloud or stripped of its tags is therefore what the docstring says.

    relation  sum (= sum)*                    also < > <= >= ->
    sum       quotient (+ quotient)*          also - ± …
    quotient  product ( / product)?           a slash between spaces divides everything before it
    product   factor+                         side by side; `sum_j` and `sum of` take everything that follows
    factor    postfix (/postfix)?             a slash without spaces binds more tightly than side by side
    postfix   atom, then _subscript ^power (arguments) [index] '
    atom      number, name, (relation, …), [relation, …], |sum|

An ambiguous text, such as a / b c, is not a formula.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

GREEK_NAMES = "alpha beta gamma delta eps theta lambda mu pi rho sigma phi omega Delta Phi Sigma Omega".split()
GREEK = dict(zip(GREEK_NAMES, "αβγδεθλμπρσφωΔΦΣΩ", strict=True))
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
    """The text does not follow the grammar, or is ambiguous."""


class Token(NamedTuple):
    text: str
    kind: str  # "number", "name", "sign" or, at the end of the text, ""
    spaced: bool  # is there a space before it?


class Node(NamedTuple):
    """A part of a formula as HTML."""

    html: str
    bare: str = ""  # without its brackets, where a fraction bar or a raised position makes them redundant
    factors: int = 1
    is_sum: bool = False


END = Token("", "", True)


def hidden(text: str) -> str:
    return f'<span class="src">{escape(text, quote=False)}</span>'


def infix(left: Node, sign: str, right: Node) -> Node:
    return Node(f"{left.html} {sign}{FIRM}{right.html}", factors=2)


def root(space: str, html: str) -> Node:
    return Node(f'{hidden("sqrt" + space)}<span class="root">{html}</span>')  # the style sheet draws the sign


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

    def expect(self, right: bool) -> None:
        if not right:
            raise NotAFormula(f"{self.text!r}, at {self.next.text!r}")

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else END

    @property
    def after_next(self) -> Token:
        return self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else END

    def take(self, *texts: str) -> Token:
        token = self.next
        self.expect(bool(token.kind) and (not texts or token.text in texts))
        self.place += 1
        return token

    def take_tight(self, *texts: str) -> Token:
        """Take a token that must have no space after it."""
        token = self.take(*texts)
        self.expect(not self.next.spaced)
        return token

    def tight(self, *texts: str) -> bool:
        """Does one of `texts` come next, without a space before it?"""
        return self.next.text in texts and not self.next.spaced

    # The grammar, from the loosest to the closest

    def whole(self) -> str:
        node = self.relation()
        self.expect(self.next is END)
        return node.html

    def relation(self) -> Node:
        node = self.sum()
        while self.next.text in RELATIONS:
            node = infix(node, RELATIONS[self.take().text], self.sum())
        return node

    def sum(self) -> Node:
        node = self.quotient()
        while self.next.text in ADDITIONS:
            spaced = self.next.spaced
            self.expect(spaced == self.after_next.spaced and bool(spaced or self.depth))  # not "1-D", not "x -1"
            sign, right = ADDITIONS[self.take().text], self.quotient()
            node = infix(node, sign, right) if spaced else Node(node.html + sign + right.html, factors=2)
        return node

    def quotient(self) -> Node:
        if self.next.text in ("-", "±"):
            sign, node = ADDITIONS[self.take_tight().text], self.quotient()
            return Node(sign + node.html, factors=node.factors)
        left = self.product()
        if self.next.text == "@" and self.next.spaced:
            left = infix(left, self.take().text, self.product())
        if self.next.text == "/" and self.next.spaced and self.after_next.spaced:
            self.take()
            right = self.product()
            self.expect(right.factors == 1 or right.is_sum)  # not a / b c
            left = self.fraction(left, right, " / ")
            self.expect(self.next.text != "/")
        return left

    def product(self) -> Node:
        factors: list[Node] = []
        words = 0
        while not factors or self.starts_factor():
            space = NARROW if factors and self.next.spaced else ""
            after_number = bool(factors) and self.tokens[self.place - 1].kind == "number"
            self.expect(not factors or self.next.spaced or (after_number and self.next.kind == "name"))
            if self.next.text == "sum" and not (self.after_next.text == "(" and not self.after_next.spaced):
                total = self.summation()
                before = "".join(factor.html for factor in factors)
                return total._replace(html=before + space + total.html, is_sum=not factors)
            words += self.is_bare_word()
            node = self.factor()
            factors.append(Node(space + node.html) if factors else node)
        self.expect(len(factors) == 1 or not (words and self.strict))
        return factors[0] if len(factors) == 1 else Node("".join(f.html for f in factors), factors=len(factors))

    def is_bare_word(self) -> bool:
        called = self.after_next.text in ("(", "[", "_", "^") and not self.after_next.spaced
        return self.next.text in (FUNCTIONS | WORDS) - {"cos", "sin"} and not called and not self.is_prefix()

    def is_prefix(self) -> bool:
        """Is it a function before its argument without brackets, as in tanh x?"""
        argument = self.after_next
        return self.next.text in FUNCTIONS and argument.spaced and argument.kind in ("name", "number")

    def starts_factor(self) -> bool:
        if self.next.kind == "sign":
            return self.next.text in BRACKETS or (self.next.text == "|" and not self.in_bars)
        return self.next is not END and self.next.text not in ("of", "over")

    def summation(self) -> Node:
        """sum_j, sum of, and sum over rows of."""
        sign = "∑"
        self.take("sum")
        if self.tight("_"):
            sign += self.subscript()
        else:
            if self.next.text == "over":
                self.take()
                self.expect(self.next.kind == "name")
                sign += f"{hidden(' over ')}<sub>{self.take().text}</sub>"
            self.take("of")
            sign += hidden(" of")
        self.expect(self.next.spaced)
        return Node(f'<span class="sum">{sign}</span>{NARROW}{self.product().html}', factors=2, is_sum=True)

    def factor(self) -> Node:
        left = self.postfix()
        if self.tight("/"):
            self.take_tight()
            left = self.fraction(left, self.postfix(), "/")
            self.expect(not self.tight("/"))
        return left

    def fraction(self, above: Node, below: Node, slash: str) -> Node:
        factors = len(slash.split("/ "))
        if not self.stacked or self.depth:
            return Node(above.html + slash.replace("/ ", f"/{FIRM}") + below.html, factors=factors)
        top = f'<span class="above">{above.bare or above.html}</span>'
        bottom = f'<span class="below">{below.bare or below.html}</span>'
        return Node(f'<span class="fraction">{top}{hidden(slash)}{bottom}</span>', factors=factors)

    def postfix(self) -> Node:
        prefix, token = self.is_prefix(), self.next
        self.expect(not (prefix and token.text in ("cos", "sin")))  # a cos b: is it the cosine of b?
        node = self.atom()
        if prefix:
            argument = self.postfix().html
            return root(" ", argument) if token.text == "sqrt" else Node(node.html + NARROW + argument)
        raised = False
        while self.tight("_", "^", "'", "(", "["):
            if self.next.text == "_":
                self.expect(not raised and not (token.text in FUNCTIONS and self.tokens[self.place - 1] is token))
                if self.after_next.text == "hat" and not self.after_next.spaced:
                    self.place += 2
                    node = Node(self.with_hat(token.text))
                else:
                    node = Node(node.html + self.subscript())
            elif self.next.text == "^":
                self.expect(not raised)
                node, raised = Node(node.html + self.power()), True
            elif self.next.text == "'":
                self.take()
                node = Node(node.html + "′")
            else:
                self.expect(token.kind == "name" or (token.text == "1" and self.next.text == "["))  # 1[i = j]
                inside = self.bracket()
                node = root("", inside.bare) if token.text == "sqrt" else Node(node.html + inside.html)
        self.expect(not (token.kind == "name" and self.next.kind == "number" and not self.next.spaced))  # float32
        return node

    def atom(self) -> Node:
        token = self.next
        if token.text in BRACKETS:
            return self.bracket()
        self.take()
        if token.text == "|" and not self.in_bars:
            self.in_bars = True
            inside = self.sum().html
            self.take("|")
            self.in_bars = False
            return Node(f"|{inside}|")
        self.expect(token.kind != "sign" or token.text == "…")
        return Node(self.name(token.text) if token.kind == "name" else token.text)

    def name(self, name: str) -> str:
        if name in FUNCTIONS or name in WORDS or name == "sum":
            return name
        if name in GREEK or len(name) == 1:
            return f"<i>{GREEK.get(name, name)}</i>"
        self.expect(name == "inf" or is_name(name))
        return "∞" if name == "inf" else "d" + self.name(name[1:])

    def with_hat(self, name: str) -> str:
        if len(name) == 2 and name[0] == "d":
            return "d" + self.with_hat(name[1])
        self.expect(name in GREEK or bool(re.fullmatch("[A-Za-z]", name)))
        return f"<i>{GREEK.get(name, name)}\u0302</i>"

    def bracket(self) -> Node:
        opening = self.take("(", "[").text
        closing = BRACKETS[opening]
        self.depth += 1
        inside = self.relation().html
        while self.next.text == ",":
            self.take()
            if self.next.text == closing:  # (C,)
                inside += ","
                break
            self.expect(self.next.spaced)
            inside += ", " + self.relation().html
        self.depth -= 1
        self.take(closing)
        return Node(f"{opening}{inside}{closing}", f"{hidden(opening)}{inside}{hidden(closing)}")

    def subscript(self) -> str:
        self.take_tight("_")
        self.depth += 1
        if self.next.text == "(":
            inside = self.bracket().bare
        else:
            token = self.take()
            self.expect(token.kind == "number" or (token.kind == "name" and len(token.text) <= LONGEST_SUBSCRIPT))
            inside = f"<i>{token.text}</i>" if token.kind == "name" else token.text
            while self.tight(",") and self.after_next.kind == "name" and not self.after_next.spaced:
                inside += self.take().text + self.postfix().html
        self.depth -= 1
        return f"{hidden('_')}<sub>{inside}</sub>"

    def power(self) -> str:
        self.take_tight("^")
        self.depth += 1
        sign = ADDITIONS[self.take_tight().text] if self.next.text == "-" else ""
        token, node = self.next, self.atom()
        self.depth -= 1
        inside = "T" if token.text == "T" else node.bare or node.html
        return f"{hidden('^')}<sup>{sign}{inside}</sup>"


def is_name(name: str) -> bool:
    """A letter, Latin or Greek, a word of formulas, or the differential of one of them, as dx and dmu."""
    if name[0] == "d" and len(name) > 1 and name != "do" and (len(name) == 2 or name[1:] in DIFFERENTIABLE):
        return True
    return len(name) == 1 or name in GREEK or name in FUNCTIONS or name in WORDS


def formula(text: str, stacked: bool = True, strict: bool = False) -> str:
    """A formula as HTML, with fraction bars or, if `stacked` is false, with slashes. Raises `NotAFormula`."""
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
    """A sentence as HTML: `backticks` are code, and formulas that are clearly formulas are typeset."""
    return "".join(run.html for run in runs(text))


def runs(text: str) -> Iterator[Run]:
    for part in re.split(r"(`[^`]+`)", text):
        if re.fullmatch("`[^`]+`", part):
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
                if clearly_a_formula(text[start:end], text[:start], text[end:]):
                    with contextlib.suppress(NotAFormula):
                        return start, end, j + 1, formula(text[start:end], stacked=False, strict=True)
    return None


def may_be_of_a_formula(word: str, before: str) -> bool:
    """Are all names in it known to formulas? A quick answer before the parser's."""
    names = NAME.findall(word)
    return before == "over" or all(name in ("sum", "of", "over", "inf") or is_name(name) for name in names)


def clearly_a_formula(run: str, before: str, after: str) -> bool:
    """Not an article, not only a number or word, and no part of something longer that does not parse."""
    if run == "a" and NO_ARTICLE.match(after):
        return not PART_BEFORE.search(before)
    if not run or run[-1] in ",.;:" or not MARK.search(run) or run.startswith("sum o"):
        return False
    if ARTICLE.search(run) and (before or run[0] != "a" or len(run) == 1):  # no sentence begins with a small "a"
        return False
    return not PART_BEFORE.search(before) and not PART_AFTER.search(after)
