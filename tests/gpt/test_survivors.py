"""Single changes of gpt's code that no other test noticed; tests/mutation finds them. Each has a test here."""

import dataclasses
import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad as mg
from gpt import GPT, GPTConfig, checkpoint, precision
from gpt import trainer as trainer_module
from gpt.divergence import DivergedError
from gpt.errors import ConfigError, PretrainedError
from gpt.sample import Sampling
from minigrad import nn, optim
from minigrad.distributed import DiLoCo
from tests.gpt.runs import new_trainer
from tests.needs import needs_fork


def test_the_defaults_of_sampling():
    assert Sampling() == Sampling(
        temperature=1.0, top_k=None, top_p=None, seed=None, use_cache=True, stop_tokens=None, vocab_size=None
    )
    assert dataclasses.astuple(Sampling()) == (1.0, None, None, None, True, None, None)


def test_the_defaults_of_the_optimizer():
    model = GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    adamw = model.configure_optimizer(lr=0.5)
    assert type(adamw) is optim.AdamW
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    for group in adamw.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.9, 0.95), 1e-8)
    *others, first, second = model.configure_optimizer(lr=0.5, optimizer="muon").param_groups
    assert {group["lr"] for group in others} == {0.5}
    assert {(group["lr"], group["weight_decay"]) for group in (first, second)} == {(0.02, 0.1)}
    assert first["split"] == 3


