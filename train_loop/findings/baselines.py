"""What simpler models reach on the same rows: a constant answer, and a linear model of TF-IDF features (scikit-learn).

A transformer that hardly beats them costs more than it is worth, which nothing else in a report shows.
"""

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.labels import ProblemType
from train_loop.config import LOWER_IS_BETTER
from train_loop.findings.decisions import decide
from train_loop.findings.predictions import Predictions
from train_loop.metrics.classes import Counts, count_metrics
from train_loop.metrics.intervals import Interval, percentiles
from train_loop.metrics.label_sets import averages
from train_loop.metrics.numbers import number_metrics
from train_loop.rows.split import Split

COMPARED: dict[ProblemType, tuple[str, str]] = {
    "single_label_classification": ("accuracy", "macro_f1"),
    "multi_label_classification": ("macro_f1", "micro_f1"),
    "regression": ("r2", "mae"),
}
# Bounds that keep the linear model within about a minute of one core.
MAX_CHARACTERS = 10_000_000  # of the training rows, and of the rows that are compared
MAX_TARGETS = 1_500_000  # training rows x labels
MAX_FEATURES = 200_000  # words and their pairs, and as many pieces of words
NUM_RESAMPLES = 500
ALL = slice(None)
CONSTANT, LINEAR = "constant answer", "linear model of TF-IDF features"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A simpler model, next to the trained one, on rows of the headline split."""

    name: str
    rows: int  # that were compared
    training_rows: int
    metrics: dict[str, float]
    gains: dict[str, tuple[float, Interval]]
    """Metric -> how much better the trained model is, with its 95 % interval (paired bootstrap over rows)."""

    @property
    def verdict(self) -> str:
        """What fine-tuning is worth compared with it, in one sentence."""
        metric, (gain, (low, high)) = next(iter(self.gains.items()))
        figures = f"{metric.replace('_', ' ')} {gain:+.3f} ({low:+.3f} to {high:+.3f})"
        if low > 0:
            return f"Fine-tuning beats a {self.name}: {figures}."
        if high < 0:
            return f"A {self.name} beats fine-tuning: {figures}. Use that, or train longer or otherwise."
        return f"Fine-tuning is not shown to beat a {self.name}: {figures}."

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json for the baseline."""
        gains = {name: {"gain": gain, "interval": ends} for name, (gain, ends) in self.gains.items()}
        return dataclasses.asdict(self) | {"gains": gains}


