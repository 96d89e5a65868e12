"""Rows that repeat others: by hand, and against the slow way with sets of words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.select.contamination import References, Repeats, similar_to, words

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many"


def look(references: list[str], pool: list[str]) -> list[tuple[int, int]]:
    found = References(references).repeated_by(iter(pool))
    return list(zip(found.of.tolist(), found.how.tolist(), strict=True))


def test_same_words_and_thirteen_in_a_row() -> None:
    thirteen = "NATALIA sold clips, to 48 of her friends in April -- and then she"
    assert len(words(thirteen)) == 13
    pool = [
        LONG.upper() + "!",  # the same text but for case and punctuation
        f"Once upon a time {thirteen} nothing",  # 13 of its words
        "Once upon a time natalia sold clips to 48 of her friends in April and nothing",  # 12 of them
        "What is 2+2?",
        "what is 2+2",
        "",
    ]
    assert look([LONG, "What is 2+2?"], pool) == [(0, 0), (0, 1), (-1, -1), (1, 0), (1, 0), (-1, -1)]
    assert look([], pool) == [(-1, -1)] * 6
    assert look([LONG], []) == []


def test_words_of_two_rows_are_not_one_run() -> None:
    half = " ".join("abcdefg")
    rest = " ".join("hijklmn")
    assert look([f"{half} {rest}"], [half, rest]) == [(-1, -1)] * 2
    assert look([half, rest], [f"{half} {rest}"]) == [(-1, -1)]


def test_scripts_without_spaces_have_a_word_a_sign() -> None:
    assert words("東京は、大きい。Tokyo 2020") == [*"東京は大きい", "tokyo", "2020"]
    assert look(["今日はとても良い天気ですねと彼は言った"], ["昔、今日はとても良い天気ですねと書いた"]) == [(0, 1)]


@given(
    references=st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=6),
    pool=st.lists(st.lists(st.sampled_from("abcd"), max_size=40), max_size=12),
)
def test_against_sets_of_words(references: list[list[str]], pool: list[list[str]]) -> None:
    def grams(row: list[str]) -> set[tuple[str, ...]]:
        return {tuple(row[i : i + 13]) for i in range(len(row) - 12)}

    expected = []
    for row in pool:
        same = [i for i, other in enumerate(references) if other == row]
        firsts = [
            next((i for i, other in enumerate(references) if tuple(row[at : at + 13]) in grams(other)), None)
            for at in range(len(row) - 12)
        ]
        shared = [first for first in firsts if first is not None]
        expected.append((same[0], 0) if same else (shared[0], 1) if shared else (-1, -1))
    assert look([" ".join(row) for row in references], [" ".join(row) for row in pool]) == expected


def test_embeddings_above_a_threshold() -> None:
    angle = np.deg2rad([0, 10, 80, 90, 45])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    references = np.array([[1, 0], [0, 1]], dtype=np.float32)
    found = similar_to(vectors, np.array([4, 3, 2, 1, 0]), references, 0.95)
    assert found.tolist() == [-1, 1, 1, 0, 0]
    repeats = Repeats(np.array([-1, 0, -1, 1, -1]), np.array([-1, 0, -1, 1, -1], dtype=np.int8)).with_similar(found)
    assert repeats.of.tolist() == [-1, 0, 1, 1, 0]
    assert repeats.how.tolist() == [-1, 0, 2, 1, 2]


@pytest.mark.parametrize("text", ["don't stop", "a_b", "1,000 x^2"])
def test_words_are_letters_and_digits(text: str) -> None:
    assert words(text) == re.findall("[a-z0-9]+", text)