def test_the_scale_of_initial_weights_to_a_percent():
    """A matrix of 260,000 numbers tells its standard deviation to 0.14%."""
    mg.manual_seed(1)
    model = GPT(GPTConfig(block_size=1024, vocab_size=1024, n_layer=2, n_head=1, n_embd=256))
    block = model.h[0]
    for weight in (model.wte.weight, model.wpe.weight, block.mlp.c_fc.weight, block.attn.c_attn.weight):
        assert weight.data.std() == pytest.approx(0.02, rel=6e-3)
    assert block.mlp.c_proj.weight.data.std() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=6e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_is_the_schedule_s(tmp_path, schedule):
    options = {"learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 4, "lr_decay_iters": 30}
    hold = {"lr_hold_iters": 8} if schedule == "linear" else {}
    trainer = new_trainer(tmp_path, schedule=schedule, **options, **hold)
    for trainer.iteration in (0, 3, 4, 9, 12, 20, 29, 30, 40):
        if schedule == "linear":
            expected = optim.warmup_linear(trainer.iteration, 1e-2, 1e-3, 4, 30, 8)
        else:
            expected = optim.warmup_cosine(trainer.iteration, 1e-2, 1e-3, 4, 30)
        assert trainer.learning_rate() == expected


def test_tokens_per_second_are_those_since_the_clock_was_restarted(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, batch_size=4, grad_accum=3)  # of 16 tokens a sequence
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    trainer.iteration = 5
    trainer.restart_clock()
    now, trainer.iteration = 104.0, 7
    assert trainer.tokens_per_second() == 2 * 4 * 3 * 16 / 4


def test_a_resumed_run_knows_its_best_loss(tmp_path):
    """It must not take the first loss after resuming for the best one, and none at all counts as infinite."""
    first = new_trainer(tmp_path)
    first.out.mkdir(exist_ok=True)
    first.best_val_loss = 1.25
    first.save(checkpoint.LAST)
    second = new_trainer(tmp_path)
    second.resume(checkpoint.load(tmp_path / checkpoint.LAST))
    assert second.best_val_loss == 1.25
    first.best_val_loss = math.inf
    first.save(checkpoint.LAST)
    second.resume(checkpoint.load(tmp_path / checkpoint.LAST))
    assert second.best_val_loss == math.inf


def test_a_run_in_float16_can_be_continued_in_float32(tmp_path):
    """Which has no use for the scale of the loss."""
    first = new_trainer(tmp_path)
    first.out.mkdir(exist_ok=True)
    first.scaler = optim.GradScaler()
    first.save(checkpoint.LAST)
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    assert saved.run["loss_scale"] == {"scale": 65536, "good_steps": 0}
    second = new_trainer(tmp_path)
    second.resume(saved)
    assert second.scaler is None


def test_a_run_that_keeps_one_checkpoint_deletes_none_that_is_there(tmp_path):
    trainer = new_trainer(tmp_path, keep=1)
    trainer.out.mkdir(exist_ok=True)
    older = trainer.out / "last-0.safetensors"
    older.write_bytes(b"")
    trainer.iteration = 3
    trainer.save_last()
    assert older.exists()


def test_each_rollback_halves_the_learning_rate(tmp_path):
    for schedule in ("cosine", "linear"):
        trainer = new_trainer(tmp_path, schedule=schedule, learning_rate=1e-2, min_lr=1e-3)
        for trainer.iteration in (0, 20, 100):
            trainer.rollbacks = 0
            rate = trainer.learning_rate()
            for trainer.rollbacks in (1, 2, 5):
                assert trainer.learning_rate() == pytest.approx(rate * 0.5**trainer.rollbacks)


def test_how_a_trainer_starts(tmp_path):
    trainer = new_trainer(tmp_path)
    assert (trainer.iteration, trainer.skipped, trainer.rollbacks, trainer.last_finite) == (0, 0, 0, 0)
    assert (trainer.best_val_loss, trainer.saved, trainer.random_state) == (math.inf, None, None)
    assert trainer.outer is trainer.graph is trainer.loss_graph is trainer.scaler is None
    assert trainer.lr_factors == [1, 1]
    assert new_trainer(tmp_path, learning_rate=0.0, min_lr=0.0).lr_factors == [1, 1]
    assert new_trainer(tmp_path, optimizer="muon", learning_rate=1e-3, muon_learning_rate=4e-3).lr_factors == [
        1,
        1,
        4,
        4,
    ]
    assert type(new_trainer(tmp_path, local_steps=2).outer) is DiLoCo
    assert (trainer_module.LOG_INTERVAL, trainer_module.MOST_SKIPPED, trainer_module.MOST_ROLLBACKS) == (10, 10, 5)


@pytest.mark.parametrize(
    ("options", "is_checked", "step_is_captured"),
    [
        ({}, True, True),
        ({"on_divergence": "skip"}, True, False),
        ({"on_divergence": "rollback"}, True, True),
        ({"dtype": "float16"}, False, False),
        ({"dtype": "float16", "on_divergence": "skip"}, True, False),
    ],
)
def test_which_steps_are_checked_and_which_are_captured(tmp_path, monkeypatch, options, is_checked, step_is_captured):
    monkeypatch.setattr(mg.cuda, "can_capture", lambda device, dtype: True)
    captured = []

    def recorded(compute, **_):
        return lambda *arrays: captured.append(compute) or compute(*arrays)

    monkeypatch.setattr(mg.cuda, "Captured", recorded)
    monkeypatch.setattr(precision, "choose", lambda dtype, device: dtype)  # the CPU has no 16-bit arithmetic
    trainer = new_trainer(tmp_path, **options)
    assert trainer.checks_steps == is_checked
    assert (trainer.graph is not None) == step_is_captured
    assert trainer.loss_graph is not None
    is_half = options.get("dtype") == "float16"
    scales, clip = [], trainer.optimizer.clip_grad_norm
    trainer.optimizer.clip_grad_norm = lambda max_norm, scale: scales.append(scale) or clip(max_norm, scale)
    result = trainer.step(1e-3)
    assert [type(x).__name__ for x in result] == ["Tensor", "float"]
    assert captured == [trainer.compute_flat] * step_is_captured
    trainer.loss("val", mg.random.generator())
    assert captured[step_is_captured:] == [trainer.parallel]
    assert scales == [65536 if is_half else 1]
    assert (trainer.scaler is not None) == is_half == (trainer.model.wte.weight.dtype == np.float16)


def test_a_run_that_is_asked_to_stop_ends_its_estimate_at_once(tmp_path):
    for when in (1, 2, 3):
        trainer = new_trainer(tmp_path, eval_iters=2)
        computed, loss = [], trainer.loss

        def loss_and_signal(split, rng, trainer=trainer, computed=computed, loss=loss, when=when):
            computed.append(split)
            if len(computed) == when:
                trainer.interrupt(15)
            return loss(split, rng)

        trainer.loss = loss_and_signal
        assert trainer.estimate_losses() is None
        assert computed == ["train", "train", "val"][:when]
        assert trainer.model.training


def test_estimates_are_means(tmp_path):
    trainer, drawn = new_trainer(tmp_path, eval_iters=3), iter([1.0, 2.0, 6.0, 0.0, 1.0, 0.5])
    trainer.loss = lambda split, rng: mg.Tensor(next(drawn))
    assert trainer.estimate_losses() == {"train": 3.0, "val": 0.5}


def test_when_estimates_and_checkpoints_are_due(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, eval_interval=4, max_iters=10, save_interval=3)
    estimates = [i for trainer.iteration in range(12) if trainer.estimate_is_due() for i in [trainer.iteration]]
    assert estimates == [0, 4, 8, 10, 11]
    assert [i for trainer.iteration in range(12) if trainer.save_is_due() for i in [trainer.iteration]] == [3, 6, 9]
    trainer.iteration = 4
    trainer.metrics.rows = [{"iteration": 4, "val_loss": 1.0}]
    assert not trainer.estimate_is_due()
    trainer.metrics.rows = [{"iteration": 4, "loss": 1.0}]
    assert trainer.estimate_is_due()
    trainer = new_trainer(tmp_path, eval_interval=4, save_interval=0, save_minutes=2)
    trainer.iteration = 1
    for passed, is_due in ((119.0, False), (120.0, True), (500.0, True)):
        monkeypatch.setattr(time, "monotonic", lambda now=trainer.saved_time + passed: now)
        assert trainer.save_is_due() == is_due
    trainer = new_trainer(tmp_path, eval_interval=4, save_interval=0, save_minutes=0)
    trainer.iteration, trainer.saved_time = 1, -1e9
    assert not trainer.save_is_due()


@pytest.mark.parametrize(("keep", "kept"), [(1, []), (2, [5]), (3, [4, 5])])
def test_how_many_checkpoints_are_kept(tmp_path, keep, kept):
    trainer = new_trainer(tmp_path, keep=keep)
    trainer.out.mkdir(exist_ok=True)
    for trainer.iteration in (1, 2, 4, 5, 7, 7):
        trainer.save_last()
        assert trainer.saved == trainer.iteration
    names = sorted(path.name for path in trainer.out.glob("last*"))
    assert names == [*(f"last-{number}.safetensors" for number in kept), "last.safetensors"]


@needs_fork
def test_one_rank_with_local_steps_shares_its_batches_among_processes(tmp_path):
    trainer = new_trainer(tmp_path, local_steps=2, processes=2)
    with trainer.parallel:
        trainer.step(1e-3)
        assert trainer.parallel.latest is not None
        assert len(trainer.parallel.latest.workers) == 1


def test_when_a_model_computes_its_blocks_again(monkeypatch):
    """With the option, in training, and without a cache: it would get the keys twice."""
    again, checkpointed = [], nn.checkpoint
    monkeypatch.setattr(nn, "checkpoint", lambda block, *inputs: again.append(block) or checkpointed(block, *inputs))
    for option in (False, True):
        model = GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=2, n_head=1, n_embd=4, checkpoint=option))
        for training, cache in itertools.product((False, True), (None, model.new_cache())):
            again.clear()
            model.train(training)
            model.next_logits(np.array([[1, 2]]), cache=cache)
            assert again == [*model.h] * (option and training and cache is None)


