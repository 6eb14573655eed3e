"""Text files into token files: the tokens are those of the whole texts, and training goes on from there."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import CharTokenizer, ConfigError, DataError, checkpoint
from gpt.text import data, prepare
from gpt.text import tokenizer as tokenizers
from gpt.text.data import load_data
from gpt.text.tokenizer import END_OF_TEXT, GPT2_PIECES, BPETokenizer
from tests.gpt.gpt2_files import gpt2_tokenizer
from tests.programs import run_program

RHYME = "the cat sat on the mat.\nthe dog's log — 12 früh'ling 五五五 🍎🍎\n\n  the end" * 40
LEARNED, CHARACTERS = BPETokenizer.train(RHYME, 300), CharTokenizer.from_text(RHYME + "five")


def chunks_of(monkeypatch, path, content, size, limit=1 << 24):
    """The chunks of a file of these bytes, read so many bytes at a time."""
    monkeypatch.setattr(data, "CHUNK", size)
    monkeypatch.setattr(data, "LIMIT", limit)
    path.write_bytes(content)
    return list(data.read_chunks(path))


@pytest.fixture
def texts(tmp_path):
    """Two files, in a folder that also holds a hidden one."""
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "b.txt").write_text(RHYME, encoding="utf-8")
    (folder / "below" / "a.txt").write_text("five cats 五\n" * 30, encoding="utf-8")
    (folder / ".hidden").write_text("not this", encoding="utf-8")
    (folder / "below" / ".git").mkdir()
    (folder / "below" / ".git" / "config").write_text("nor this", encoding="utf-8")
    return folder


def test_a_file_that_cannot_be_read_is_not_called_missing(tmp_path):
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(DataError, match=r"loop\.txt: cannot be read \(Too many levels of symbolic links\)"):
        prepare.text_files([tmp_path / "loop.txt"])


# Chunks


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("the c's\n\r\t12 .\u3000\x1c\x85五🍎")) | st.text(), size=st.integers(1, 9))
def test_chunks_encoded_one_after_another_are_the_text_encoded(tmp_path_factory, text, size):
    with pytest.MonkeyPatch.context() as monkeypatch:
        path = tmp_path_factory.getbasetemp() / "text.txt"
        chunks = chunks_of(monkeypatch, path, text.encode(), size)
    assert "".join(chunks) == text
    assert [i for chunk in chunks for i in LEARNED.encode(chunk)] == LEARNED.encode(text).tolist()
    assert [piece for chunk in chunks for piece in regex.findall(GPT2_PIECES, chunk)] == regex.findall(
        GPT2_PIECES, text
    )


def test_chunks_are_about_as_long_as_asked_for(monkeypatch, tmp_path):
    chunks = chunks_of(monkeypatch, tmp_path / "text.txt", RHYME.encode(), 100)
    assert len(chunks) > len(RHYME) / 200
    assert max(map(len, chunks)) < 150


def test_a_chunk_grows_until_there_is_a_place_to_cut_and_at_the_limit_tokens_may_differ(monkeypatch, tmp_path):
    text = "the" * 40
    assert chunks_of(monkeypatch, tmp_path / "text.txt", text.encode(), 10) == [text]
    limited = chunks_of(monkeypatch, tmp_path / "text.txt", text.encode(), 10, limit=20)
    assert limited == [text[i : i + 20] for i in range(0, 120, 20)]
    ids = np.concatenate([LEARNED.encode(chunk) for chunk in limited])
    assert LEARNED.decode(ids) == text
    assert len(ids) > len(LEARNED.encode(text))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("content", "byte", "place"),
    [
        ("früh ".encode() + b"caf\xe9 noir", "0xe9", 9),
        ("五 五 ".encode() * 9 + b"\xff", "0xff", 72),
        (b"ab " + "五".encode()[:2], "0xe4", 3),
    ],
)
def test_what_is_no_utf8_is_named_with_its_place_in_the_file(monkeypatch, tmp_path, content, byte, place, size):
    with pytest.raises(DataError, match=rf"odd\.txt: not UTF-8 text \(byte {byte} at {place}\)$"):
        chunks_of(monkeypatch, tmp_path / "odd.txt", content, size)


# Files


def test_a_folder_stands_for_all_files_below_it_in_order(texts):
    assert prepare.text_files([texts]) == [texts / "b.txt", texts / "below" / "a.txt"]
    named = [texts / "below" / "a.txt", texts]
    assert prepare.text_files(named) == [texts / "below" / "a.txt", texts / "b.txt", texts / "below" / "a.txt"]


def test_files_that_are_missing_or_empty_are_named(texts):
    with pytest.raises(DataError, match=r"nowhere\.txt: there is no such file"):
        prepare.text_files([texts, texts / "nowhere.txt"])
    (texts / "below" / "none").mkdir()
    with pytest.raises(DataError, match="none: there are no files in this folder"):
        prepare.text_files([texts / "below" / "none"])
    (texts / "c.txt").touch()
    with pytest.raises(DataError, match=r"c\.txt: the file is empty"):
        prepare.text_files([texts])


# Token files


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ["bpe", "gpt2", "char"])
def test_token_files_hold_the_texts_with_a_mark_between_two(monkeypatch, texts, tmp_path, kind, workers):
    monkeypatch.setattr(data, "CHUNK", 64)
    tokenizer = gpt2_tokenizer() if kind == "gpt2" else LEARNED if kind == "bpe" else CHARACTERS
    files, read = prepare.text_files([texts]), []
    meta = prepare.prepare(files, tokenizer, tmp_path / "out", 0.25, workers, read.append)
    first, second = (file.read_text(encoding="utf-8") for file in files)
    mark = "" if kind == "char" else END_OF_TEXT
    expected = tokenizer.encode(first + mark + second, allowed_special="all")
    tokens = load_data(tmp_path / "out")
    np.testing.assert_array_equal(np.concatenate([tokens.train, tokens.val]), expected)
    assert len(tokens.train) == int(0.75 * len(expected)) == meta["files"]["train.bin"]["tokens"]
    assert tokens.train.dtype == np.uint16
    assert tokens.tokenizer.state() == tokenizer.state()
    assert sum(read) == sum(file.stat().st_size for file in files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["meta.json", "train.bin", "val.bin"]


def test_one_text_of_characters_is_the_same_data_as_the_text_itself(texts, tmp_path):
    text = load_data(texts / "b.txt")
    prepare.prepare([texts / "b.txt"], text.tokenizer, tmp_path / "out")
    tokens = load_data(tmp_path / "out")
    np.testing.assert_array_equal(tokens.train, text.train)
    np.testing.assert_array_equal(tokens.val, text.val)


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65_537)))
    (tmp_path / "text.txt").write_text(characters, encoding="utf-8")
    for size, dtype in ((65_536, "uint16"), (65_537, "uint32")):
        (tmp_path / "text.txt").write_text(characters[:size], encoding="utf-8")
        prepare.prepare([tmp_path / "text.txt"], CharTokenizer(characters[:size]), tmp_path / "out")
        tokens = load_data(tmp_path / "out")
        assert tokens.train.dtype == dtype
        assert tokens.val[-1] == size - 1


def test_the_same_texts_give_the_same_files_and_others_give_another_id(texts, tmp_path):
    files = prepare.text_files([texts])
    for name, some, workers in (("1", files, 1), ("2", files, 4), ("3", files[:1], 1)):
        prepare.prepare(some, LEARNED, tmp_path / name, workers=workers)
    one, two, three = (load_data(tmp_path / name) for name in "123")
    assert one.data_id == two.data_id != three.data_id


def test_damaged_token_files_are_named(texts, tmp_path):
    """A zeroed page and a flipped bit, in the ids and in meta.json."""
    prepare.prepare(prepare.text_files([texts]), LEARNED, tmp_path / "out")
    rng = np.random.default_rng(0)
    for name in ("train.bin", "val.bin", "meta.json"):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        changes = [content[:8] + bytes(64) + content[72:]] if name == "train.bin" else []
        for bit in rng.integers(8 * len(content), size=100):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            changes.append(bytes(changed))
        for changed in changes:
            path.write_bytes(changed)
            with pytest.raises(DataError, match=rf"{name}: damaged: its SHA-256"):
                load_data(tmp_path / "out")
        path.write_bytes(content)
    load_data(tmp_path / "out")


def test_what_goes_wrong_leaves_the_files_of_before(texts, tmp_path):
    out, good = tmp_path / "out", prepare.text_files([texts])
    prepare.prepare(good, LEARNED, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "odd.txt").write_bytes(b"five \xff")
    with pytest.raises(DataError, match=r"odd\.txt: not UTF-8 text \(byte 0xff at 5\)"):
        prepare.prepare([*good, tmp_path / "odd.txt"], LEARNED, out, workers=2)
    with pytest.raises(
        DataError, match=r"b\.txt: from character 0 on: the character 'c' at position 4 is not in the voc"
    ):
        prepare.prepare(good, CharTokenizer("the "), out, workers=2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("good_writes", "name"), [(0, "val.bin"), (1, "train.bin"), (4, "meta.json")])
def test_a_full_disk_is_an_error_that_names_the_file(texts, tmp_path, monkeypatch, good_writes, name):
    writes = itertools.count()

    def full(_):
        if next(writes) == good_writes:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'out' / name}'$"):
        prepare.prepare(prepare.text_files([texts]), LEARNED, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without a name")
@pytest.mark.parametrize("after", [0, 3, "flush"])
def test_nothing_is_left_of_a_killed_program(texts, tmp_path, after):
    """SIGKILL, at the first file, at a later chunk, and when the first file is written and not yet named."""
    program = (
        "import os, pathlib, sys\nfrom gpt.text import data, prepare\nfrom gpt.text.tokenizer import BPETokenizer\n"
        "data.CHUNK, reads = 64, []\n"
        "def count(size):\n    reads.append(size)\n    kill(len(reads) > %r)\n"
        "def kill(now):\n    if now: os.kill(os.getpid(), 9)\n"
    ) % (after if after != "flush" else 10**9)
    if after == "flush":
        program += (
            "flush = prepare._Unfinished.flush\nprepare._Unfinished.flush = lambda new: (flush(new), kill(True))\n"
        )
    program += "prepare.prepare([pathlib.Path(sys.argv[1])], BPETokenizer([]), sys.argv[2], progress=count)\n"
    root, out = Path(__file__).parents[2], tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, texts / "b.txt", out], cwd=root)
    assert done.returncode == -9
    assert list(out.iterdir()) == []


def test_where_files_have_names_from_the_start_the_next_run_removes_them(texts, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    out, files = tmp_path / "out", prepare.text_files([texts])
    out.mkdir()
    (out / ".train.bin.0123abcd").touch()
    (out / ".mine.bin.0123abcd").touch()
    prepare.prepare(files, LEARNED, out)
    assert {path.name for path in out.iterdir()} == {"train.bin", "val.bin", "meta.json", ".mine.bin.0123abcd"}
    monkeypatch.undo()
    prepare.prepare(files, LEARNED, tmp_path / "without")
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (out / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
        assert (out / name).stat().st_mode == (tmp_path / "without" / name).stat().st_mode


def test_options_without_meaning_are_refused(texts, tmp_path):
    files = prepare.text_files([texts])
    with pytest.raises(ConfigError, match="val_fraction is 1"):
        prepare.prepare(files, LEARNED, tmp_path / "out", val_fraction=1)
    with pytest.raises(ConfigError, match="workers is 0"):
        prepare.prepare(files, LEARNED, tmp_path / "out", workers=0)
    (tmp_path / "one.txt").write_text("a", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 tokens are too few to keep a fraction of 0\.1 for validation"):
        prepare.prepare([tmp_path / "one.txt"], LEARNED, tmp_path / "out")


def test_threads_run_only_a_little_ahead():
    """Of a text larger than memory only a few chunks are there at a time."""
    given, taken = 0, 0

    def items():
        nonlocal given
        for item in range(100):
            given += 1
            yield item

    for result in prepare.in_order(lambda item: item * item, items(), workers=3):
        assert result == taken * taken
        taken += 1
        assert given - taken <= 2 * 3
    assert taken == 100


# The programs

SMALL = (
    "--device cpu --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --eval-interval 5 --eval-iters 1"
)


@pytest.mark.parametrize("kind", ["char", "gpt2", "bpe"])
def test_from_texts_to_a_sample(texts, tmp_path, capsys, kind):
    if kind == "gpt2":
        gpt2_tokenizer()
    tokens, out, bpe = tmp_path / "tokens", tmp_path / "out", tmp_path / "bpe.json"
    choice = [bpe, "--vocab-size", 280] if kind == "bpe" else [kind]
    assert run_program("prepare_data", texts, "--tokenizer", *choice, "--out", tokens, "--val-fraction", 0.2) == 0
    printed = capsys.readouterr()
    meta = json.loads((tokens / "meta.json").read_text(encoding="utf-8"))
    counts = [f"{meta['files'][name]['tokens']:,}" for name in ("train.bin", "val.bin")]
    assert f"{counts[0]} for training and {counts[1]} for validation, uint16" in printed.out
    assert "encoding: 100%" in printed.err
    if kind == "bpe":
        assert tokenizers.load(bpe).state() == meta["tokenizer"]

    train = ["train_shakespeare", *SMALL.split(), "--data", tokens, "--out", out]
    assert run_program(*train, "--max-iters", 5) == 0
    printed = capsys.readouterr().out
    assert f"{tokens}: " in printed
    assert re.search(r"^sample\n\n(.|\n){20}", printed, re.M)
    saved = checkpoint.load(out / "best.safetensors")
    assert saved.tokenizer.state() == meta["tokenizer"]
    assert saved.config.vocab_size == saved.tokenizer.vocab_size
    assert run_program(*train, "--max-iters", 10, "--resume") == 0
    assert "from step 5" in capsys.readouterr().out
    assert run_program("sample", "--checkpoint", out, "--prompt", "the cat", "--max-new-tokens", 20) == 0
    assert capsys.readouterr().out.startswith("the cat")


@pytest.mark.parametrize("out", [".", "tokens"])
def test_what_the_program_wrote_is_no_text(texts, capsys, out):
    """A second time it finds its own files beside the texts, and makes the same ones again."""
    bpe, out = texts / "bpe.json", texts / out
    common = ["prepare_data", texts, "--out", out, "--tokenizer", bpe]
    assert run_program(*common, "--vocab-size", 280) == 0
    first, data_id = capsys.readouterr().out, load_data(out).data_id
    assert "2 files" in first
    assert run_program(*common) == 0
    assert capsys.readouterr().out == first
    assert load_data(out).data_id == data_id


@pytest.mark.parametrize("out", ["b.txt", "b.txt/below"])
@pytest.mark.parametrize("option", ["--out", "--tokenizer"])
def test_what_cannot_be_written_is_refused_before_the_work(texts, tmp_path, monkeypatch, option, out):
    monkeypatch.setattr(BPETokenizer, "train", lambda *rest: pytest.fail("it learns"))
    options = {"--out": tmp_path / "out", "--tokenizer": tmp_path / "bpe.json", "--vocab-size": 280}
    options[option] = texts / out
    message = run_program("prepare_data", texts, *(x for pair in options.items() for x in pair))
    assert re.match(r"error: .*(File exists|Not a directory|exists already)", message)


def test_a_learned_vocabulary_is_never_written_over(texts, tmp_path):
    (tmp_path / "bpe.json").write_text("precious", encoding="utf-8")
    common = ["prepare_data", texts, "--out", tmp_path / "out", "--vocab-size", 280, "--tokenizer"]
    message = run_program(*common, tmp_path / "bpe.json")
    assert re.fullmatch(r"error: --vocab-size: .*bpe\.json exists already; .*", message)
    assert (tmp_path / "bpe.json").read_text(encoding="utf-8") == "precious"
    message = run_program(*common, "gpt2")
    assert message == "error: --vocab-size is for learning byte pairs, but --tokenizer is gpt2; leave --vocab-size out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.txt"], r"error: nowhere\.txt: there is no such file"),
        (["--tokenizer", "nowhere.json"], r"error: nowhere\.json: cannot be read \(No such file or directory\)"),
        (["--tokenizer", "char", "--val-fraction", 1], "error: val_fraction is 1.0; .*"),
        (["--tokenizer", "char", "--workers", 0], "error: workers is 0; .*"),
    ],
)
def test_mistakes_are_one_line(texts, tmp_path, options, message):
    result = run_program("prepare_data", *options, texts / "b.txt", "--out", tmp_path / "out")
    assert re.fullmatch(message, result)
