"""Training runs on several ranks: the run of one process, stopped and resumed on any number of ranks."""

import contextlib
import math
import signal
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from gpt import checkpoint, ranks
from gpt.divergence import DivergedError
from gpt.errors import RankError
from gpt.translation.pairs import number_pairs
from gpt.translation.translator import Translator
from minigrad import optim
from minigrad.distributed import Communicator
from tests.gpt.runs import TEXT, new_trainer, weights
from tests.programs import load_program

FOLDER = Path()  # all ranks'; `on_ranks` sets it


@contextlib.contextmanager
def alone():
    """Inside this context a trainer knows of no other ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "communicator", lambda device=None: Communicator())
        yield


def trainer(name, **options):
    """A run in a folder that all ranks know; without dropout, so that a part of a batch gives what the whole gives."""
    defaults = {"dropout": 0.0, "processes": 1, "max_iters": 12, "eval_interval": 6, "float64": True}
    return new_trainer(FOLDER / name, **{**defaults, **options})


def one_process(name, communicator, **options):
    """The finished run of a process that is alone. Every rank has one of its own."""
    with alone():
        made = trainer(f"{name}-{communicator.rank}", **options)
        assert made.train()
    return made


def resumed(name, **options):
    made = trainer(name, **options)
    made.resume(checkpoint.load_last(made.out))
    return made


def assert_same(a, b, tolerance=1e-12):
    """The same losses and norms, step by step, and the same weights."""
    assert [row["iteration"] for row in a.rows] == [row["iteration"] for row in b.rows]
    for row, other in zip(a.rows, b.rows, strict=True):
        for key in row.keys() - {"tokens_per_second"}:
            assert math.isclose(row[key], other[key], rel_tol=tolerance, abs_tol=1e-15), (key, row, other)
    for name, value in weights(a).items():
        np.testing.assert_allclose(value, weights(b)[name], rtol=0, atol=100 * tolerance, err_msg=name)


def until(trainer, stop, number, on_this_rank):
    """Let a signal arrive after the step `stop`, on this rank or not, and train until then."""
    step = trainer.step

    def step_then_interrupt(learning_rate):
        result = step(learning_rate)
        if trainer.iteration == stop and on_this_rank:
            trainer.interrupt(number)
        return result

    trainer.step = step_then_interrupt
    return trainer.train()


ACCUMULATED = {"grad_accum": 2, "grad_clip": 0.5, "batch_size": 5}  # 5 sequences are not divided evenly


def check_a_run_is_that_of_one_process(communicator):
    for name, options in {"adamw": {}, "muon": {"optimizer": "muon", "shard_optimizer": True}}.items():
        whole = one_process(f"one-{name}", communicator, **ACCUMULATED, **options)
        shared = trainer(f"shared-{name}", **ACCUMULATED, **options)
        assert shared.train()
        assert_same(whole, shared)
        communicator.barrier()
        saved, expected = (checkpoint.load_last(run.out) for run in (shared, whole))
        assert saved.run["train_config"] == expected.run["train_config"]
        assert saved.run["random"] == expected.run["random"]
        assert saved.tensors.keys() == expected.tensors.keys()
        for key, x in saved.tensors.items():
            np.testing.assert_allclose(x.numpy(), expected.tensors[key].numpy(), rtol=1e-9, atol=1e-12, err_msg=key)


def check_a_run_goes_on_with_any_number_of_ranks(communicator):
    """From ranks to one process, and back, with and without a sharded optimizer."""
    last = communicator.rank == communicator.size - 1
    whole = one_process("going-on", communicator)
    first = trainer("from-ranks", shard_optimizer=True)
    assert not until(first, 5, signal.SIGUSR1, on_this_rank=last)
    assert (first.iteration, first.interrupted) == (5, signal.SIGUSR1)
    communicator.barrier()
    with alone():
        second = resumed("from-ranks", shard_optimizer=True)
        second.out = FOLDER / f"to-one-{communicator.rank}"
        second.metrics.path = second.out / "metrics.csv"
        assert second.train()
    assert_same(whole, second)
    communicator.barrier()
    with alone():
        if communicator.rank == 0:
            assert not until(trainer("from-one"), 7, signal.SIGTERM, on_this_rank=True)
    communicator.barrier()
    third = resumed("from-one")
    assert third.train()
    assert_same(whole, third)


def check_dropout_and_float32_are_resumed_to_the_bit(communicator):
    options = {"float64": False, "dropout": 0.2, "batch_size": 8, "save_interval": 4}
    whole, first = trainer("dropout", **options), trainer("dropout-parts", **options)
    assert whole.train()
    mg.manual_seed(first.config.seed)
    first = trainer("dropout-parts", **options)
    assert not until(first, 7, signal.SIGINT, on_this_rank=communicator.rank == 0)
    communicator.barrier()
    second = resumed("dropout-parts", **options)
    assert second.train()
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(second)[name], err_msg=name)


def check_ranks_that_differ_do_not_start(communicator):
    last = communicator.size - 1
    mine = communicator.rank == last
    with pytest.raises(RankError, match=f"rank {last} differs from the others: batch_size is 6, expected 4"):
        trainer("different", batch_size=6 if mine else 4)
    with pytest.raises(RankError, match=rf"rank {last} differs .*; data is other word, expected {TEXT[:10]}"):
        trainer("different", text="other words " * 200 if mine else TEXT)
    with pytest.MonkeyPatch.context() as patch:
        if mine:
            patch.setattr(np, "__version__", "1.0")
        with pytest.raises(RankError, match=r"version of NumPy is 1\.0, expected 2"):
            trainer("different")
    here = trainer("different")
    if mine:
        here.iteration = 3
    with pytest.raises(RankError, match=r"step is 3, expected 0"):
        here.train()


def check_weights_that_drift_apart_are_noticed(communicator):
    here, last = trainer("drift"), communicator.size - 1
    step = here.step

    def step_and_drift(learning_rate):
        result = step(learning_rate)
        if here.iteration == 3 and communicator.rank == last:
            here.model.ln_f.weight.data[0] += 1e-9
        return result

    here.step = step_and_drift
    with pytest.raises(RankError, match=rf"rank {last} differs from the others at step 6: weights is "):
        here.train()
    assert here.iteration == 6


def check_rank_0_decides_when_to_save_by_the_clock(communicator):
    here, saved = trainer("clock", save_minutes=1.0), []
    step, save_last = here.step, here.save_last

    def step_late(learning_rate):
        late = here.iteration == (2 if communicator.rank == 0 else 3)
        here.saved_time -= 100 * late
        return step(learning_rate)

    here.step, here.save_last = step_late, lambda: saved.append(here.iteration) or save_last()
    assert here.train()
    assert saved == [0, 3, 6, 12]


def spoil(trainer, steps, rank):
    """Make the loss of one rank's rows infinite in these steps."""
    loss, spoilt_rows = trainer.parallel.loss, set()

    def spoilt(ids, targets):
        if trainer.iteration + 1 in steps and trainer.ranks.rank == rank and trainer.model.training:
            spoilt_rows.add(ids.tobytes())
        return loss(ids, targets) * (math.inf if ids.tobytes() in spoilt_rows else 1.0)

    trainer.parallel.loss = spoilt
    return trainer


