"""Characters to ids and back, for any text; and what is said of characters and ids that do not belong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from gpt import CharTokenizer, TokenError

TEXTS = st.text(min_size=1)  # any Unicode but lone surrogates


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
    with pytest.raises(TokenError, match=r"'\\udc80' at position 1 is a lone surrogate"):
        CharTokenizer("a\udc80")


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
    with pytest.raises(TokenError, match="wanted a row of integers"):
        CharTokenizer("abc").decode(bad)


def test_its_repr_makes_it_again():
    assert repr(CharTokenizer("ab\n")) == r"CharTokenizer('ab\n')"


@pytest.mark.cuda
def test_ids_on_a_gpu_are_decoded():
    assert CharTokenizer("abc").decode(mg.Tensor(np.array([2, 0]), device="cuda").data) == "ca"
