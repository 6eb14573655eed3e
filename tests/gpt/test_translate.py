"""Pairs of texts, their batches, the translator on disk, and the program examples/translate.py."""

import datetime
import importlib.util
import itertools
import json
import re
import shlex
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import CheckpointError, ConfigError, DataError, TokenError
from gpt.checkpoint import LAST
from gpt.divergence import DivergedError
from gpt.run import TRANSLATOR
from gpt.translation.pairs import (
    FIRST_DAY,
    LAST_DAY,
    date_pairs,
    load_pairs,
    number_pairs,
    split_pairs,
    ways_to_write_date,
    ways_to_write_number,
)
from gpt.translation.seq2seq import END, PAD, START
from gpt.translation.translator import Translator, Vocabulary, as_batch, batches
from minigrad.serialization import load_with_metadata
from tests.programs import load_program, run_program

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0}
texts = st.text(st.sampled_from("abc d"), min_size=1, max_size=4)


# Dates and numbers


def test_no_way_of_writing_a_date_can_be_read_as_another():
    """All 36,525 dates, in all their ways."""
    meaning = {}
    for day in range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1):
        for way in ways_to_write_date(datetime.date.fromordinal(day)):
            assert meaning.setdefault(way, day) == day, way
    assert len(meaning) > 15 * 36525


def test_dates_are_written_as_people_write_them():
    ways = ways_to_write_date(datetime.date(1998, 5, 3))
    assert {"the 3rd of May 1998", "Sunday, 3 May 1998", "May 3, 1998", "3.V.1998", "3 May '98"} <= set(ways)
    assert not [way for way in ways if "/98" in way], "3/5/98 might be the 5th of March"
    assert "25/12/98" in ways_to_write_date(datetime.date(1998, 12, 25))
    suffixes = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd"}
    for day, suffix in {**suffixes, 23: "23rd", 30: "30th", 31: "31st"}.items():
        assert f"the {suffix} of March 2001" in ways_to_write_date(datetime.date(2001, 3, day))
    assert "March the twenty-third, 2001" in ways_to_write_date(datetime.date(2001, 3, 23))


def read_number(text):
    """What a number in words is, told independently of how it was made."""
    small = dict(zip("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
                     "sixteen seventeen eighteen nineteen".split(), range(20), strict=True))  # fmt: skip
    tens = {name: 10 * n for n, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
    values = {**small, **tens, "a": 1}
    total = part = 0
    for word in re.findall(r"[a-z]+", text):
        if word == "thousand":
            total, part = total + 1000 * part, 0
        elif word == "hundred":
            part *= 100
        elif word != "and":
            part += values[word]
    return total + part


@given(st.integers(0, 999_999))
def test_every_way_of_writing_a_number_means_that_number(number):
    assert {read_number(way) for way in ways_to_write_number(number)} == {number}


def test_numbers_are_written_as_people_write_them():
    assert ways_to_write_number(17) == ["seventeen"]
    ways = ways_to_write_number(1_142)
    assert {"one thousand, one hundred and forty-two", "a thousand one hundred forty two"} <= set(ways)
    assert "two hundred thousand and one" in ways_to_write_number(200_001)


@pytest.mark.parametrize("make", [date_pairs, number_pairs])
def test_generated_pairs_are_told_apart_by_their_seed_and_hold_nothing_out_that_was_trained_on(make):
    pairs = make(3000, 1)
    assert pairs == make(3000, 1) != make(3000, 2)
    train, val = split_pairs(pairs, 0.1, seed=0)
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in val}
    assert len(val) == round(0.1 * len(set(pairs)))
    assert len(dict(train + val)) == len(train + val), "a source has one target"


# Files of pairs, and splits


