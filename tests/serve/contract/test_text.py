# ruff: noqa: RUF001 - letters of other scripts are the point here

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.contract.text import CLEANING_MODES, clean

# Lone surrogates, null bytes, marks and emoji come up often, along with every other character.
texts = st.text(st.characters() | st.characters(categories=["Cs", "Mn", "Mc", "Me", "Cf", "So", "Sk"]))


def test_none_changes_nothing() -> None:
    assert clean("  Tabs\tand\n\nLINES\x00 \ud800 ", "none") == "  Tabs\tand\n\nLINES\x00 \ud800 "


def test_whitespace_folds_every_kind_of_white_space() -> None:
    assert clean(" \tTwo\u00a0\u2003 words,\r\n\u3000kept! ", "whitespace") == "Two words, kept!"


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بالعالم ٢٠٢٤",
        "हिन्दी में किताबें २०२४",
        "தமிழ் நூல்கள்",
        "ภาษาไทยที่นี่",
        "中文文本 一二三",
        "日本語 ひらがな カタカナ",
        "한국어 문장",
        "καλημέρα κόσμε",
        "привет мир",
        "שלום עולם",
        unicodedata.normalize("NFC", "žluťoučký kůň déjà vu"),
        unicodedata.normalize("NFD", "žluťoučký kůň déjà vu"),
        unicodedata.normalize("NFD", "tiếng việt"),
    ],
)
def test_alphanumeric_keeps_words_of_every_script_whole(text: str) -> None:
    assert clean(f"«{text}»!", "alphanumeric") == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("E-Mail: Foo_Bar@example.COM", "e mail foo bar example com"),
        ("100 % sure?! (yes) #tag £5", "100 sure yes tag 5"),
        ("GROSSE Straße ÅNGSTRÖM", "grosse straße ångström"),
        ("great ❤️👍🏽👩‍💻 job1️⃣", "great job1"),
        ("❤️", ""),
        ("null\x00byte \ud83d half", "null byte half"),
        ("a ≠ b", "a b"),
        (unicodedata.normalize("NFD", "a ≠ b"), "a b"),
        ("", ""),
    ],
)
def test_alphanumeric_removes_special_characters_and_lower_cases(text: str, cleaned: str) -> None:
    assert clean(text, "alphanumeric") == cleaned


@pytest.mark.parametrize(
    ("joined", "plain"),
    [
        ("می\u200cخواهم", "میخواهم"),
        ("ශ්\u200dරී", "ශ්රී"),
        ("Donau\u00addampf", "donaudampf"),
    ],
)
def test_alphanumeric_does_not_cut_words_at_invisible_joiners(joined: str, plain: str) -> None:
    assert clean(joined, "alphanumeric") == plain


@pytest.mark.parametrize("mode", CLEANING_MODES)
@given(text=texts)
@example("İstanbul")
@example("ΑΣ.ΒΣ ΑΣ\u00adΒ")
@example("\ud800\x00\ufe0f")
def test_cleaning_twice_is_cleaning_once(mode: str, text: str) -> None:
    cleaned = clean(text, mode)
    assert clean(cleaned, mode) == cleaned


@given(texts)
def test_alphanumeric_gives_words_that_begin_with_a_letter_or_digit(text: str) -> None:
    cleaned = clean(text, "alphanumeric")
    for word in cleaned.split(" ") if cleaned else []:
        assert word[0].isalnum()
        assert all(char.isalnum() or unicodedata.category(char) in ("Mn", "Mc") for char in word)


@given(texts)
def test_alphanumeric_keeps_every_letter_and_digit(text: str) -> None:
    kept = [char for char in text.lower() if char.isalnum()]
    assert [char for char in clean(text, "alphanumeric") if char.isalnum()] == kept


def test_an_unknown_mode_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown cleaning mode 'ascii'; choose one of none, whitespace, alphanumeric"):
        clean("text", "ascii")
