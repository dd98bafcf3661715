"""Every text of an input is explained, with a bounded number of parts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer, live_server, save_served_bundle

from serve.http.explanation import MAX_CHARS, MAX_TOKENS, find_words, group_words


@given(
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=2),
    max_parts=st.integers(2, 128),
)
def test_every_word_is_in_one_part_and_parts_are_few(counts: list[int], max_parts: int) -> None:
    texts = tuple(" ".join(["word"] * count) for count in counts)
    words = find_words(texts)
    parts = group_words(words, max_parts)
    assert len(parts) <= max_parts
    for number, own in enumerate(words):
        mine = [part for part in parts if part.sequence == number]
        assert bool(mine) == bool(own)
        covered = [word for part in mine for word in own if part.start <= word.start and word.stop <= part.stop]
        assert covered == own


def test_a_short_text_next_to_a_long_one_gets_parts_too() -> None:
    parts = group_words(find_words(("w " * 255, "unhappy")), 128)
    assert [part.start for part in parts if part.sequence == 1] == [0]


def test_few_words_are_left_out_one_by_one() -> None:
    words = find_words(("w1 w2", " w3"))
    assert group_words(words, 3) == [word for own in words for word in own]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    bundle = save_served_bundle(tmp_path_factory.mktemp("bundles") / "long", max_length=4_096)
    with live_server(bundle, max_inputs=1) as live:
        yield live


def test_the_limit_of_inputs_is_for_clients(server: LiveServer) -> None:
    answer = server.post("/v1/explain", {"text": "w1 good w2"})
    assert answer.status_code == 200
    assert len(answer.json()["words"]) == 3


@pytest.mark.parametrize(
    "text",
    [" ".join(["w1"] * 4_000), "x" * 49_999 + " good " + "y" * 49_990],
    ids=["many tokens", "many characters"],
)
def test_a_long_text_is_bounded_work(server: LiveServer, text: str) -> None:
    inputs: list[str] = []
    batcher = server.service.engine.batcher
    submit = batcher.submit

    async def counted(given: list[str], **options: object) -> object:
        inputs.extend(given)
        return await submit(given, **options)  # type: ignore[arg-type]

    batcher.submit = counted  # type: ignore[method-assign, assignment]
    try:
        answer = server.post("/v1/explain", {"text": text})
    finally:
        del batcher.submit
    assert answer.status_code == 200
    assert answer.json()["words"][-1]["stop"] == len(text)
    assert sum(map(len, inputs[1:])) <= MAX_CHARS
    assert sum(len(each.split()) + 2 for each in inputs[1:]) <= MAX_TOKENS


@pytest.mark.parametrize(("side", "first_word"), [("right", "w0"), ("left", "w4")])
def test_words_that_truncation_drops_are_not_listed(tmp_path: Path, side: str, first_word: str) -> None:
    with live_server(save_served_bundle(tmp_path / side, truncation_side=side)) as live:
        answer = live.post("/v1/explain", {"text": " ".join(f"w{number}" for number in range(20))}).json()
    assert answer["words"][0]["text"] == first_word
    assert len(answer["words"]) == 16
    assert any(word["drop"] != 0 for word in answer["words"])