def check_divergence_on_one_rank_is_that_of_all(communicator):
    last = communicator.size - 1
    found = rf"the loss is inf in step 4.*on rank {last}, the first NaN or infinity is in the forward of Multiply"
    with np.errstate(all="ignore"):
        with pytest.raises(DivergedError, match=found):
            spoil(trainer("stop"), {4}, last).train()
        skipping = spoil(trainer("skip", on_divergence="skip"), {4, 5}, last)
        assert skipping.train()
        assert skipping.skipped == 2
        back = spoil(trainer("rollback", on_divergence="rollback", save_interval=2), {4}, last)
        with pytest.raises(DivergedError, match=found):  # in the same step, again and again
            back.train()
        assert back.rollbacks == 5
    assert (
        communicator.share([w.tobytes().hex() for w in weights(back).values()]).count(
            [w.tobytes().hex() for w in weights(back).values()]
        )
        == communicator.size
    )


def simulated(communicator, config):
    """DiLoCo as its formula says, for all ranks in this process: the weights at the end."""
    with alone():
        run = trainer(f"simulated-{communicator.rank}", **config)
    params, n = run.optimizer.params, communicator.size
    inner = [
        run.model.configure_optimizer(lr=1.0, weight_decay=0.1, betas=(0.9, 0.99)) for _ in range(n)
    ]  # fmt: skip
    w = [p.data.copy() for p in params]
    v = [np.zeros_like(x) for x in w]
    for first in range(0, run.config.max_iters, run.config.local_steps):
        batches, change = [], [np.zeros_like(x) for x in w]
        for _ in range(run.config.local_steps):
            batches.append(run.batch("train", mg.random.generator()))
        for rank in range(n):
            for p, x in zip(params, w, strict=True):
                p.data[...] = x
            for i, (ids, targets) in enumerate(batches):
                run.iteration = first + i
                for group in inner[rank].param_groups:
                    group["lr"] = run.learning_rate()
                rows = slice(rank * len(ids) // n, (rank + 1) * len(ids) // n)
                run.model(ids[rows], targets[rows])[1].backward()
                optim.clip_grad_norm(params, run.config.grad_clip)
                inner[rank].step()
                inner[rank].zero_grad()
            for d, p, x in zip(change, params, w, strict=True):
                d += (x - p.data) / n
        for x, m, d in zip(w, v, change, strict=True):
            m[...] = 0.9 * m + d
            x -= 0.7 * (d + 0.9 * m)
    return w


def check_local_steps_are_diloco(communicator):
    config = {"local_steps": 4, "batch_size": 6, "eval_interval": 12}
    expected = simulated(communicator, config)
    here = trainer("diloco", **config)
    assert here.train()
    for p, w in zip(here.optimizer.params, expected, strict=True):
        np.testing.assert_allclose(p.data, w, rtol=0, atol=1e-13)


def check_local_steps_send_the_bytes_of_one_gradient(communicator):
    sent = {}
    for local_steps in (1, 4):
        here = trainer(f"bytes-{local_steps}", local_steps=local_steps, eval_interval=12)
        here.parallel.start()  # sends the weights of rank 0, once
        before = communicator.bytes
        for _ in range(4):
            here.step(1e-3)
        sent[local_steps] = communicator.bytes - before
    gradients = sum(p.data.nbytes for p in here.optimizer.params)
    assert sent[4] == gradients <= sent[1] / 4


def check_local_steps_are_resumed(communicator):
    """At an estimate to the bit. After a signal elsewhere with averaged moments, which no file tells apart."""
    options = {"float64": False, "dropout": 0.2, "local_steps": 3, "batch_size": 6, "grad_accum": 2}
    whole = trainer("local", **options)
    assert whole.train()
    first = trainer("local-parts", **options)
    assert not until(first, 6, signal.SIGTERM, on_this_rank=communicator.rank == 0)
    communicator.barrier()
    second = resumed("local-parts", **options)
    assert second.iteration == 6
    assert second.train()
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(second)[name], err_msg=name)
    first = trainer("local-stop", **options)
    assert not until(first, 8, signal.SIGTERM, on_this_rank=communicator.rank == communicator.size - 1)
    assert first.iteration == 9  # the next outer step
    communicator.barrier()
    with alone():  # and on one rank
        second = resumed("local-stop", **options)
        second.out, second.metrics.path = FOLDER / f"x{communicator.rank}", FOLDER / f"x{communicator.rank}/metrics.csv"
        assert second.train()
    assert abs(second.rows[-1]["val_loss"] - whole.rows[-1]["val_loss"]) < 0.05