def test_a_derived_class_with_parameters_of_other_shapes_is_refused(tmp_path):
    class Wider(GPT):
        def __init__(self, config):
            super().__init__(config)
            self.ln_f = nn.LayerNorm(config.n_embd + 1)

    GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4)).save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"has no values for what Wider has beyond GPT: ln_f.weight, ln_f.bias$"):
        Wider.from_pretrained(tmp_path)


def test_what_a_log_shows_and_records(tmp_path, monkeypatch):
    trainer, shown = new_trainer(tmp_path), []
    bar = SimpleNamespace(set_postfix_str=lambda text, refresh: shown.append((text, refresh)))
    trainer.metrics.start()
    for trainer.iteration, trainer.skipped, more in ((10, 0, ""), (20, 3, ", 3 skipped")):
        monkeypatch.setattr(trainer, "tokens_per_second", lambda: 12345.6)
        trainer.log(bar, 1.23456, 0.00123456, 7.891)
        assert shown.pop() == (f"loss 1.235, lr 1.23e-03, norm 7.89, 12,346 tok/s{more}", False)
        assert trainer.clock[1] == trainer.iteration
        assert trainer.rows[-1] == {
            "iteration": trainer.iteration,
            "loss": 1.23456,
            "learning_rate": 0.00123456,
            "grad_norm": 7.891,
            "tokens_per_second": 12345.6,
        }