def test_pairs_are_read_as_they_are(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufefffünf\t5\r\n\r\n a b \tc\u2028d\n五\t5".encode())
    assert load_pairs(path) == [("fünf", "5"), (" a b ", "c\u2028d"), ("五", "5")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nno pair\n", "line 2: expected a source, a tab and a target, got no tab in 'no pair'"),
        (b"a\tb\tc\n", "line 1: expected a source, a tab and a target, got 2 tabs"),
        (b"a\tb\n\n\tb\n", "line 3: the source is empty"),
        (b"a\t \n", "line 1: the target is empty"),
        (b"\n\n", "expected a source, a tab and a target on each line, got only blank lines"),
        (b"", "the file is empty"),
        (b"a\t\xff\n", "not UTF-8 text"),
        (None, "there is no such file"),
    ],
)
def test_a_file_of_pairs_that_is_none(tmp_path, content, message):
    path = tmp_path / "pairs.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        load_pairs(path)


@given(pairs=st.lists(st.tuples(texts, texts), min_size=2, max_size=30), share=st.floats(0.05, 0.9))
def test_a_split_keeps_all_distinct_pairs_and_separates_texts(pairs, share):
    try:
        train, val = split_pairs(pairs, share, seed=0)
    except DataError:  # the pairs hang together
        return
    assert sorted(train + val) == sorted(set(pairs))
    assert train
    assert 0 < len(val) <= max(1, round(share * len(set(pairs))))
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in val}


def test_a_split_is_shuffled_by_its_seed():
    pairs = [(str(i), str(-i)) for i in range(1, 41)]
    assert split_pairs(pairs, 0.25, 1) == split_pairs(pairs, 0.25, 1) != split_pairs(pairs, 0.25, 2)
    assert [len(part) for part in split_pairs(pairs, 0.25, 1)] == [30, 10]


def test_the_smallest_split():
    assert sorted(map(len, split_pairs([("a", "b"), ("c", "d")], 0.05, 0))) == [1, 1]
    with pytest.raises(DataError, match="1 distinct pairs cannot be split"):
        split_pairs([("a", "b")], 0.5, 0)


def test_what_hangs_together_stays_together():
    """a1 and a2 have a source in common, a2 and b2 a target, so all three are on one side."""
    linked = [("a", "1"), ("a", "2"), ("b", "2")]
    for seed in range(10):
        train, val = split_pairs([*linked, ("c", "3"), ("d", "4"), ("e", "5")], 0.5, seed)
        assert len(set(linked) & set(train)) in (0, 3)
    with pytest.raises(DataError, match="3 distinct pairs cannot be split: expected 1 to 1 for validation"):
        split_pairs(linked * 2, 0.4, 0)


# Vocabulary and batches


def test_a_vocabulary_is_the_special_tokens_and_the_characters():
    vocabulary = Vocabulary.from_texts(["3. Mai", "五"])
    assert vocabulary.characters == " .3Mai五"
    assert len(vocabulary) == 10
    ids = vocabulary.encode("五 M")
    assert ids.tolist() == [9, 3, 6]
    assert vocabulary.decode(np.array([*ids, END, PAD, PAD])) == "五 M"
    assert vocabulary.names(np.array([START, 9, END, PAD])) == ["<start>", "五", "<end>", "<pad>"]
    with pytest.raises(TokenError, match="'x' at position 1"):
        vocabulary.encode("3x")


def test_a_batch_is_padded_behind_and_its_targets_are_one_ahead():
    batch = as_batch([(np.array([3, 4, 5]), np.array([6])), (np.array([7]), np.array([8, 9]))])
    assert batch.source.tolist() == [[3, 4, 5], [7, PAD, PAD]]
    assert batch.ids.tolist() == [[START, 6, PAD], [START, 8, 9]]
    assert batch.targets.tolist() == [[6, END, PAD], [8, 9, END]]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40),
    batch_size=st.integers(1, 7),
    pool=st.integers(1, 4),
    shuffled=st.booleans(),
)
def test_batches_are_all_pairs_once(lengths, batch_size, pool, shuffled):
    pairs = [(np.full(s, 3 + i), np.full(t, 3 + i)) for i, (s, t) in enumerate(lengths)]
    found = list(batches(pairs, batch_size, np.random.default_rng(0) if shuffled else None, pool))
    assert all(1 <= len(batch.source) <= batch_size for batch in found)
    names = [i - 3 for batch in found for i in batch.source[:, 0]]
    assert sorted(names) == list(range(len(pairs)))
    rows = [(source[source != PAD], targets[targets > END]) for batch in found
            for source, targets in zip(batch.source, batch.targets, strict=True)]  # fmt: skip
    for i, (source, target) in zip(names, rows, strict=True):
        np.testing.assert_array_equal(source, pairs[i][0])
        np.testing.assert_array_equal(target, pairs[i][1])


