"""Little bandwidth: the loss that DiLoCo reaches, and the bytes that it sends, by the steps between two outer steps.

    mpirun -n 4 python -m benchmarks.diloco --data tinyshakespeare.txt

Trains a small GPT on the same batches for each number of local steps; 1 is synchronous training. The bytes are those of
the arrays that one rank has given to collectives in all steps, without estimates.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import minigrad as mg
from gpt import GPT, GPTConfig
from gpt.config import TrainConfig
from gpt.errors import run_program
from gpt.ranks import connect
from gpt.text.data import Dataset, Tokens, load_data
from gpt.trainer import Trainer
from minigrad.distributed import communicator

SHAPE = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32, "bias": False}


class CountingTrainer(Trainer):
    """A trainer that counts the bytes of its steps."""

    sent = 0

    def step(self, learning_rate: float) -> tuple[mg.Tensor, object]:
        before = communicator().bytes
        result = super().step(learning_rate)
        self.sent += communicator().bytes - before
        return result


def train(tokens: Tokens, local_steps: int, args: argparse.Namespace, out: Path) -> CountingTrainer:
    """The finished training with this number of local steps."""
    config = TrainConfig(
        max_iters=args.steps,
        batch_size=args.batch_size,
        lr_decay_iters=args.steps,
        learning_rate=args.learning_rate,
        min_lr=args.learning_rate / 10,
        eval_interval=args.steps,
        eval_iters=args.eval_iters,
        local_steps=local_steps,
    )
    mg.manual_seed(args.seed)
    model = GPT(GPTConfig(vocab_size=tokens.tokenizer.vocab_size, **SHAPE))
    data = Dataset.of_parts(tokens.train, tokens.val, model.config.block_size)
    trainer = CountingTrainer(model, data, tokens.tokenizer, config, out, tokens.data_id)
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text file")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32, help="sequences in the batch that the ranks share")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--eval-iters", type=int, default=50)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--local-steps", type=int, nargs="+", default=[1, 10, 50, 100])
    args = parser.parse_args()
    connect("cpu")
    mg.set_num_threads(1)
    tokens = load_data(args.data)
    ranks, rows = communicator().size, []
    for local_steps in args.local_steps:
        with tempfile.TemporaryDirectory() as out:
            trainer = train(tokens, local_steps, args, Path(out))
        rows.append((local_steps, trainer.rows[-1]["val_loss"], trainer.sent))
    parameters = trainer.model.num_parameters()
    print(f"\n{ranks} ranks, {args.steps} steps of {args.batch_size} sequences, {parameters:,} parameters\n")
    print("| local steps | validation loss | bytes that a rank gives to collectives |\n| --- | --- | --- |")
    for local_steps, loss, sent in rows:
        print(f"| {local_steps} | {loss:.4f} | {sent:,} |")


if __name__ == "__main__":
    run_program(main)