def test_a_run_makes_its_folder_and_those_above_it(tmp_path):
    for _ in range(2):  # the second run finds it there
        assert new_trainer(tmp_path / "above" / "run", max_iters=0, eval_iters=1).train()
    assert (tmp_path / "above" / "run" / checkpoint.LAST).exists()


def test_how_often_a_run_goes_back_to_the_same_checkpoint(tmp_path, monkeypatch):
    """Six times is too often, counted from the checkpoint's own number, which older checkpoints do not have."""
    trainer, told, resumed = new_trainer(tmp_path, on_divergence="rollback"), [], []
    monkeypatch.setattr(trainer_module, "print_above", lambda bar, text: told.append(text))
    monkeypatch.setattr(trainer, "resume", resumed.append)
    bar, error = SimpleNamespace(n=0, last_print_n=0), DivergedError("it diverged")
    trainer.iteration = 7
    for run, before, is_allowed in (
        ({}, 4, True),
        ({}, 5, False),
        ({"rollbacks": 2}, 6, True),
        ({"rollbacks": 2}, 7, False),
    ):
        saved = SimpleNamespace(run=run)
        monkeypatch.setattr(checkpoint, "load_last", lambda out, saved=saved: saved)
        trainer.rollbacks = before
        if is_allowed:
            trainer.roll_back(bar, error)
            assert (trainer.rollbacks, resumed[-1], bar.n, bar.last_print_n) == (before + 1, saved, 7, 7)
            share = f"{0.5 ** (before + 1):.3g}"
            assert told[-1] == f"it diverged; back to step 7, from here with {share} of the schedule"
        else:
            with pytest.raises(DivergedError, match="it diverged; try a lower --learning-rate$"):
                trainer.roll_back(bar, error)
            assert trainer.rollbacks == before


def test_how_many_steps_may_be_skipped_in_a_row(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, on_divergence="skip")
    monkeypatch.setattr(trainer_module, "first_nonfinite", lambda *_: "somewhere")
    told = []
    monkeypatch.setattr(trainer_module, "print_above", lambda bar, text: told.append(text))
    trainer.iteration = trainer.last_finite = 7
    trainer.drawn = []
    for trainer.iteration in range(8, 18):
        trainer.check_step(None, math.nan, 1.0)
    assert trainer.skipped == 10
    assert told[0] == "step     8: the loss is nan; skipped (1 so far)"
    assert told[-1] == "step    17: the loss is nan; skipped (10 so far)"
    trainer.iteration = 18
    with pytest.raises(DivergedError, match="the loss is nan in step 18, with learning rate"):
        trainer.check_step(None, math.nan, 1.0)
    trainer.check_step(None, 1.0, 1.0)
    assert (trainer.skipped, trainer.last_finite) == (10, 18)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_that_the_vocabulary_does_not_have_are_refused(wrong):
    model = GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    for ids in ([[1, wrong]], np.array([[1, wrong]])):
        with pytest.raises(ConfigError, match="expected ids from 0 to 4"):
            model.generate(ids, 1)
