"""Training runs of a model with all options, by Muon, on the linear schedule: the speedrun's recipe."""

import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from gpt import CheckpointError, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS, TrainConfig
from tests.gpt.model_options import ALL, every_option, random_ids
from tests.gpt.runs import WORDS, result, trainer_for

TEXT = " ".join(np.random.default_rng(0).choice(WORDS[:4], 2000))


def new_trainer(out, model_options=ALL, dropout=0.1, **options):
    settings = {"max_iters": 12, "batch_size": 4, "warmup_iters": 3, "lr_decay_iters": 12, "eval_interval": 6}
    settings |= {"eval_iters": 2, "optimizer": "muon", "schedule": "linear", **options}
    shape = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": dropout, **model_options}
    return trainer_for(out, TEXT, shape, settings)


def test_every_group_follows_the_schedule_in_proportion(tmp_path):
    trainer = new_trainer(tmp_path, learning_rate=1e-3, muon_learning_rate=0.04, min_lr=1e-4)
    seen = []
    for _ in range(13):
        trainer.step(trainer.learning_rate())
        seen.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
    np.testing.assert_allclose([muon / adamw for adamw, muon in seen], 40)
    np.testing.assert_allclose([seen[0][0], seen[3][0], seen[12][0]], [0.25e-3, 1e-3, 1e-4])


def test_a_resumed_run_continues_exactly(tmp_path):
    whole = new_trainer(tmp_path / "whole")
    assert whole.train()
    first = new_trainer(tmp_path / "parts", max_iters=7)
    assert first.train()
    mg.manual_seed(999)  # whatever happened in between
    second = new_trainer(tmp_path / "parts")
    second.resume(checkpoint.load(tmp_path / "parts" / checkpoint.LAST))
    assert second.train()
    assert result(second)[1:] == result(whole)[1:]


def test_a_run_is_resumed_with_its_own_optimizer(tmp_path):
    new_trainer(tmp_path, max_iters=1).train()
    with pytest.raises(CheckpointError, match="last.safetensors: AdamW.load_state_dict: 0.* fits no parameter"):
        new_trainer(tmp_path, optimizer="adamw").resume(checkpoint.load(tmp_path / checkpoint.LAST))


@every_option
def test_a_checkpoint_brings_the_model_back(options, tmp_path):
    trainer = new_trainer(tmp_path, options, max_iters=2)
    trainer.train()
    model, ids = checkpoint.load(tmp_path / checkpoint.LAST).model(), random_ids(2, 16)
    assert model.config == trainer.model.config
    np.testing.assert_array_equal(model(ids)[0].numpy(), trainer.model.eval()(ids)[0].numpy())


def test_a_model_with_everything_learns(tmp_path):
    """Random words out of four, as in test_trainer.py: nobody can do better than ln(4) / 6 = 0.231 a character."""
    recipe = {"max_iters": 80, "lr_decay_iters": 80, "batch_size": 16, "learning_rate": 1e-2, "min_lr": 0.0}
    options = {**ALL, "logit_softcap": 15.0}  # within ±2 nobody can be sure of anything
    trainer = new_trainer(tmp_path, options, dropout=0.0, **recipe, eval_interval=80, eval_iters=20)
    trainer.train()
    first, last = (row["val_loss"] for row in trainer.rows if "val_loss" in row)
    assert abs(first - math.log(trainer.tokenizer.vocab_size)) < 0.1
    assert math.log(4) / 6 - 0.03 < last < 0.33


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; expected 'adamw' or 'muon'"),
        ({"schedule": "step"}, "schedule is 'step'; expected 'cosine' or 'linear'"),
        ({"lr_hold_iters": 5}, "lr_hold_iters 5 is for the schedule 'linear', not 'cosine'"),
        ({"lr_hold_iters": -1}, "lr_hold_iters is -1; expected a whole number of at least 0"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate is -1.0; expected a number of at least 0"),
        ({"optimizer": "muon", "learning_rate": 0.0}, "learning_rate is 0; expected more: Muon's"),
    ],
)
def test_training_options_without_meaning(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_made_of_options(preset):
    model, train = ({field.name for field in dataclasses.fields(config)} for config in (GPTConfig, TrainConfig))
    given = PRESETS[preset]
    assert set(given) <= model | train
    GPTConfig(**{name: value for name, value in given.items() if name in model})
    TrainConfig(**{name: value for name, value in given.items() if name in train})


def test_the_speedrun_from_the_command_line(tmp_path, monkeypatch, capsys):
    """--preset speedrun, with an option of each kind, for a few steps on a small text; then on with --resume."""
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    program = importlib.import_module("train_shakespeare")
    common = ["train_shakespeare.py", "--device", "cpu", "--data", f"{tmp_path}/text.txt", "--out", f"{tmp_path}/out"]
    small = ["--n-layer", "1", "--n-embd", "16", "--eval-iters", "1", "--norm", "layer", "--no-qk-norm"]
    for options, steps in ((["--preset", "speedrun", *small], "3"), (["--resume"], "5")):
        monkeypatch.setattr("sys.argv", [*common, *options, "--max-iters", steps])
        program.main()
    printed = capsys.readouterr().out
    assert "position rotary, norm layer, activation relu2, qk_norm False" in printed
    assert "optimizer muon" in printed
    assert "from step 3" in printed
    monkeypatch.setattr("sys.argv", [*common, "--activation", "swish"])
    with pytest.raises(SystemExit):
        program.main()
    assert "invalid choice: 'swish' (choose from" in capsys.readouterr().err
