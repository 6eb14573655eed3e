"""Pretraining on text, then supervised fine-tuning (SFT) on demonstrations of a chat (Ouyang et al., 2022, step 1).

Both minimize the mean negative log-likelihood -log pi(token | tokens before it). In pretraining every token of a line
counts, in fine-tuning only those of the answer:

    loss = - 1/N sum over the N tokens y_t of the answers to prompts x    log pi(y_t | x, y_<t)

The prompt comes from the user, so the model need not predict it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from chat import IGNORED, Dialog, asked, rows, step
from task import ASSISTANT, END, TOKENIZER, USER, line_of_text, persons_answer, training_prompts

import minigrad as mg
from gpt import GPT, GPTConfig
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import optim

CONFIG = GPTConfig(block_size=40, vocab_size=TOKENIZER.vocab_size, n_layer=2, n_head=4, n_embd=64)
PRETRAINING_STEPS, LEARNING_RATE, MUON_LEARNING_RATE, WARMUP = 1200, 6e-3, 0.04, 30
DEMONSTRATIONS, EPOCHS, SFT_LEARNING_RATE = 500, 6, 1e-3
BATCH_SIZE = 64


def pretrain(rng: random.Random, steps: int = PRETRAINING_STEPS) -> GPT:
    """A GPT that continues the text of the world, line by line. Each line follows a line break."""
    model = GPT(CONFIG)
    optimizer = model.configure_optimizer(LEARNING_RATE, optimizer="muon", muon_lr=MUON_LEARNING_RATE)
    peaks = [group["lr"] for group in optimizer.param_groups]
    with progress_bar(total=steps, desc="pretraining") as bar:
        for i in range(steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = optim.warmup_cosine(i, peak, 0.05 * peak, WARMUP, steps)
            lines = [("\n", line_of_text(prompt, rng)) for prompt in training_prompts(BATCH_SIZE, rng)]
            step(answer_loss(model, lines), optimizer)
            bar.update()
    return model


def fine_tune(model: GPT, demonstrations: list[Dialog], rng: random.Random, epochs: int = EPOCHS) -> GPT:
    """Train the model for some passes over the demonstrations, and return it.

    No text had the chat's tokens, so their embeddings begin as those of the characters in their places.
    """
    table = model.wte.weight.data
    table[TOKENIZER.encode(USER + ASSISTANT + END)] = table[TOKENIZER.encode("\n:\n")]
    optimizer = model.configure_optimizer(SFT_LEARNING_RATE)
    with progress_bar(total=epochs * len(demonstrations), desc="SFT") as bar:
        for batch in batches(demonstrations, BATCH_SIZE, epochs, rng):
            step(answer_loss(model, batch), optimizer)
            bar.update(len(batch))
    return model


def demonstrations(rng: random.Random, n: int = DEMONSTRATIONS) -> list[Dialog]:
    """Answers that people wrote for the chat: with more care than in the text, but not without mistakes."""
    prompts = training_prompts(n, rng)
    return [(asked(prompt), persons_answer(prompt, rng, mistakes=0.2, wordy=0.25) + END) for prompt in prompts]


def answer_loss(model: GPT, dialogs: list[Dialog]) -> mg.Tensor:
    """The mean of -log pi over the tokens of the answers."""
    tokens, targets = rows(dialogs)
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def batches(items: list, size: int, epochs: int, rng: random.Random) -> Iterator[list]:
    """Each item once in every epoch, in a new order, in lists of at most `size`."""
    for _ in range(epochs):
        order = rng.sample(items, len(items))
        yield from (order[i : i + size] for i in range(0, len(order), size))
