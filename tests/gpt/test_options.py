"""A dataclass field becomes a command-line option: its name, type, choices, help text, and what counts as given."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from gpt import ConfigError
from gpt.options import Parser, add_options, check_choices, check_whole, describe, fields_of, given, option, pick


@dataclasses.dataclass(frozen=True)
class Config:
    n_layer: int = option(2, "blocks")
    dropout: float = option(0.0, "probability of dropout")
    bias: bool = option(True, "biases")
    norm: str = option("layer", "the norm", ("layer", "rms"))
    top_k: int | None = option(None, "the k likeliest")
    name: str = option("", "a name")
    vocab_size: int = option(7, "tokens")


FIELDS = fields_of(Config, without=("vocab_size",))
PRESETS = {"small": {"n_layer": 1, "dropout": 0.1}, "large": {"n_layer": 9}}


def parse(*words, **options):
    parser = Parser()
    add_options(parser, FIELDS, **options)
    return given(parser.parse_args(words))


def help_of(flag, **options):
    parser = argparse.ArgumentParser()
    add_options(parser, FIELDS, **options)
    (action,) = [action for action in parser._actions if flag in action.option_strings]
    return action.help


def test_only_what_is_given_counts():
    assert parse() == {}
    assert parse("--n-layer", "3", "--no-bias", "--norm", "rms", "--top-k", "5", "--dropout", "0.5") == {
        **{"n_layer": 3, "bias": False, "norm": "rms", "top_k": 5, "dropout": 0.5}
    }


@pytest.mark.parametrize("words", [["--n-layer", "many"], ["--norm", "batch"], ["--vocab-size", "3"], ["--top-k", "x"]])
def test_other_words_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n_layer", "3"], {"n_layer": 3}),
        (["--n_layer=3", "--no_bias"], {"n_layer": 3, "bias": False}),
        (["--top_k", "5", "--name=a_b", "--n-layer", "1"], {"top_k": 5, "name": "a_b", "n_layer": 1}),
        (["--name", "a_b"], {"name": "a_b"}),
    ],
)
def test_underscores_in_an_option_are_understood(words, expected, monkeypatch):
    assert parse(*words) == expected
    parser = Parser()
    add_options(parser, FIELDS)
    monkeypatch.setattr("sys.argv", ["program", *words])
    assert given(parser.parse_args()) == expected
    assert "--n_layer" not in parser.format_help()


def test_words_after_two_hyphens_stay_as_they_are():
    parser = Parser()
    parser.add_argument("files", nargs="*")
    assert parser.parse_args(["--", "--a_b"]).files == ["--a_b"]


MICRO = Path(__file__).parents[2] / "examples" / "micro.py"


def test_all_programs_understand_underscores():
    """All but micro.py, which needs nothing but the standard library."""
    for path in {*(Path(__file__).parents[2] / "examples").glob("*.py")} - {MICRO}:
        text = path.read_text(encoding="utf-8")
        assert "ArgumentParser(" not in text, path
        assert "Parser(" in text, path


def test_an_option_may_have_another_name():
    assert parse("--blocks", "4", aliases={"n_layer": "--blocks"}) == {"n_layer": 4}


@pytest.mark.parametrize(
    ("flag", "options", "expected"),
    [
        ("--n-layer", {}, "blocks (default: 2)"),
        ("--n-layer", {"presets": PRESETS}, "blocks (small: 1, large: 9)"),
        ("--dropout", {"presets": PRESETS}, "probability of dropout (small: 0.1, default: 0.0)"),
        ("--bias", {"presets": PRESETS}, "biases (default: True)"),
        ("--n-layer", {"presets": {"default": {"n_layer": 5}}}, "blocks (default: 5)"),
        ("--dropout", {"presets": {"default": {}, "tuned": {"dropout": 0.2}}}, "(default: 0.0, tuned: 0.2)"),
        ("--top-k", {}, "the k likeliest"),
        ("--name", {}, "a name"),
    ],
)
def test_help_says_the_values_of_presets_and_the_default(flag, options, expected):
    assert help_of(flag, **options).endswith(expected)


def test_options_make_a_config_that_describes_itself():
    options = {"n_layer": 3, "out": "somewhere", "vocab_size": 5}
    assert pick(options, FIELDS) == {"n_layer": 3}
    expected = "n_layer 3, dropout 0.0, bias True, norm layer, top_k None, name "
    assert describe(Config(**pick(options, FIELDS)), FIELDS) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "batch"}, "norm is 'batch'; expected 'layer' or 'rms'"),
        ({"bias": "no"}, "bias is 'no'; expected True or False"),
    ],
)
def test_values_that_are_no_choice(values, message):
    with pytest.raises(ConfigError, match=message):
        check_choices(Config(**values))


@pytest.mark.parametrize("n_layer", [0, 1.5, True, "2", None])
def test_numbers_that_are_not_whole_or_too_small(n_layer):
    with pytest.raises(ConfigError, match="n_layer is .*; expected a whole number of at least 1"):
        check_whole(Config(n_layer=n_layer), {"n_layer": 1})