def test_batches_of_dates_have_little_padding():
    pairs = date_pairs(5000, 0)
    encoded = Translator.for_pairs(pairs, **SMALL).encode(pairs)
    by_length = list(batches(encoded, 50, np.random.default_rng(0)))
    assert np.mean([(batch.source == PAD).mean() for batch in by_length]) < 0.05
    assert np.mean([(as_batch(encoded[i : i + 50]).source == PAD).mean() for i in range(0, 5000, 50)]) > 0.3


# The translator


def test_translations_come_in_the_order_of_the_texts_whatever_the_batches():
    translator = Translator.for_pairs(date_pairs(50, 0), **SMALL)
    sources = [source for source, _ in date_pairs(50, 0)[:20]]
    together = translator.translate(sources, beam_size=2, batch_size=7)
    assert together == [translator.translate([source], beam_size=2)[0] for source in sources]
    assert max(map(len, together)) <= translator.max_new_tokens == len("1998-05-03") + 1
    with pytest.raises(DataError, match="a text to translate is empty"):
        translator.translate([""])
    for batch_size in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match=f"batch_size is {batch_size}; expected a whole number of at least 1"):
            translator.translate(sources, batch_size=batch_size)


def test_the_loss_of_all_pairs_does_not_depend_on_the_batches():
    pairs = number_pairs(30, 0)
    translator = Translator.for_pairs(pairs, **SMALL)
    assert translator.loss(pairs, batch_size=30) == pytest.approx(translator.loss(pairs, batch_size=4), rel=1e-5)


def test_the_model_goes_back_to_training_after_an_error():
    translator = Translator.for_pairs([("a", "b")], **SMALL, position="learned", block_size=2)
    with pytest.raises(ConfigError, match="a source of 3 tokens is longer than block_size 2"):
        translator.loss([("aaa", "b")])
    assert translator.model.training


@pytest.mark.parametrize("shape", [{}, {"tie_weights": "all", "position": "learned", "norm_first": False}], ids=str)
def test_what_is_saved_comes_back(tmp_path, shape):
    pairs = number_pairs(30, 0)
    translator = Translator.for_pairs(pairs, **SMALL, **shape)
    translator.settings = {"steps": 3}
    translator.save(tmp_path / TRANSLATOR)
    for path in (tmp_path, tmp_path / TRANSLATOR):
        again = Translator.load(path)
        assert again.model.config == translator.model.config
        assert (again.source.characters, again.max_new_tokens, again.settings) == (
            translator.source.characters,
            translator.max_new_tokens,
            {"steps": 3},
        )
        assert again.translate([pairs[0][0]]) == translator.translate([pairs[0][0]])
        assert not again.model.training


def test_files_that_hold_no_translator(tmp_path):
    def message(path):
        with pytest.raises(CheckpointError) as error:
            Translator.load(path)
        return str(error.value)

    assert message(tmp_path) == f"{tmp_path / TRANSLATOR}: there is no such file"
    (tmp_path / "text").write_text("text")
    assert "text: not a whole safetensors file" in message(tmp_path / "text")
    mg.save({"x": np.zeros(2)}, tmp_path / "other")
    assert "other: a safetensors file, but not a model of examples/translate.py" in message(tmp_path / "other")

    translator = Translator.for_pairs(number_pairs(30, 0), **SMALL)
    translator.save(tmp_path / TRANSLATOR)
    tensors, metadata = load_with_metadata(tmp_path / TRANSLATOR)
    del tensors["lm_head.weight" if "lm_head.weight" in tensors else "target_wte.weight"]
    mg.save(tensors, tmp_path / TRANSLATOR, metadata)
    assert re.search(f"{TRANSLATOR}: .*missing target_wte.weight", message(tmp_path))
    about = json.loads(metadata["minigrad.seq2seq"])
    mg.save(tensors, tmp_path / TRANSLATOR, {"minigrad.seq2seq": json.dumps({**about, "config": {"heads": 3}})})
    assert re.search(f"{TRANSLATOR}: .*heads", message(tmp_path))
    translator.save(tmp_path / TRANSLATOR)
    tensors, _ = load_with_metadata(tmp_path / TRANSLATOR)
    del about["max_new_tokens"]
    mg.save(tensors, tmp_path / TRANSLATOR, {"minigrad.seq2seq": json.dumps(about)})
    assert re.search(f"{TRANSLATOR}: .*max_new_tokens", message(tmp_path))
    mg.save(tensors, tmp_path / TRANSLATOR, {"minigrad.seq2seq": "[" * 100_000})
    assert re.search(f"{TRANSLATOR}: maximum recursion depth", message(tmp_path))