def compare(
    main: Predictions, validation: Split | None, train: Split, scope: Literal["label", "global"], seed: int
) -> list[Baseline]:
    """Return the baselines of a model's predictions, fitted on its training rows; the better one last.

    Thresholds of several labels, of the `scope`, are chosen on validation rows if there are any.
    """
    generator, kind, columns = np.random.default_rng(seed), type(main), main.text_columns
    fitted = _sample(train, columns, max(1_000, MAX_TARGETS // len(main.labels)), generator)
    rows = _sample(main.split, columns, len(main.split), generator)
    split = main.split.take(rows)
    mine = kind(split, main.classifier, columns, main.logits[rows])
    texts, known = [_texts(train, fitted, columns), _texts(main.split, rows, columns)], train.labels[fitted]
    decision = dataclasses.replace(main.classifier.decision, thresholds=())  # the model's are of its own scores
    classifier = dataclasses.replace(main.classifier, temperature=1.0, decision=decision)
    chosen_on = None
    if validation is not None and classifier.problem_type == "multi_label_classification":
        drawn = _sample(validation, columns, len(validation), generator)
        chosen_on = validation.labels[drawn]
        texts.append(_texts(validation, drawn, columns))
    theirs = {}
    for name, fit in ((CONSTANT, _constant), (LINEAR, _linear)):
        logits = fit(texts, known, classifier)
        if chosen_on is not None:
            classifier = dataclasses.replace(
                classifier, decision=decide(classifier, logits[1], chosen_on, scope=scope)[0]
            )
        theirs[name] = kind(split, classifier, columns, logits[0])
    gains = _gains(mine, theirs, generator)
    baselines = [
        Baseline(name=name, rows=len(rows), training_rows=len(fitted), metrics=_metrics(found), gains=gains[name])
        for name, found in theirs.items()
    ]
    return sorted(baselines, key=lambda each: each.metrics[COMPARED[classifier.problem_type][0]])


def _sample(split: Split, columns: tuple[str, ...], max_rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return rows drawn at random, in order, of bounded number and length in all."""
    lengths = np.array([sum(map(len, texts)) for texts in split.texts(columns)], np.int64)
    drawn = generator.permutation(len(split))[:max_rows]
    return np.sort(drawn[: max(1, int((lengths[drawn].cumsum() <= MAX_CHARACTERS).sum()))])


def _texts(split: Split, rows: NDArray[np.int64], columns: tuple[str, ...]) -> list[str]:
    return ["\n".join(texts) for texts in split.texts_of(rows, columns)]


def _constant(texts: list[list[str]], known: NDArray[Any], classifier: Classifier) -> list[NDArray[np.float32]]:
    """Return the logits [N, C] of the training rows' shares of labels, or their mean, for each list but the first."""
    if classifier.problem_type == "single_label_classification":
        shares = np.bincount(known, minlength=len(classifier.labels)) / len(known)
    else:
        shares = np.atleast_1d(known.mean(axis=0))
    if classifier.problem_type != "regression":
        shares = np.log(np.maximum(shares, 1e-9)) - np.log(np.maximum(1 - shares, 1e-9))
    return [np.tile(shares, (len(each), 1)).astype(np.float32) for each in texts[1:]]


def _linear(texts: list[list[str]], known: NDArray[Any], classifier: Classifier) -> list[NDArray[np.float32]]:
    """Return logits [N, C] of a linear model, fitted on the first list, for each other list."""
    # Imported here: only needed at the end of a run.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    features = make_union(
        TfidfVectorizer(
            token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float32
        ),
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=MAX_FEATURES, dtype=np.float32
        ),
    )
    try:
        train = features.fit_transform(texts[0])
    except ValueError:  # no words: all texts are empty
        return _constant(texts, known, classifier)
    others = [features.transform(each) for each in texts[1:]]
    if classifier.problem_type == "regression":
        model = Ridge(solver="sparse_cg").fit(train, known)
        return [model.predict(each)[:, None].astype(np.float32) for each in others]
    is_one = classifier.problem_type == "single_label_classification"
    given = known[:, None] == np.arange(len(classifier.labels)) if is_one else known  # [N, C]
    logits = [np.full((each.shape[0], given.shape[1]), -10.0, np.float32) for each in others]
    for label in np.flatnonzero(given.any(axis=0)):
        if given[:, label].all():
            for each in logits:
                each[:, label] = 10.0
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it did not converge: then it is what it is
            model = LinearSVC().fit(train, given[:, label])
        for rows, each in zip(others, logits, strict=True):
            each[:, label] = model.decision_function(rows)
    return logits


def _metrics(found: Predictions, rows: NDArray[np.int64] | slice = ALL) -> dict[str, float]:
    """Return the compared metrics on rows, which may be there several times."""
    kind = found.classifier.problem_type
    predicted, true = found.predicted[rows], found.split.labels[rows]
    if kind == "regression":
        values: dict[str, Any] = number_metrics(predicted, true)
    elif kind == "multi_label_classification":
        values = averages(Counts.of_sets(predicted, true))
    else:
        num_labels = len(found.labels)
        groups = (true[predicted == true], true, predicted)
        values = count_metrics(Counts(*(np.bincount(each, minlength=num_labels) for each in groups)))
    return {name: float(values[name]) for name in COMPARED[kind]}


def _gains(
    mine: Predictions, theirs: dict[str, Predictions], generator: np.random.Generator
) -> dict[str, dict[str, tuple[float, Interval]]]:
    """Return the gains of the trained model over each baseline, all on the same resamples of rows."""

    def gains(rows: NDArray[np.int64] | slice) -> NDArray[np.float64]:  # [baselines, metrics]
        own = _metrics(mine, rows)
        others = [_metrics(found, rows) for found in theirs.values()]
        signs = {name: -1.0 if name in LOWER_IS_BETTER else 1.0 for name in own}
        return np.array([[signs[name] * (own[name] - other[name]) for name in own] for other in others])

    num_rows, names = len(mine.split), COMPARED[mine.classifier.problem_type]
    samples = np.array([gains(generator.integers(0, num_rows, num_rows)) for _ in range(NUM_RESAMPLES)])
    found = gains(ALL)
    return {
        baseline: {
            name: (float(found[row, column]), percentiles(samples[:, row, column])) for column, name in enumerate(names)
        }
        for row, baseline in enumerate(theirs)
    }
