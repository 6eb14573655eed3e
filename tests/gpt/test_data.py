"""Where texts come from, and every way in which a file or a download can fail; batches. No real network is used."""

import codecs
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt import CharTokenizer, ConfigError, DataError, TokenError
from gpt.text import data
from tests.needs import data_file

PLAY = "First Citizen:\r\nBefore we proceed any further, hear me speak — “Speak, speak.”\n" * 50
CONTENT = PLAY.encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REAL_SHA256 = data.TINY_SHAKESPEARE_SHA256


class Server(http.server.HTTPServer):
    """Serves CONTENT at /ok and half of it at /cut; /missing is missing, /silent never answers. Counts the requests."""

    requests = 0

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.path == "/silent":
            self.server.released.wait(30)
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/ok" else CONTENT[: len(CONTENT) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network():
    """The address of a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch, no_network):
    """Where Tiny Shakespeare would be kept; here that is PLAY, and there is no network unless a test has one."""
    monkeypatch.setenv("MINIGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data, "TINY_SHAKESPEARE", no_network)
    monkeypatch.setattr(data, "TINY_SHAKESPEARE_SHA256", SHA256)
    monkeypatch.setattr(data, "TINY_SHAKESPEARE_SIZE", len(CONTENT))
    return tmp_path / "cache" / "tinyshakespeare.txt"


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# Downloads


def test_a_download_is_kept_whole(server, tmp_path):
    data.download(server.url("/ok"), SHA256, tmp_path / "new" / "play.txt")
    assert (tmp_path / "new" / "play.txt").read_bytes() == CONTENT
    assert files_below(tmp_path) == [tmp_path / "new" / "play.txt"]


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/ok", "0" * 64, f"its SHA-256 is {SHA256}; expected 0000"),
        ("/cut", SHA256, f"the connection was cut after {len(CONTENT) // 2} bytes, {len(CONTENT) // 2} short"),
        ("/missing", SHA256, "the server answered 404 Not Found"),
        ("/silent", SHA256, "timed out"),
    ],
)
@pytest.mark.parametrize("before", [None, b"an older copy"])
def test_a_failed_download_says_why_and_changes_nothing(server, tmp_path, path, sha256, message, before):
    kept = tmp_path / "play.txt"
    if before is not None:
        kept.write_bytes(before)
    with pytest.raises(DataError) as caught:
        data.download(server.url(path), sha256, kept, timeout=0.2 if path == "/silent" else 30)
    assert message in str(caught.value)
    assert server.url(path) in str(caught.value)
    assert files_below(tmp_path) == ([] if before is None else [kept])
    assert before is None or kept.read_bytes() == before


@pytest.mark.parametrize("url", [None, "nonsense", "nonsense://127.0.0.1/", "http://127.0.0.1:port/"])
def test_no_network_and_no_url_are_one_clear_line(no_network, tmp_path, url):
    with pytest.raises(DataError, match=r"^.+: .+$" if url else "Connection refused$"):
        data.download(url or no_network, SHA256, tmp_path / "play.txt")
    assert files_below(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"play\.txt: cannot be written \(.+\)"):
        data.download(server.url("/ok"), SHA256, tmp_path / "file" / "play.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: cannot be written \(Is a directory\)"):
        data.download(server.url("/ok"), SHA256, tmp_path / "folder")
    assert files_below(tmp_path) == [tmp_path / "file"]


# Which text it is


def test_tiny_shakespeare_is_downloaded_once(server, cached, no_network, monkeypatch):
    said = []
    monkeypatch.setattr(data, "TINY_SHAKESPEARE", server.url("/ok"))
    first = data.load_text(None, said.append)
    assert first == data.Text("Tiny Shakespeare", CONTENT)
    assert said == [f"Downloading Tiny Shakespeare to {cached}"]
    monkeypatch.setattr(data, "TINY_SHAKESPEARE", no_network)
    assert data.load_text(None, said.append) == first
    assert len(said) == server.requests == 1


def test_a_damaged_copy_is_downloaded_again(server, cached, monkeypatch):
    monkeypatch.setattr(data, "TINY_SHAKESPEARE", server.url("/ok"))
    cached.parent.mkdir()
    cached.write_bytes(CONTENT[:-1])
    assert data.load_text(None, lambda line: None).text == PLAY
    assert cached.read_bytes() == CONTENT
    assert server.requests == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_network_it_is_the_language_reference_and_that_is_said(cached, no_network, damaged):
    if damaged:
        cached.parent.mkdir()
        cached.write_bytes(CONTENT[:-1])
    said = []
    text = data.load_text(None, said.append)
    assert text.name == "Python's language reference"
    assert text.text == data.language_reference()
    assert "could not be downloaded" in said[-1]
    assert "Connection refused" in said[-1]
    assert f"save {no_network}\nas {cached}" in said[-1]
    assert files_below(cached.parent) == ([cached] if damaged else [])


def test_it_is_printed_unless_told_otherwise(capsys):
    data.load_text()
    assert "could not be downloaded" in capsys.readouterr().out


def test_a_named_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_bytes(CONTENT)
    said = []
    assert data.load_text(str(tmp_path / "mine.txt"), said.append) == data.Text(str(tmp_path / "mine.txt"), CONTENT)
    assert said == []


def test_a_named_file_that_is_missing_is_an_error_and_not_another_text(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: there is no such file"):
        data.load_text(tmp_path / "nowhere.txt")


def test_the_language_reference_is_enough_to_train_on():
    text = data.language_reference()
    assert len(text) > 300_000
    assert text == data.language_reference()
    assert 90 < CharTokenizer.from_text(text).vocab_size < 256
    assert 'The "if" statement is used for conditional execution' in text


def test_a_python_without_its_language_reference_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="name a text file"):
        data.language_reference()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_directory() == tmp_path / "cache"
    monkeypatch.setenv("MINIGRAD_CACHE", "~/here")
    assert data.cache_directory() == tmp_path / "home" / "here"
    monkeypatch.delenv("MINIGRAD_CACHE")
    assert data.cache_directory() == tmp_path / "xdg" / "minigrad"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data.cache_directory() == tmp_path / "home" / ".cache" / "minigrad"


def test_the_real_tiny_shakespeare_has_the_numbers_that_everyone_states():
    path = data_file("tinyshakespeare.txt")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == REAL_SHA256
    text = data.read_text(path)
    tokenizer = CharTokenizer.from_text(text)
    dataset = data.Dataset(tokenizer.encode(text), block_size=256)
    assert (len(text), tokenizer.vocab_size) == (1_115_394, 65)
    assert (len(dataset.train), len(dataset.val)) == (1_003_854, 111_540)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Files


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"caf\xe9 noir", r"not UTF-8 text \(byte 0xe9 at 3\)")]
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "odd.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/odd\.txt: {message}$"):
        data.read_text(tmp_path / "odd.txt")


def test_a_byte_order_mark_is_no_token(tmp_path):
    """Windows' editors write one. Only the first is a mark; a later one is a character."""
    (tmp_path / "marked.txt").write_bytes(codecs.BOM_UTF8 + CONTENT + codecs.BOM_UTF8)
    (tmp_path / "plain.txt").write_bytes(CONTENT + codecs.BOM_UTF8)
    (tmp_path / "mark.txt").write_bytes(codecs.BOM_UTF8)
    marked, plain = data.load_data(tmp_path / "marked.txt"), data.load_data(tmp_path / "plain.txt")
    np.testing.assert_array_equal(marked.train, plain.train)
    assert marked.tokenizer.state() == plain.tokenizer.state()
    assert marked.data_id == plain.data_id
    assert data.read_text(tmp_path / "marked.txt") == PLAY + "\ufeff"
    assert "".join(data.read_chunks(tmp_path / "marked.txt")) == PLAY + "\ufeff"
    with pytest.raises(DataError, match=r"mark\.txt: the file is empty"):
        data.read_text(tmp_path / "mark.txt")
    (tmp_path / "odd.txt").write_bytes(codecs.BOM_UTF8 + b"caf\xe9 noir")
    with pytest.raises(DataError, match=r"byte 0xe9 at 6\)"):
        list(data.read_chunks(tmp_path / "odd.txt"))


