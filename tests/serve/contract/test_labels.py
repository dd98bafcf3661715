import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.special import softmax

from serve.contract.labels import match_labels, order_labels, scores_from_logits

numbers = st.integers(-(10**6), 10**6).map(str)
logit_rows = st_numpy.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-60_000, 60_000, width=16),
)


@given(st.lists(st.text() | numbers | st.sampled_from(["-", "--5", "²", "٣", "1.5", " 2", "01", "-0"])), st.randoms())
def test_order_does_not_depend_on_the_order_of_rows(values: list[str], random: object) -> None:
    shuffled = [*values, *values]
    random.shuffle(shuffled)
    ordered = order_labels(shuffled)
    assert ordered == order_labels(values)
    assert set(ordered) == set(values)
    assert len(ordered) == len(set(values))


@given(st.sets(st.integers(-(10**6), 10**6), min_size=1))
def test_whole_numbers_are_ordered_as_numbers(values: set[int]) -> None:
    assert order_labels(map(str, values)) == tuple(map(str, sorted(values)))


def test_one_label_that_is_not_a_number_makes_all_of_them_words() -> None:
    assert order_labels(["2", "10", "-1"]) == ("-1", "2", "10")
    assert order_labels(["2", "10", "n/a"]) == ("10", "2", "n/a")
    assert order_labels(["--5", "3"]) == ("--5", "3")


def test_words_are_ordered_by_code_point() -> None:
    assert order_labels(["été", "b", "B", "a"]) == ("B", "a", "b", "été")


@given(logit_rows, st.floats(0.1, 10))
def test_scores_are_the_softmax_of_logits_over_temperature(logits: np.ndarray, temperature: float) -> None:
    before = logits.copy()
    scores = scores_from_logits(logits, temperature)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, softmax(before.astype(np.float64) / temperature, axis=-1), rtol=1e-12, atol=0)
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(logits, before)


def test_extreme_logits_give_finite_scores() -> None:
    scores = scores_from_logits(np.array([[1e300, -1e300, 0.0], [-1e300, -1e300, -1e300]]))
    np.testing.assert_allclose(scores, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_no_rows_have_no_scores() -> None:
    assert scores_from_logits(np.empty((0, 3), np.float32)).shape == (0, 3)


def test_a_higher_temperature_flattens_the_scores() -> None:
    logits = np.array([[2.0, 0.0]])
    assert scores_from_logits(logits, 4.0)[0, 0] < scores_from_logits(logits)[0, 0]
    assert scores_from_logits(logits, 4.0)[0, 0] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-15)


@pytest.mark.parametrize(
    ("found", "labels", "numbers"),
    [
        (["good", "bad"], ("bad", "good"), {"good": 1, "bad": 0}),
        (["GOOD", "Bad"], ("bad", "good"), {"GOOD": 1, "Bad": 0}),  # in another case
        (["a"], ("A", "a"), {"a": 1}),
        (["B"], ("A", "a"), {}),
        (["b", "A"], ("A", "a", "B"), {"A": 0}),  # in another case, a and A would be one
        (["0", "2"], ("bad", "fine", "good"), {"0": 0, "2": 2}),  # by number
        (["1.0", "0"], ("bad", "good"), {"1.0": 1, "0": 0}),
        (["1", "2"], ("bad", "good"), {}),  # counted from 1
        (["1", "0"], ("1", "0"), {"1": 0, "0": 1}),  # numbers that are names
        (["True", "false"], ("false", "true"), {"True": 1, "false": 0}),
        (["good", "1"], ("bad", "good"), {"good": 1}),  # never both
    ],
)
def test_labels_of_rows_are_a_models_by_name_in_any_case_or_by_number(
    found: list[str], labels: tuple[str, ...], numbers: dict[str, int]
) -> None:
    assert match_labels(found, labels) == numbers
