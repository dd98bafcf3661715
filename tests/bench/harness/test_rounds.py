import pytest

from bench.harness.arena import Limits, take_turns
from bench.harness.processes import ContenderFailed


@pytest.mark.parametrize(("names", "order"), [("AB", "BAABBAABBA"), ("ABC", "CBAABCCBAABCCBA")])
def test_contenders_run_forwards_and_backwards(names: str, order: str) -> None:
    calls: list[str] = []

    def repeat(name: str, _: int) -> tuple[float, float]:
        calls.append(name)
        return 1.0, 1.0

    take_turns(list(names), repeat, Limits(4, 0.0), pytest.fail)
    assert "".join(calls) == order


def test_every_round_holds_every_contender_until_the_slowest_measured_has_enough() -> None:
    calls: list[tuple[str, int]] = []

    def repeat(name: str, number: int) -> tuple[float, float]:
        calls.append((name, number))
        return 10.0, {"slow": 4.0, "fast": 2.0}[name]

    limits = Limits(3, 10.0)
    samples = take_turns(["slow", "fast"], repeat, limits, pytest.fail)
    assert calls[:6] == [("fast", -1), ("slow", -1), ("slow", 0), ("fast", 0), ("fast", 1), ("slow", 1)]
    assert {name: len(taken) for name, taken in samples.items()} == {"slow": 5, "fast": 5}  # 5 x 2 s is 10 s
    assert [sample.round for sample in samples["fast"]] == [0, 1, 2, 3, 4]


def test_a_contender_that_fails_is_reported_and_the_others_continue() -> None:
    def repeat(name: str, number: int) -> tuple[float, float]:
        if name == "broken" and number == 2:
            raise ContenderFailed("out of memory")
        return 1.0, 1.0

    failures: list[tuple[str, str]] = []
    samples = take_turns(
        ["broken", "good"],
        repeat,
        Limits(5, 0.0),
        lambda name, failure: failures.append((name, str(failure))),
    )
    assert failures == [("broken", "out of memory")]
    assert {name: len(taken) for name, taken in samples.items()} == {"broken": 2, "good": 5}