def check_a_translation_is_that_of_one_process(communicator):
    """Its mean is over tokens, of which the ranks have different numbers."""
    program, pairs, runs = load_program("translate"), number_pairs(40, 0), []
    for context in (alone(), contextlib.nullcontext()):
        with context:
            mg.manual_seed(1)
            translator = Translator.for_pairs(pairs, block_size=64, n_layer=1, n_head=2, n_embd=8, dropout=0.0)
            translator.model.to(dtype="float64")
            config = program.TrainingConfig(batch_size=5, warmup=5, label_smoothing=0.1)
            runs.append(program.Training(translator, pairs, pairs[:5], config, FOLDER / "translation"))
            for step, batch in zip(range(6), runs[-1].batches(), strict=False):
                loss, norm = runs[-1].step(step, batch)
            runs[-1].losses.append((loss.item(), float(norm)))
    for one, shared in zip(*(run.losses for run in runs), strict=True):
        np.testing.assert_allclose(one, shared, rtol=1e-12)
    for one, shared in zip(*(run.model.parameters() for run in runs), strict=True):
        np.testing.assert_allclose(one.data, shared.data, rtol=0, atol=1e-8)  # the bias of keys has a gradient of 0


def check_options_that_ranks_cannot_follow(communicator):
    with pytest.raises(ValueError, match=f"processes is 2; expected 1 with {communicator.size} ranks"):
        trainer("refused", processes=2)
    with pytest.raises(ValueError, match="batch_size is 1; expected at least"):
        trainer("refused", batch_size=1, local_steps=3)
