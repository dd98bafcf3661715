import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.contract.labels import scores_from_logits
from train_loop.findings.calibration import fit_temperature
from train_loop.metrics.probabilities import log_loss, reliability


def overconfident(num_rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are calibrated after division by `temperature`, and labels."""
    generator = np.random.default_rng(seed)
    true_logits = generator.normal(0, 2, (num_rows, 4))
    probabilities = scores_from_logits(true_logits)
    labels = (probabilities.cumsum(axis=1) > generator.uniform(size=(num_rows, 1))).argmax(axis=1)
    return true_logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_is_recovered(temperature: float) -> None:
    logits, labels = overconfident(20_000, temperature)
    assert fit_temperature(logits, labels).temperature == pytest.approx(temperature, rel=0.05)


def test_calibration_error_falls_on_other_rows() -> None:
    calibration = fit_temperature(*overconfident(2_000, 3.0))
    logits, labels = overconfident(5_000, 3.0, seed=1)
    before = reliability(scores_from_logits(logits), labels).expected_calibration_error
    after = reliability(scores_from_logits(logits, calibration.temperature), labels).expected_calibration_error
    assert after < before / 4


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), rows=st.integers(30, 300), scale=st.floats(0.01, 100))
def test_log_loss_never_increases_on_the_rows_it_was_fitted_on(seed: int, rows: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(0, scale, (rows, 3)), generator.integers(0, 3, rows)
    temperature = fit_temperature(logits, labels).temperature
    before = log_loss(scores_from_logits(logits), labels)
    assert log_loss(scores_from_logits(logits, temperature), labels) <= before


def test_few_rows_that_show_no_gain_leave_calibrated_scores_as_they_are() -> None:
    new_logits, new_labels = overconfident(5_000, 1.0, seed=1_000)
    own = reliability(scores_from_logits(new_logits), new_labels).expected_calibration_error
    found = [fit_temperature(*overconfident(40, 1.0, seed)) for seed in range(40)]
    left_out = [each for each in found if each.temperature == 1.0]
    assert len(left_out) > 25
    assert all("left out, as no temperature is shown to help on 40" in str(each.warning) for each in left_out)
    scores = (scores_from_logits(new_logits, each.temperature) for each in found)
    errors = [reliability(each, new_labels).expected_calibration_error for each in scores]
    assert np.mean(errors) < own + 0.02
    assert all(fit_temperature(*overconfident(40, 4.0, seed)).temperature > 1.0 for seed in range(10))


@pytest.mark.parametrize(
    ("num_rows", "all_correct", "message"),
    [(10, False, "too few to calibrate"), (100, True, "no mistake"), (100, False, "on only 100 validation rows")],
)
def test_a_doubtful_fit_comes_with_a_warning(num_rows: int, all_correct: bool, message: str) -> None:
    logits, labels = overconfident(num_rows, 2.0)
    calibration = fit_temperature(logits, logits.argmax(axis=1) if all_correct else labels)
    assert message in (calibration.warning or "")
    if num_rows < 30:
        assert calibration.temperature == 1.0


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_without_a_mistake_scores_are_high_but_not_certain(scale: float) -> None:
    logits = scale * np.random.default_rng(0).normal(0, 1, (100, 3))
    labels = logits.argmax(axis=1)
    logits[np.arange(100), labels] += scale  # equally confident everywhere
    scores = scores_from_logits(logits, fit_temperature(logits, labels).temperature)
    assert 0.95 < scores.max(axis=1).mean() < 0.999


def test_many_rows_give_no_warning() -> None:
    assert fit_temperature(*overconfident(500, 2.0)).warning is None


def test_several_labels_are_calibrated_by_one_temperature_and_numbers_not_at_all() -> None:
    random = np.random.default_rng(0)
    true_logits = random.normal(0.0, 2.0, (2_000, 4))
    labels = random.random(true_logits.shape) < 1.0 / (1.0 + np.exp(-true_logits))
    assert fit_temperature(3.0 * true_logits, labels).temperature == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(true_logits[:, :1], true_logits[:, 0]).temperature == 1.0