# The program

TINY = ["--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 16, "--eval-pairs", 20, "--pairs", 200]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run on numbers, and what it printed."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        printed = []
        monkeypatch.setattr("builtins.print", lambda *args, sep=" ", **_: printed.append(sep.join(map(str, args))))
        status = run_program(
            "translate", *TINY, "--task", "numbers", "--steps", 20, "--eval-interval", 10, "--out", out
        )
    assert status == 0
    return out, "\n".join(printed)


def test_a_run_tells_what_it_does_and_leaves_everything_in_its_folder(trained):
    out, printed = trained
    assert re.search(r"^data +numbers: \d+ pairs for training, \d+ for validation", printed, re.M)
    assert re.search(r"^model +[\d,]+ parameters: n_layer 1, n_head 2, n_embd 16, dropout 0.0", printed, re.M)
    assert re.search(
        r"^step +10: validation loss \d\.\d{4}, exact match \d+\.\d\d% \(best so far, saved\)$", printed, re.M
    )
    assert re.search(r"^step +20: validation loss", printed, re.M)
    assert re.search(r"^greedy +exact match \d+\.\d\d%", printed, re.M)
    assert re.search(r"^beam of 4 +exact match \d+\.\d\d%", printed, re.M)
    assert re.search(r"^wrong +'.*' -> '.*', expected '\d+'$", printed, re.M)
    translator = Translator.load(out)
    assert translator.settings["steps"] == 20
    assert translator.settings["task"] == "numbers"
    assert {path.name for path in out.iterdir()} >= {TRANSLATOR}


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_run_draws_its_losses_and_its_cross_attention(trained):
    for name in ("loss.png", "cross_attention.png"):
        assert (trained[0] / name).read_bytes().startswith(b"\x89PNG")
        assert f"{trained[0] / name}" in trained[1]


def test_without_matplotlib_a_run_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert run_program("translate", *TINY, "--steps", 1, "--out", tmp_path) == 0
    assert re.search(r"^curves +none: matplotlib is not installed", capsys.readouterr().out, re.M)
    assert {path.name for path in tmp_path.iterdir()} == {TRANSLATOR, LAST, ".lock"}


@pytest.mark.usefixtures("blank_pictures")
def test_a_new_run_moves_the_files_of_an_earlier_one_aside(tmp_path, capsys):
    for _ in range(2):
        assert run_program("translate", *TINY, "--steps", 1, "--out", tmp_path) == 0
    aside = tmp_path / "previous-1"
    assert f"the files of an earlier run in {tmp_path} to {aside}" in capsys.readouterr().out
    assert {"model.safetensors"} <= {path.name for path in aside.iterdir()}
    assert (tmp_path / "model.safetensors").exists()


def test_a_trained_model_translates(trained, capsys):
    command = ["--translate", "seven", "twenty-one", "--beam-size", 2]
    assert run_program("translate", "--checkpoint", trained[0], *command) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == Translator.load(trained[0]).translate(["seven", "twenty-one"], 2)
    assert run_program("translate", "--out", trained[0], *command) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.usefixtures("blank_pictures")
def test_any_pairs_will_do(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{i}\t{str(i)[::-1]}\n" for i in range(100, 150)), encoding="utf-8")
    assert run_program("translate", *TINY, "--data", path, "--steps", 2, "--out", tmp_path) == 0
    assert f"{path}: 48 pairs for training, 2 for validation" in capsys.readouterr().out
    assert Translator.load(tmp_path).source.characters == "0123456789"


def test_long_texts_and_quotation_marks_do_no_harm_to_what_is_printed(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f'$HOME "it\'s" {i * 50}\t{i}\n' for i in "abcdef"), encoding="utf-8")
    assert run_program("translate", *TINY, "--data", path, "--max-iters", 2, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^wrong .*aaa…' -> |^wrong .*[b-f]{3}…' -> ", printed, re.M)
    command = shlex.split(printed.partition("to translate: ")[2])
    assert command[-1] in path.read_text(encoding="utf-8")
    assert command[-1].startswith('$HOME "it\'s" ')


def interrupt_in_step(monkeypatch, program, number, by=signal.SIGINT):
    """Send a signal when the step with this number has been computed."""
    step = program.Training.step

    def step_then_interrupt(training, done, batch):
        loss = step(training, done, batch)
        if done == number:
            signal.raise_signal(by)
        return loss

    monkeypatch.setattr(program.Training, "step", step_then_interrupt)


def run_main(monkeypatch, program, *options):
    """What a program's main ends with: 0, or the exit status."""
    monkeypatch.setattr("sys.argv", list(map(str, ["translate.py", *options])))
    try:
        program.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.usefixtures("blank_pictures")
def test_an_interrupted_run_keeps_the_best_so_far(tmp_path, capsys, monkeypatch):
    program, options = load_program("translate"), [*TINY, "--eval-interval", 2, "--out", tmp_path]
    for number, by in ((0, signal.SIGTERM), (2, signal.SIGINT)):
        with monkeypatch.context() as patch:
            interrupt_in_step(patch, program, number, by)
            assert run_main(patch, program, *options) == 128 + by
        assert f"interrupted; step {number + 1} is saved." in capsys.readouterr().out
        assert (tmp_path / TRANSLATOR).exists() == (number == 2)
    assert len(Translator.load(tmp_path).translate(["3 May 1998"])) == 1


@pytest.mark.parametrize("file", [1, 2, 3])
@pytest.mark.usefixtures("blank_pictures")
def test_ctrl_c_while_a_file_is_written_is_answered_after_it(tmp_path, capsys, monkeypatch, file):
    """While the first estimate's model or run is written, or the second's."""
    files, save = itertools.count(1), mg.save

    def interrupted(*arguments, **options):
        if next(files) == file:
            signal.raise_signal(signal.SIGINT)
        return save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mg, "save", interrupted)
        ended = run_program("translate", *TINY, "--steps", 4, "--eval-interval", 2, "--out", tmp_path)
    assert ended == 128 + signal.SIGINT
    assert f"interrupted; step {2 if file < 3 else 4} is saved." in capsys.readouterr().out
    assert run_program("translate", "--resume", "--out", tmp_path) == 0


RUN = [*TINY, "--dropout", 0.1, "--average", 3]  # 190 pairs in batches of 16: an epoch is 12 steps


def tensors_of(path):
    tensors, metadata = load_with_metadata(path)
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, metadata


@pytest.mark.parametrize("stop", [4, 18])
@pytest.mark.usefixtures("blank_pictures")
def test_a_resumed_run_continues_exactly(tmp_path, monkeypatch, capsys, stop):
    """From an estimate in the first epoch, or between two in the second: the same files, bit for bit."""
    options = [*RUN, "--steps", 20, "--eval-interval", 4]
    assert run_program("translate", *options, "--out", tmp_path / "whole") == 0
    program = load_program("translate")
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, program, stop - 1)
        assert run_main(patch, program, *options, "--out", tmp_path / "parts") == 128 + signal.SIGINT
    assert "--resume" in re.search(r"To resume:\n  python (.*)$", capsys.readouterr().out, re.M)[1]
    mg.manual_seed(999)
    assert run_program("translate", "--resume", "--out", tmp_path / "parts") == 0
    assert f"parts, from step {stop}\n" in capsys.readouterr().out
    for name in (TRANSLATOR, LAST):
        assert tensors_of(tmp_path / "parts" / name) == tensors_of(tmp_path / "whole" / name)


