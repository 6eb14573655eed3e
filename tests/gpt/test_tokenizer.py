"""Texts to ids and back, for any text and every tokenizer; learning byte pairs; what does not belong is named."""

import contextlib
import functools
import json
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from gpt import GPT, CharTokenizer, CheckpointError, ConfigError, DataError, GPTConfig, TokenError, checkpoint
from gpt.text import tokenizer as tokenizers
from gpt.text.bpe import MAX_TOKEN_BYTES, learn_merges
from gpt.text.tokenizer import END_OF_TEXT, GPT2_PIECES, BPETokenizer, GPT2Tokenizer, StreamDecoder
from tests.gpt.gpt2_files import PLACES, gpt2_tokenizer
from tests.needs import data_file

TEXTS = st.text(min_size=1)  # any Unicode but lone surrogates
RHYME = "the cat sat on the mat.\nthe dog's log — 12 früh'ling 五五五 🍎🍎\n\n  the end" * 5


@functools.cache
def learned():
    """Byte pairs learned from RHYME."""
    return BPETokenizer.train(RHYME, 300)


BYTE_PAIRS = pytest.mark.parametrize("make", [learned, gpt2_tokenizer])


# Characters


@given(TEXTS)
def test_decode_undoes_encode(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == tokenizer.decode(mg.Tensor(ids)) == text


@given(TEXTS)
def test_ids_are_places_among_the_sorted_distinct_characters(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.encode(text).tolist() == [tokenizer.characters.index(character) for character in text]


@given(TEXTS)
def test_the_characters_are_all_there_is_to_save(text):
    tokenizer = CharTokenizer.from_text(text)
    again = CharTokenizer(tokenizer.characters)
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@given(TEXTS, TEXTS)
def test_every_text_is_encoded_whole_or_its_first_unknown_character_is_named(known, text):
    tokenizer = CharTokenizer.from_text(known)
    strangers = [position for position, character in enumerate(text) if character not in known]
    if strangers:
        with pytest.raises(TokenError) as caught:
            tokenizer.encode(text)
        assert f"{text[strangers[0]]!r} at position {strangers[0]} " in str(caught.value)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_follow_the_order_of_the_characters_that_were_given():
    assert CharTokenizer("cab").encode("abc").tolist() == [1, 2, 0]


@pytest.mark.parametrize(("size", "dtype"), [(65, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_ids_take_the_smallest_dtype(size, dtype):
    characters = "".join(map(chr, range(0x10000, 0x10000 + size)))
    tokenizer = CharTokenizer(characters)
    ids = tokenizer.encode(characters)
    assert ids.dtype == dtype
    np.testing.assert_array_equal(ids, np.arange(size))
    assert tokenizer.decode(ids) == characters


def test_an_unknown_character_is_named_with_its_place_and_the_vocabulary():
    with pytest.raises(TokenError) as caught:
        CharTokenizer.from_text("hello world").encode("held€")
    assert str(caught.value) == (
        "the character '€' at position 4 is not in the vocabulary, which has 8 characters: "
        "' ' 'd' 'e' 'h' 'l' 'o' 'r' 'w'"
    )


def test_a_large_vocabulary_is_shown_in_part():
    with pytest.raises(TokenError, match=r"has 26 characters: 'a' 'b' 'c' 'd' 'e' 'f' 'g' 'h' …$"):
        CharTokenizer("abcdefghijklmnopqrstuvwxyz").encode("A")


def test_a_lone_surrogate_is_a_clear_error():
    with pytest.raises(TokenError, match=r"'\\ud83d' at position 1 is not in the vocabulary"):
        CharTokenizer("ab").encode("a\ud83d")
    with pytest.raises(TokenError, match=r"characters: expected text, got the lone surrogate '\\udc80' at position 1"):
        CharTokenizer("a\udc80")


def test_bytes_are_no_text():
    with pytest.raises(TokenError, match="encode: expected a string, got bytes"):
        CharTokenizer("ab").encode(b"a")


def test_characters_are_distinct_and_there_are_some():
    with pytest.raises(TokenError, match="'a' is given twice"):
        CharTokenizer("abac")
    with pytest.raises(TokenError, match="at least one"):
        CharTokenizer.from_text("")


def test_nothing_is_nothing():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("bad", [3, -1, 300])
def test_an_id_outside_the_vocabulary_is_named(bad):
    with pytest.raises(TokenError, match=f"the id {bad} at position 2 is not in the vocabulary.* ids 0 to 2"):
        CharTokenizer("abc").decode([0, 2, bad])


@pytest.mark.parametrize("bad", [[0.0, 1.0], [True], [[0, 1]], 1, ["a"], [2**70], [[0], [0, 1]]])
def test_only_a_row_of_integers_is_decoded(bad):
    with pytest.raises(TokenError, match="expected a row of integers"):
        CharTokenizer("abc").decode(bad)


def test_its_repr_makes_it_again():
    assert repr(CharTokenizer("ab\n")) == r"CharTokenizer('ab\n')"


@pytest.mark.cuda
def test_ids_on_a_gpu_are_decoded():
    assert CharTokenizer("abc").decode(mg.Tensor(np.array([2, 0]), device="cuda").data) == "ca"


# Byte pairs: texts to ids and back


@BYTE_PAIRS
@given(text=st.text() | st.text(st.sampled_from("the c's\n12 \u3000\x1c五🍎")))
def test_byte_pairs_take_any_text_and_give_it_back(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == tokenizer.decode(mg.Tensor(ids)) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_gpt2_gives_the_ids_that_everyone_knows():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert tokenizer.decode([464, 3616, 286, 1204, 318]) == "The meaning of life is"
    assert tokenizer.vocab_size == tokenizer.encoding.n_vocab == 50257
    assert tokenizer.special_tokens == {END_OF_TEXT: 50256}


@given(st.text(st.sampled_from("thecat's .\n")))
def test_a_text_is_encoded_piece_by_piece_by_joining_the_lowest_token_first(text):
    tokenizer = learned()
    rank = {token: i for i, token in enumerate(tokenizer.tokens)}
    expected = []
    for piece in regex.findall(GPT2_PIECES, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while piece.encode() not in rank:
            joined = [rank.get(left + right, len(rank)) for left, right in zip(parts, parts[1:], strict=False)]
            if min(joined, default=len(rank)) == len(rank):
                break
            i = joined.index(min(joined))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        else:
            parts = [piece.encode()]
        expected += [rank[part] for part in parts]
    assert tokenizer.encode(text).tolist() == expected


@settings(max_examples=300)
@given(st.text() | st.text(st.sampled_from("ab1 '\n\tslvred.\u3000\x1c\x85é")))
def test_pieces_are_cut_as_gpt2_cuts_them(text):
    published = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    pieces = regex.findall(GPT2_PIECES, text)
    assert pieces == regex.findall(published, text)
    assert "".join(pieces) == text


@BYTE_PAIRS
def test_a_million_spaces_are_pieces_like_any_other(make):
    """tiktoken alone refuses them."""
    tokenizer = make()
    for end in ("a", "\n", "\u3000!"):
        few, many = tokenizer.encode("a" + " " * 20 + end), tokenizer.encode("a" + " " * 1_200_000 + end)
        assert tokenizer.decode(many) == "a" + " " * 1_200_000 + end
        assert many[0] == few[0]
        assert many[-1] == few[-1]


def test_nothing_is_nothing_in_byte_pairs():
    assert learned().encode("").shape == (0,)
    assert learned().decode([]) == ""


@BYTE_PAIRS
def test_a_special_token_is_text_unless_it_is_allowed(make):
    tokenizer = make()
    text = f"the end{END_OF_TEXT}the cat"
    mark = tokenizer.special_tokens[END_OF_TEXT]
    assert mark == tokenizer.vocab_size - 1
    for allowed in ("all", {END_OF_TEXT}, [END_OF_TEXT], END_OF_TEXT):
        ids = tokenizer.encode(text, allowed_special=allowed).tolist()
        assert ids == [*tokenizer.encode("the end"), mark, *tokenizer.encode("the cat")]
        assert tokenizer.decode(ids) == text
    plain = tokenizer.encode(text)
    assert mark not in plain
    assert tokenizer.decode(plain) == text
    with pytest.raises(TokenError, match=r"'<\|pad\|>' is not a special token of this tokenizer; it has '<\|endoftext"):
        tokenizer.encode(text, allowed_special={"<|pad|>"})


def test_characters_have_no_special_tokens():
    tokenizer = CharTokenizer.from_text(END_OF_TEXT)
    assert tokenizer.special_tokens == {}
    assert len(tokenizer.encode(END_OF_TEXT, allowed_special="all")) == len(END_OF_TEXT)
    with pytest.raises(TokenError, match="is not a special token of this tokenizer; it has none"):
        tokenizer.encode("end", allowed_special={END_OF_TEXT})


@BYTE_PAIRS
def test_byte_pairs_refuse_what_is_no_text(make):
    with pytest.raises(TokenError, match=r"^encode: expected text, got the lone surrogate '\\ud83d' at position 4$"):
        make().encode("the \ud83d\ude00")
    with pytest.raises(TokenError, match="encode: expected a string, got bytes"):
        make().encode(b"the cat")


@BYTE_PAIRS
@pytest.mark.parametrize("bad", [-1, 50257, 2**40])
def test_byte_pairs_refuse_ids_outside_the_vocabulary(make, bad):
    with pytest.raises(TokenError, match=rf"the id {bad} at position 1 is not in the vocabulary.* ids 0 to \d+$"):
        make().decode([104, bad])
    with pytest.raises(TokenError, match="expected a row of integers"):
        make().decode([[1, 2]])


def test_bytes_that_are_no_text_are_marked():
    assert learned().decode([0xFF, ord("a"), 0xE2, 0x82]) == "\ufffda\ufffd"
    assert learned().decode_bytes([0xFF, ord("a"), 0xE2, 0x82]) == b"\xffa\xe2\x82"


# Decoding a stream


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 299) | st.sampled_from(list("né€🍎".encode())), max_size=3)))
def test_a_stream_is_decoded_as_if_all_came_at_once(rows):
    decoder = StreamDecoder(learned())
    for _ in range(2):  # after flush it starts anew
        text = "".join(map(decoder.feed, rows)) + decoder.flush()
        assert text == learned().decode([token for row in rows for token in row])


@pytest.mark.parametrize("make", [learned, gpt2_tokenizer, lambda: CharTokenizer.from_text(RHYME)])
def test_a_stream_never_breaks_a_character(make):
    tokenizer = make()
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.feed([token]) for token in tokenizer.encode(RHYME)]
    assert "".join(pieces) == RHYME
    assert decoder.flush() == ""


def test_a_character_comes_with_its_last_byte_and_an_incomplete_one_is_marked_at_the_end():
    decoder = StreamDecoder(BPETokenizer([]))
    assert [decoder.feed([byte]) for byte in "a€🍎".encode()] == ["a", "", "", "€", "", "", "", "🍎"]
    assert decoder.feed(list("€".encode())[:2]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


# Learning byte pairs


def learn_slowly(pieces, n_merges):
    """`learn_merges` by its definition: count everything again at every step."""
    words = [([bytes([byte]) for byte in piece.encode()], count) for piece, count in pieces.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, count in words:
            for left, right in zip(word, word[1:], strict=False):
                counts[tokens.index(left), tokens.index(right)] += count
        joined = {pair: tokens[pair[0]] + tokens[pair[1]] for pair in counts}
        candidates = [pair for pair in counts if counts[pair] > 1 and len(joined[pair]) <= MAX_TOKEN_BYTES]
        if not candidates:
            break
        best = min(candidates, key=lambda pair: (-counts[pair], pair))
        assert joined[best] not in tokens
        for word, _ in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (tokens[best[0]], tokens[best[1]]):
                    word[i : i + 2] = [joined[best]]
                i += 1
        tokens.append(joined[best])
        merges.append(best)
    return merges


@settings(max_examples=300)
@given(
    st.dictionaries(st.text(st.sampled_from("ab"), max_size=30), st.integers(1, 4), max_size=6)
    | st.dictionaries(st.text(st.sampled_from("abc五"), max_size=12), st.integers(1, 9), max_size=12)
)
def test_learning_is_the_obvious_algorithm_only_faster(pieces):
    assert learn_merges(pieces, 25) == learn_slowly(pieces, 25)


def test_learning_from_real_text_is_the_obvious_algorithm_only_faster():
    pieces = Counter(regex.findall(GPT2_PIECES, Path(__file__).read_text(encoding="utf-8")[:4000]))
    assert learn_merges(pieces, 120) == learn_slowly(pieces, 120)


def test_the_most_frequent_pair_comes_first_and_ties_go_to_the_lower_tokens():
    assert learn_merges({"ab": 2, "bc": 3}, 1) == [(98, 99)]
    assert learn_merges({"cd": 2, "bz": 2, "ba": 2}, 3) == [(98, 97), (98, 122), (99, 100)]
    assert learn_merges({"aaaaa": 2}, 9) == [(97, 97), (256, 97), (256, 257)]  # aa aa a, aa aaa, aaaaa


def test_no_pair_is_joined_for_a_single_occurrence():
    assert learn_merges({"abc": 1}, 9) == []
    assert learn_merges({"abc": 1, "ab": 1}, 9) == [(97, 98)]


def test_tokens_stay_short():
    tokenizer = BPETokenizer.train("a" * 10_000, 1000)
    assert max(map(len, tokenizer.tokens)) == MAX_TOKEN_BYTES
    assert tokenizer.decode(tokenizer.encode("a" * 999)) == "a" * 999


def test_the_same_text_gives_the_same_tokenizer_whole_or_in_parts():
    lines = RHYME.splitlines(keepends=True)
    assert BPETokenizer.train(RHYME, 300).state() == BPETokenizer.train(iter([RHYME]), 300).state() == learned().state()
    assert BPETokenizer.train(lines, 300).state() == BPETokenizer.train(lines[::-1], 300).state()


def test_learned_byte_pairs_have_the_size_that_was_asked_for():
    tokenizer = BPETokenizer.train(RHYME, 290, special_tokens=["<|pad|>", END_OF_TEXT])
    assert tokenizer.vocab_size == 290
    assert tokenizer.special_tokens == {"<|pad|>": 288, END_OF_TEXT: 289}
    assert len(tokenizer.encode(RHYME)) < len(RHYME.encode()) / 1.5
    assert BPETokenizer([], ()).vocab_size == 256
    with pytest.raises(
        ConfigError, match="vocab_size is 256; expected at least 257, for the bytes and the special tokens"
    ):
        BPETokenizer.train(RHYME, 256)
    with pytest.raises(TokenError, match="train: expected text, got the lone surrogate"):
        BPETokenizer.train("the \ud83d", 300)


def test_a_thousand_merges_of_tiny_shakespeare():
    text = data_file("tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = BPETokenizer.train(text, 1257)
    assert tokenizer.tokens[256:262] == [b" t", b"he", b" a", b"ou", b" s", b" m"]
    assert tokenizer.tokens[267] == b" the"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < 0.4 * len(text)


# Saving and loading


@pytest.mark.parametrize("make", [learned, GPT2Tokenizer, lambda: CharTokenizer("aé\n")])
def test_a_tokenizer_is_the_same_again_after_json(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / "new" / "tokenizer.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer.json"]
    again = tokenizers.load(tmp_path / "new" / "tokenizer.json")
    assert type(again) is type(tokenizer)
    assert again.state() == tokenizer.state() == json.loads(json.dumps(tokenizer.state()))
    assert again.vocab_size == tokenizer.vocab_size
    assert again.special_tokens == tokenizer.special_tokens


def test_a_tokenizer_is_kept_in_a_checkpoint(tmp_path):
    model = GPT(GPTConfig(block_size=4, vocab_size=300, n_layer=1, n_head=1, n_embd=4))
    for tokenizer in (learned(), GPT2Tokenizer(), CharTokenizer("ab")):
        checkpoint.save(
            tmp_path / "x.safetensors", model, model.configure_optimizer(1e-3, 0.1, (0.9, 0.99)), tokenizer, {}
        )
        assert checkpoint.load(tmp_path / "x.safetensors").tokenizer.state() == tokenizer.state()


def about(**changes):
    return {**BPETokenizer([(97, 98), (256, 99)]).state(), **changes}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"not a tokenizer: \{\}"),
        ([1, 2], r"not a tokenizer: \[1, 2\]"),
        (None, "not a tokenizer: None"),
        ({"kind": "gpt3"}, "not a tokenizer"),
        ({"kind": "char", "characters": ["a"]}, "not a tokenizer"),
        ({"kind": "char", "characters": ""}, "at least one"),
        ({"kind": "char", "characters": "a\udc80"}, r"got the lone surrogate '\\udc80' at position 1"),
        (about(pieces="(a+)+$"), r"pieces is '\(a\+\)\+\$'; expected"),
        (about(merges={}), "not a tokenizer"),
        (about(merges=[[97, 98], [256, 257]]), "merge 1 joins 256 and 257; expected tokens from 0 to 256"),
        (about(merges=[[-1, 98]]), "merge 0 joins -1 and 98; expected tokens from 0 to 255"),
        (about(merges=[[97, 98, 99]]), r"merge 0 is \[97, 98, 99\]; expected two tokens"),
        (about(merges=[[97, True]]), "expected two tokens"),
        (about(merges=["ab"]), "expected two tokens"),
        (about(merges=[[97, 98], [98, 99], [256, 99], [97, 257]]), "merge 3 makes b'abc', which is token 258 already"),
        (about(merges=[[97, 97], *([256 + i] * 2 for i in range(60))]), "merge 8 makes a token of 512 bytes"),
        (about(special_tokens=["<|a|>", "<|a|>"]), "special_tokens: expected distinct names"),
        (about(special_tokens=[""]), "special_tokens: expected distinct names"),
        (about(special_tokens=[7]), "special_tokens: expected a string, got int"),
        (about(special_tokens=["\ud800"]), "lone surrogate"),
    ],
)
def test_what_is_no_tokenizer_is_refused(state, message, tmp_path):
    with pytest.raises(TokenError, match=f"^.*{message}"):
        tokenizers.from_state(state)
    (tmp_path / "x.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(TokenError, match=rf"x\.json: .*{message}"):
        tokenizers.load(tmp_path / "x.json")
    model = {"config": {}, "tokenizer": state, "run": {}}
    mg.save({"x": np.zeros(1)}, tmp_path / "x.safetensors", metadata={"minigrad": json.dumps(model)})
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{message}"):
        checkpoint.load(tmp_path / "x.safetensors")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["char", "bpe"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["char", "bpe"]), JSON, JSON, JSON)
def test_any_json_is_a_tokenizer_or_one_clear_error(kind, characters, merges, special_tokens):
    state = about(kind=kind, characters=characters, merges=merges, special_tokens=special_tokens)
    with contextlib.suppress(TokenError):
        assert tokenizers.from_state(state).decode([0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"", "not JSON"),
        (b'{"kind": "bpe", "merg', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(TokenError, match=rf"x\.json: {message}"):
        tokenizers.load(tmp_path / "x.json")


# GPT-2's files


@pytest.fixture
def nowhere(monkeypatch):
    """There is no network: the addresses of GPT-2's files are those of a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    files = {f"http://127.0.0.1:{port}/{name}": "0" * 64 for name in ("vocab.bpe", "encoder.json")}
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(tokenizers, "GPT2_FILES", files)
    return list(files)


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
@pytest.mark.parametrize("damaged", [False, True])
def test_without_gpt2s_files_it_says_what_to_put_where(nowhere, tmp_path, monkeypatch, variable, damaged):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    tokenizer = GPT2Tokenizer()  # so far no file is needed
    assert tokenizer.vocab_size == 50257
    places = [tmp_path / tokenizers.cache_name(url) for url in nowhere]
    if damaged:
        places[0].write_text("not the file that was expected")
    with pytest.raises(DataError) as caught:
        tokenizer.encode("the cat")
    assert "GPT-2's byte-pair encoding could not be loaded" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "TIKTOKEN_CACHE_DIR" in str(caught.value)
    for url, place in zip(nowhere, places, strict=True):
        assert f"{url}\n  as {place}" in str(caught.value)
    assert not damaged or places[0].read_text() == "not the file that was expected"


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_a_variable_without_a_folder_is_what_it_is_for_tiktoken(nowhere, tmp_path, monkeypatch, variable):
    """Set but empty it means that no files are kept, whatever a variable that comes after it says."""

    def fail(name):
        raise OSError("no network")

    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(variable, "")
    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(DataError) as caught:
        GPT2Tokenizer().encode("the cat")
    files = "".join(f"\n  {url}\n  as {tokenizers.cache_name(url)}" for url in nowhere)
    assert str(caught.value) == (
        f"GPT-2's byte-pair encoding could not be loaded: no network\nDownload its files and save{files}\n"
        "in a folder that TIKTOKEN_CACHE_DIR is set to"
    )
    assert not list(tmp_path.iterdir())


def test_gpt2s_files_are_where_tiktoken_keeps_them():
    assert [tokenizers.cache_name(url) for url in tokenizers.GPT2_FILES] == PLACES
    assert gpt2_tokenizer().encoding is tiktoken.get_encoding("gpt2")
