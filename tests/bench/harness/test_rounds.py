import pytest

from bench.harness.arena import Answer, Limits, take_turns
from bench.harness.processes import ContenderFailed


@pytest.mark.parametrize(("names", "order"), [("AB", "BAABBAABBA"), ("ABC", "CBAABCCBAABCCBA")])
def test_contenders_run_forwards_and_backwards(names: str, order: str) -> None:
    calls: list[str] = []

    def repeat(name: str, _: int) -> Answer:
        calls.append(name)
        return {"seconds": 1.0}

    take_turns(list(names), repeat, Limits(4, 0.0), pytest.fail)
    assert "".join(calls) == order


def test_every_round_holds_every_contender_until_the_slowest_measured_has_enough() -> None:
    calls: list[tuple[str, int]] = []

    def repeat(name: str, number: int) -> Answer:
        calls.append((name, number))
        return {"seconds": {"slow": 4.0, "fast": 2.0}[name]}

    limits = Limits(3, 10.0)
    answers = take_turns(["slow", "fast"], repeat, limits, pytest.fail)
    assert calls[:6] == [("fast", -1), ("slow", -1), ("slow", 0), ("fast", 0), ("fast", 1), ("slow", 1)]
    assert {name: len(taken) for name, taken in answers.items()} == {"slow": 5, "fast": 5}  # 5 x 2 s is 10 s


def test_a_contender_that_fails_is_reported_and_the_others_continue() -> None:
    def repeat(name: str, number: int) -> Answer:
        if name == "broken" and number == 2:
            raise ContenderFailed("out of memory")
        return {"seconds": 1.0}

    failures: list[tuple[str, str]] = []
    answers = take_turns(
        ["broken", "good"],
        repeat,
        Limits(5, 0.0),
        lambda name, failure: failures.append((name, str(failure))),
    )
    assert failures == [("broken", "out of memory")]
    assert {name: len(taken) for name, taken in answers.items()} == {"broken": 2, "good": 5}
