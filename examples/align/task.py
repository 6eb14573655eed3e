"""A small world of exercises, with a program that knows every right answer.

    reverse abcd     dcba        first abcd       a          add 27 8            35
    sort 3142        1234        last abcd        d          count a in abca     2

People wrote about this world: text to pretrain on, demonstrations for fine-tuning, and judgments of answers. They make
mistakes and use more words than they are asked for. The preferred answer is right and nothing else.
"""

from __future__ import annotations

import functools
import random

from gpt.text.tokenizer import CharTokenizer

LETTERS, DIGITS = "abcdefgh", "0123456789"
FORMS = ("{}", "it is {}", "{} i think")  # of an answer; the first is the preferred one
KINDS = ("reverse", "sort", "first", "last", "add", "count")
HELD_OUT, VALIDATION = 500, 300  # prompts that no stage trains on: for the figures at the end; for every choice before

USER, ASSISTANT, END = "<", ">", "|"  # the chat's special tokens, which no text contains
TOKENIZER = CharTokenizer(USER + ASSISTANT + END + "\n :" + DIGITS + "abcdefghijklmnopqrstuvwxyz")


def new_prompt(rng: random.Random) -> str:
    """A random exercise."""
    kind = rng.choice(KINDS)
    word = "".join(rng.choices(LETTERS, k=rng.choice((3, 4))))
    if kind == "sort":
        return f"sort {''.join(rng.choices(DIGITS, k=rng.choice((3, 4))))}"
    if kind == "add":
        return f"add {rng.randrange(10, 100)} {rng.randrange(1, 10)}"
    return f"count {rng.choice(word)} in {word}" if kind == "count" else f"{kind} {word}"


def right_answer(prompt: str) -> str:
    """What a program answers."""
    match prompt.split():
        case ["reverse", word]:
            return word[::-1]
        case ["sort", digits]:
            return "".join(sorted(digits))
        case ["first", word]:
            return word[0]
        case ["last", word]:
            return word[-1]
        case ["add", a, b]:
            return str(int(a) + int(b))
        case ["count", letter, "in", word]:
            return str(word.count(letter))
    raise ValueError(f"expected an exercise, got {prompt!r}")


def grade(prompt: str, answer: str) -> int:
    """2 for the right answer and nothing else, 1 for the right answer in more words, 0 for any other.

    The answer must have ended with END.
    """
    forms = [f"{form.format(right_answer(prompt))}{END}" for form in FORMS]
    return 0 if answer not in forms else 2 if answer == forms[0] else 1


def persons_answer(prompt: str, rng: random.Random, mistakes: float, wordy: float) -> str:
    """An answer of a person who errs in one character, and says more than was asked for, with these probabilities."""
    answer = right_answer(prompt)
    if rng.random() < mistakes:
        i = rng.randrange(len(answer))
        others = (DIGITS if answer[i].isdigit() else LETTERS).replace(answer[i], "")
        answer = answer[:i] + rng.choice(others) + answer[i + 1 :]
    return (rng.choice(FORMS[1:]) if rng.random() < wordy else FORMS[0]).format(answer)


def line_of_text(prompt: str, rng: random.Random) -> str:
    """A line of the text to pretrain on: an exercise with a person's answer."""
    return f"{prompt}:{persons_answer(prompt, rng, mistakes=0.25, wordy=0.5)}\n"


@functools.cache
def split_prompts() -> tuple[list[str], list[str]]:
    """The held-out prompts and those for validation: the same in every run, all different."""
    rng, found = random.Random(500), dict[str, None]()
    while len(found) < HELD_OUT + VALIDATION:
        found[new_prompt(rng)] = None
    prompts = list(found)
    return prompts[:HELD_OUT], prompts[HELD_OUT:]


def training_prompts(n: int, rng: random.Random) -> list[str]:
    """n prompts to train on, none of them held out or for validation."""
    kept = set().union(*split_prompts())
    prompts: list[str] = []
    while len(prompts) < n:
        prompts += [prompt for prompt in (new_prompt(rng) for _ in range(n - len(prompts))) if prompt not in kept]
    return prompts