@pytest.mark.parametrize("interrupted", [False, True])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch, interrupted):
    """They are spoilt between two readings of the loss; the last file of the run is from the estimate before."""
    program = load_program("translate")
    if interrupted:
        interrupt_in_step(monkeypatch, program, 2)
    average = program.Training.average

    def spoil(training, rate):
        average(training, rate)
        if len(training.estimates) == 1:
            training.averaged.model.lm_head.weight.data[...] = np.nan

    monkeypatch.setattr(program.Training, "average", spoil)
    options = [*RUN, "--steps", 6, "--eval-interval", 2, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", list(map(str, ["translate.py", *options])))
    problem = r"the weights \S+ have a NaN or an infinity after step 3" if interrupted else "the loss is nan"
    with pytest.raises(DivergedError, match=f"^{problem}.*; try a longer --warmup"):
        program.main()
    assert program.read_run(tmp_path)[0]["run"]["done"] == 2


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_goes_on_to_more_steps(tmp_path):
    assert run_program("translate", *RUN, "--steps", 8, "--eval-interval", 4, "--out", tmp_path / "whole") == 0
    assert run_program("translate", *RUN, "--steps", 4, "--eval-interval", 4, "--out", tmp_path / "parts") == 0
    assert run_program("translate", "--resume", "--steps", 8, "--out", tmp_path / "parts") == 0
    whole, parts = (tensors_of(tmp_path / run / LAST)[0] for run in ("whole", "parts"))
    assert parts == whole


@pytest.mark.usefixtures("blank_pictures")
def test_what_makes_a_run_another_one_is_refused(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{i}\t{i}\n" for i in range(100, 130)), encoding="utf-8")
    assert run_program("translate", *TINY, "--data", pairs, "--steps", 1, "--out", tmp_path) == 0
    for options, message in (
        (["--seed", 7], "--resume: seed is 7; expected 1, as in the run"),
        (["--n-embd", 32], "--resume: n_embd is 32; expected 16, as in the run"),
        (["--out", "nowhere"], "nowhere/last.safetensors: there is no such file"),
    ):
        assert message in str(run_program("translate", "--out", tmp_path, "--resume", *options))
    pairs.write_text("".join(f"{i}\t{i + 1}\n" for i in range(100, 129)), encoding="utf-8")
    assert "was trained on other pairs" in str(run_program("translate", "--out", tmp_path, "--resume"))


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_goes_on_where_its_pairs_have_been_moved(tmp_path, capsys):
    pairs, moved = tmp_path / "pairs.tsv", tmp_path / "moved.tsv"
    pairs.write_text("".join(f"{i}\t{i}\n" for i in range(100, 130)), encoding="utf-8")
    out = ["--out", tmp_path / "run"]
    assert run_program("translate", *TINY, "--data", pairs, "--steps", 1, *out) == 0
    pairs.rename(moved)
    for options in (["--data", moved], []):  # the new place is remembered
        assert run_program("translate", "--resume", *options, "--steps", 2, *out) == 0
        assert f"data        {moved}: " in capsys.readouterr().out


@pytest.mark.usefixtures("blank_pictures")
def test_no_limit_on_the_gradient_is_written_as_0(tmp_path):
    """As for the other programs: it trains as with a limit that is never reached."""
    for clip in (0, 1e9):
        assert run_program("translate", *TINY, "--steps", 2, "--grad-clip", clip, "--out", tmp_path / str(clip)) == 0
    none, high = (tensors_of(tmp_path / str(clip) / TRANSLATOR)[0] for clip in (0, 1e9))
    assert none == high


@pytest.mark.usefixtures("blank_pictures")
def test_the_run_of_another_program_is_moved_aside(tmp_path, capsys):
    (tmp_path / "best.safetensors").write_bytes(b"precious")
    (tmp_path / "metrics.csv").touch()
    assert run_program("translate", *TINY, "--steps", 1, "--out", tmp_path) == 0
    aside = tmp_path / "previous-1"
    assert f"the files of an earlier run in {tmp_path} to {aside}" in capsys.readouterr().out
    assert {path.name for path in aside.iterdir()} == {"best.safetensors", "metrics.csv"}
    assert (aside / "best.safetensors").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_one_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "config.json").touch()  # of a model for other tools
    program = load_program("translate")
    monkeypatch.setattr(program.Training, "run", lambda training: pytest.fail("it trains"))
    for out, message in ((tmp_path / "file", "cannot be made"), (tmp_path, "name another folder with --out")):
        monkeypatch.setattr("sys.argv", list(map(str, ["translate.py", *TINY, "--out", out])))
        with pytest.raises(ConfigError, match=message):
            program.main()
    mg.save({"x": np.zeros(2)}, tmp_path / LAST)
    assert "but not a run of examples/translate.py" in str(run_program("translate", "--out", tmp_path, "--resume"))


@pytest.mark.usefixtures("blank_pictures")
def test_the_averaged_weights_are_the_mean_over_the_steps(tmp_path):
    """Over fewer steps than --average it is the plain mean; with --average 1 it is the last step."""
    program, pairs = load_program("translate"), number_pairs(50, 0)
    for average in (1, 100):
        translator = Translator.for_pairs(pairs, **SMALL)
        config = program.TrainingConfig(average=average, warmup=5)
        training = program.Training(translator, pairs, pairs[:5], config, tmp_path)
        weights = []
        for step, batch in zip(range(4), training.batches(), strict=False):
            training.step(step, batch)
            training.average(rate=1 / min(step + 1, average))
            weights.append(translator.model.lm_head.weight.numpy().copy())
        expected = weights[-1] if average == 1 else np.mean(weights, axis=0)
        np.testing.assert_allclose(training.averaged.model.lm_head.weight.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("blank_pictures")
def test_the_same_seed_gives_the_same_model(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_program("translate", *TINY, "--steps", 3, "--dropout", 0.1, "--seed", seed, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name / TRANSLATOR).read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing.tsv"], "missing.tsv: there is no such file"),
        (["--n-embd", 10, "--n-head", 3], "n_embd 10 is not divisible by n_head 3"),
        (["--steps", 0], "steps is 0; expected a whole number of at least 1"),
        (["--label-smoothing", 1], "label_smoothing is 1.0; expected a share from 0 to below 1"),
        (["--length-penalty", 1000], "length_penalty is 1000.0; expected a number from 0 to 10"),
        (["--length-penalty", "nan"], "length_penalty is nan; expected a number from 0 to 10"),
        (["--val-share", 0.999], "cannot be split"),
        (["--beam-size", 0, "--translate", "x"], "beam_size is 0"),
        (["--checkpoint", "there"], "--checkpoint: expected --translate too"),
        (["--checkpoint", "nowhere", "--translate", "x"], "nowhere: there is no such file"),
        (["--device", "tpu"], 'unknown device "tpu"'),
        (
            ["--position", "learned", "--block-size", 10],
            "block_size is 10; expected at least 35 for the longest text",
        ),
    ],
)
def test_mistakes_get_one_clear_line(options, message, tmp_path):
    end = run_program("translate", *TINY, "--out", tmp_path, *options)
    assert str(end).startswith("error: ")
    assert message in str(end)
    assert "\n" not in str(end)


def test_a_character_that_the_model_does_not_know(trained):
    end = run_program("translate", "--checkpoint", trained[0], "--translate", "seven!")
    assert "error: the character '!' at position 5 is not in the vocabulary" in str(end)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dates", "numbers"])
def test_the_tasks_are_learned(task, tmp_path, capsys):
    """At least 99% of the held-out pairs, with the program's own settings."""
    assert run_program("translate", "--task", task, "--out", tmp_path) == 0
    program, translator = load_program("translate"), Translator.load(tmp_path)
    config = program.TrainingConfig(task=task)
    _, val = split_pairs(program.TASKS[task](config.pairs, config.seed), config.val_share, config.seed)
    assert program.exact_match(translator, val) >= 0.99