def test_a_character_outside_the_vocabulary_is_found_in_a_later_chunk(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 4)
    with pytest.raises(TokenError, match=r"^play: from character 7 on: the character 'z' at position 3 is not in"):
        data.Text("play", b"abc abc abz").encode(CharTokenizer("abc "))


MEMORY = """
import sys
from gpt.text.data import load_data

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

load_data(sys.argv[1])
before = most()
tokens = load_data(sys.argv[2])
print(most() - before, len(tokens.train) + len(tokens.val))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory as Linux reports it")
@pytest.mark.parametrize("kind", ["letters", "one emoji", "many characters"])
def test_a_text_takes_at_most_four_times_its_size_in_memory(tmp_path, kind):
    """As one string, the second text alone takes four times its size; the ids of the third take two bytes each."""
    line = "the cat sat on the mat, and the dog lay by the door\n"
    many = "".join(map(chr, range(256, 1000))) if kind == "many characters" else ""
    text = line * 10 + many + ("\N{RED APPLE}" if kind == "one emoji" else "")
    (tmp_path / "small.txt").write_text(text, encoding="utf-8")
    (tmp_path / "large.txt").write_text(text + line * 1_000_000, encoding="utf-8")
    command = [sys.executable, "-c", MEMORY, tmp_path / "small.txt", tmp_path / "large.txt"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    more, tokens = map(int, done.stdout.split())
    size = (tmp_path / "large.txt").stat().st_size
    assert tokens == len(text) + len(line) * 1_000_000
    print(f"{kind}: {more / size:.2f} times its size of {size:,} bytes")
    assert size < more < 4 * size


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(DataError, match=rf"^{tmp_path}: is a folder; expected a text file$"):
        data.read_text(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"secret\.txt: cannot be read \(Permission denied\)"):
        data.read_text(tmp_path / "secret.txt")


# Batches. The ids are 0, 1, 2 …, so that every token says where it stood.


def test_a_batch_is_blocks_and_the_tokens_after():
    dataset = data.Dataset(np.arange(1000, dtype=np.uint16), block_size=8)
    inputs, targets = dataset.batch("train", 5, np.random.default_rng(0))
    for ids in (inputs, targets):
        assert ids.shape == (5, 8)
        assert ids.dtype == np.int64
        assert ids.flags.c_contiguous
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(8))
    np.testing.assert_array_equal(targets, inputs + 1)


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0, 90), ("val", 90, 100)])
def test_batches_stay_in_their_part_and_reach_all_of_it(split, low, high):
    dataset = data.Dataset(np.arange(100), block_size=4)
    inputs, targets = dataset.batch(split, 5000, np.random.default_rng(0))
    assert set(inputs.ravel().tolist()) == set(range(low, high - 1))
    assert set(targets.ravel().tolist()) == set(range(low + 1, high))


def test_the_same_seed_gives_the_same_batches():
    dataset = data.Dataset(np.arange(1000), block_size=8)

    def batches(seed):
        rng = np.random.default_rng(seed)
        return np.stack([dataset.batch(split, 16, rng) for split in ("train", "val", "train")])

    np.testing.assert_array_equal(batches(1), batches(1))
    assert (batches(1) != batches(2)).any()


def test_the_ids_are_neither_copied_nor_changed():
    ids = np.arange(1000)
    dataset = data.Dataset(ids, block_size=8)
    inputs, _ = dataset.batch("train", 4, np.random.default_rng(0))
    inputs[:] = -1
    np.testing.assert_array_equal(ids, np.arange(1000))
    assert np.shares_memory(dataset.train, ids)
    assert np.shares_memory(dataset.val, ids)


def test_a_memory_map_will_do(tmp_path):
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    ids = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    inputs, targets = data.Dataset(ids, block_size=8).batch("val", 4, np.random.default_rng(0))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert type(inputs) is np.ndarray


def test_the_shortest_text_is_a_block_and_a_token_in_each_part():
    dataset = data.Dataset(np.arange(18), block_size=8, train_fraction=0.5)
    for split, first in (("train", 0), ("val", 9)):
        inputs, targets = dataset.batch(split, 2, np.random.default_rng(0))
        np.testing.assert_array_equal(inputs, [range(first, first + 8)] * 2)
        np.testing.assert_array_equal(targets, inputs + 1)


@pytest.mark.parametrize("length", [0, 1, 17, 80])
def test_a_text_that_is_too_short_says_how_long_it_is_and_what_is_wanted(length):
    with pytest.raises(DataError, match=rf"of its {length} tokens .* blocks of 8 need at least 9 in each part"):
        data.Dataset(np.arange(length), block_size=8)


def test_options_without_meaning_are_refused():
    ids, rng = np.arange(100), np.random.default_rng(0)
    with pytest.raises(ConfigError, match="block_size is 0"):
        data.Dataset(ids, block_size=0)
    with pytest.raises(ConfigError, match="train_fraction is 1"):
        data.Dataset(ids, block_size=4, train_fraction=1)
    with pytest.raises(DataError, match=r"integers \(N,\), got \(100,\) float64"):
        data.Dataset(ids / 2, block_size=4)
    with pytest.raises(DataError, match=r"integers \(N,\), got \(10, 10\) int64"):
        data.Dataset(ids.reshape(10, 10), block_size=4)
    with pytest.raises(ConfigError, match="split is 'test'"):
        data.Dataset(ids, block_size=4).batch("test", 1, rng)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        data.Dataset(ids, block_size=4).batch("train", 0, rng)


def test_the_parts_may_be_given_apart():
    dataset = data.Dataset.of_parts(np.arange(100), np.arange(100, 120), block_size=8)
    for split, low, high in (("train", 0, 100), ("val", 100, 120)):
        inputs, targets = dataset.batch(split, 500, np.random.default_rng(0))
        assert (inputs.min(), targets.max()) == (low, high - 1)
        np.testing.assert_array_equal(targets, inputs + 1)
    with pytest.raises(DataError, match="100 of its 108 tokens are for training and 8 for validation"):
        data.Dataset.of_parts(np.arange(100), np.arange(8), block_size=8)
    with pytest.raises(DataError, match=r"integers \(N,\), got \(100,\) float64"):
        data.Dataset.of_parts(np.arange(100), np.ones(100), block_size=8)


def test_an_id_outside_the_vocabulary_is_named_by_the_batch_that_comes_upon_it():
    ids = np.arange(40) % 9
    ids[25] = 9
    dataset = data.Dataset.of_parts(ids, ids[:20], block_size=8, vocab_size=9)
    dataset.batch("val", 100, np.random.default_rng(0))
    with pytest.raises(DataError, match='the id 9 at position 25 of "train" is not in the vocabulary, which has 9'):
        dataset.batch("train", 100, np.random.default_rng(0))


# Token files


@pytest.fixture
def tokens(tmp_path):
    """A folder of token files: the ids 0 to 89 and 90 to 99 of a tokenizer of 100 characters."""
    folder = tmp_path / "tokens"
    write_tokens(folder)
    return folder


def write_tokens(folder, dtype="uint16", **changes):
    folder.mkdir(exist_ok=True)
    np.arange(90).astype(f"<u{np.dtype(dtype).itemsize}").tofile(folder / "train.bin")
    np.arange(90, 100).astype(f"<u{np.dtype(dtype).itemsize}").tofile(folder / "val.bin")
    about = {
        "tokenizer": CharTokenizer("".join(map(chr, range(100)))).state(),
        "dtype": dtype,
        "files": {"train.bin": {"tokens": 90}, "val.bin": {"tokens": 10}},
    }
    (folder / "meta.json").write_text(json.dumps({**about, **changes}), encoding="utf-8")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_files_are_read_as_they_were_written(tmp_path, dtype):
    write_tokens(tmp_path / "tokens", dtype)
    tokens = data.load_data(tmp_path / "tokens")
    np.testing.assert_array_equal(tokens.train, np.arange(90))
    np.testing.assert_array_equal(tokens.val, np.arange(90, 100))
    assert tokens.train.dtype == dtype
    assert tokens.tokenizer.vocab_size == 100
    assert tokens.about == f"{tmp_path}/tokens: 100 tokens, vocabulary of 100"


def test_stored_ids_are_used_like_an_array(tokens):
    ids = data.load_data(tokens).train
    assert len(ids[10:]) == 80
    np.testing.assert_array_equal(ids[10:][-3:], [87, 88, 89])
    np.testing.assert_array_equal(ids[None, :4], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(ids[5:2], np.empty(0))
    np.testing.assert_array_equal(ids[20:].blocks(np.array([3, 0]), 2), [[23, 24], [20, 21]])
    of_array, of_file = (
        data.Dataset.of_parts(np.asarray(ids), ids, 8).batch(s, 5, np.random.default_rng(0)) for s in ("train", "val")
    )
    np.testing.assert_array_equal(of_array, of_file)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove files that are open")
def test_a_token_file_that_becomes_shorter_is_an_error(tokens):
    """With a memory map the process would die by SIGBUS."""
    ids = data.load_data(tokens)
    dataset = data.Dataset.of_parts(ids.train, ids.val, 8)
    os.truncate(tokens / "train.bin", 10)
    with pytest.raises(DataError, match=r"train\.bin: has become shorter while it was in use$"):
        dataset.batch("train", 100, np.random.default_rng(0))
    os.truncate(tokens / "train.bin", 180)
    dataset.batch("train", 100, np.random.default_rng(0))
    (tokens / "train.bin").unlink()  # an open file stays
    dataset.batch("train", 100, np.random.default_rng(0))


def test_one_token_file_may_stand_alone(tokens):
    both, train, val = (data.load_data(path) for path in (tokens, tokens / "train.bin", tokens / "val.bin"))
    np.testing.assert_array_equal(train.train, np.arange(81))
    np.testing.assert_array_equal(train.val, np.arange(81, 90))
    np.testing.assert_array_equal(val.val, [99])
    assert len({both.data_id, train.data_id, val.data_id}) == 3
    assert data.load_data(tokens).data_id == both.data_id


def test_a_name_that_is_empty_or_mistyped_is_what_the_error_is_about(tokens):
    with pytest.raises(DataError, match="^the file name is empty; expected the name of a text file$"):
        data.load_data("")
    for path in (tokens / "tokens.bin", tokens / "nowhere" / "train.bin"):
        with pytest.raises(DataError, match=f"^{path}: there is no such file$"):
            data.load_data(path)


def test_token_files_of_another_tokenizer_are_refused(tokens):
    assert data.load_data(tokens, CharTokenizer("".join(map(chr, range(100))))).tokenizer.vocab_size == 100
    with pytest.raises(DataError, match="tokens: these tokens were made with another tokenizer than the model's"):
        data.load_data(tokens, CharTokenizer("abc"))


def test_a_text_is_encoded_by_its_characters_or_by_the_tokenizer_of_the_model(tmp_path):
    (tmp_path / "mine.txt").write_text("abcabcabca" * 10, encoding="utf-8")
    own = data.load_data(tmp_path / "mine.txt")
    other = data.load_data(tmp_path / "mine.txt", CharTokenizer("dcba"))
    assert own.about == other.about == f"{tmp_path}/mine.txt: 100 characters, 3 distinct"
    assert own.data_id == other.data_id == hashlib.sha256(b"abcabcabca" * 10).hexdigest()
    assert own.tokenizer.characters == "abc"
    np.testing.assert_array_equal(own.train, other.tokenizer.vocab_size - 1 - other.train)
    assert (len(own.train), len(own.val)) == (90, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, r"meta\.json: not written by examples/prepare_data\.py"),
        ({"files": []}, r"meta\.json: not written by examples/prepare_data\.py"),
        ({"tokenizer": {"kind": "bpe"}}, r"meta\.json: not a tokenizer"),
        ({"files": {}}, r"train\.bin: meta\.json does not say how many tokens it has"),
        ({"files": {"train.bin": 90}}, r"train\.bin: meta\.json does not say how many tokens it has"),
        ({"files": {"train.bin": {"tokens": "90"}}}, r"train\.bin: 180 bytes; meta\.json says 90 tokens of 2 bytes"),
        ({"files": {"train.bin": {"tokens": 91}}}, r"train\.bin: 180 bytes; meta\.json says 91 tokens of 2 bytes"),
        ({"dtype": "uint32"}, None),
    ],
)
def test_token_files_that_are_not_what_meta_says_are_refused(tokens, changes, message):
    write_tokens(tokens, **changes)
    if message is None:  # the same number of ids, each of half the size
        (tokens / "train.bin").write_bytes(bytes(180))
        message = r"train\.bin: 180 bytes; meta\.json says 90 tokens of 4 bytes"
    with pytest.raises(DataError, match=message):
        data.load_data(tokens)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"null", b"\xff"])
def test_a_meta_file_that_is_none_is_refused(tokens, content):
    (tokens / "meta.json").write_bytes(content)
    with pytest.raises(DataError, match=r"meta\.json: "):
        data.load_data(tokens)


def test_token_files_that_are_cut_missing_or_empty_are_named(tokens, tmp_path):
    train = tokens / "train.bin"
    train.write_bytes(train.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin: 179 bytes; meta\.json says 90 tokens of 2 bytes"):
        data.load_data(tokens)
    write_tokens(tokens, files={"train.bin": {"tokens": 0}})
    train.write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: 0 bytes; meta\.json says 0 tokens"):
        data.load_data(tokens)
    train.unlink()
    with pytest.raises(DataError, match=r"train\.bin: cannot be read \(No such file or directory\)"):
        data.load_data(tokens)
    (tokens / "meta.json").unlink()
    for path in (tokens, tokens / "val.bin", tmp_path):
        with pytest.raises(DataError, match=r"meta\.json: cannot be read .* a folder made by examples/prepare_data.py"):
            data.load_data(path)


SAMPLE = """
import re, sys, tracemalloc
import numpy as np
from pathlib import Path
from gpt.text import data
from tests.needs import data_file

def own_memory():
    return int(re.search(r"^RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) / 1024

before = own_memory()
tracemalloc.start()
tokens = data.load_data(sys.argv[1])
dataset = data.Dataset.of_parts(tokens.train, tokens.val, 256, tokens.tokenizer.vocab_size)
rng = np.random.default_rng(0)
for _ in range(100):
    inputs, targets = dataset.batch("train", 12, rng)
print(own_memory() - before, tracemalloc.get_traced_memory()[1] / 2**20, inputs.max())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's memory")
def test_a_file_of_many_tokens_is_sampled_without_loading_it(tmp_path):
    """64 MB of tokens: what the process has of its own is a batch; the rest is the system's cache of the file."""
    write_tokens(tmp_path, files={"train.bin": {"tokens": 1 << 25}, "val.bin": {"tokens": 1 << 10}})
    (np.arange(1 << 25, dtype="<u2") % 100).tofile(tmp_path / "train.bin")
    np.zeros(1 << 10, "<u2").tofile(tmp_path / "val.bin")
    command = [sys.executable, "-c", SAMPLE, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    at_the_end, peak, largest = map(float, result.stdout.split())  # MB
    assert at_the_end < 8
    assert peak < 2
    assert largest == 99
