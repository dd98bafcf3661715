"""Held-out splits that the source lacks, cut from its training rows."""

import math

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.rows.sources import SPLITS
from train_loop.rows.split import Labels, Split

MAX_RANGES = 10  # ranges of numbers, with as many rows each, that held-out rows are cut from alike


def origin_of(config: TrainConfig, split: str) -> str:
    """Return where the rows of a split come from, for display."""
    if config.train_file is not None:
        return str(getattr(config, f"{split}_file"))
    return f"{config.dataset_name} ({split})"


def complete_splits(splits: dict[str, Split], labels: tuple[str, ...], config: TrainConfig) -> dict[str, Split]:
    """Cut the splits that the source lacks from the training rows, and draw those to train on."""
    given = splits
    splits = dict(splits)
    total = len(splits["train"])
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name in splits or (name == "test" and fraction == 0):
            continue
        train = splits["train"]
        try:
            cut_off = _stratified_cut if train.labels.dtype.kind == "i" else _balanced_cut
            kept, cut = cut_off(train, round(fraction * total), labels, name, config.seed)
        except InputError as error:
            raise InputError(f"{error}; {_way_out(given, config)}") from None
        origin = f"{fraction:.0%} of {origin_of(config, 'train')}, stratified, seed {config.seed}"
        splits[name] = train.take(cut, name=name, origin=origin)
        splits["train"] = train.take(kept)
    if config.max_train_rows is not None:
        train = splits["train"]
        chosen = stratified_sample(strata(train.labels), config.max_train_rows, config.seed)
        splits["train"] = train.take(chosen, origin=f"{len(chosen):,} rows of {train.origin}")
    return {name: splits[name] for name in SPLITS if name in splits}


def _stratified_cut(
    train: Split, num_cut: int, labels: tuple[str, ...], name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted indices kept in training and those cut off.

    Rows with the same text stay together, and count as one with the first one's label, unless that leaves a
    class with too few to cut.
    """
    from sklearn.model_selection import train_test_split

    _, first, text_of_row = np.unique(train.text_hashes, return_index=True, return_inverse=True)
    units = np.sort(first)  # the first row of each text
    num_units_cut = round(num_cut * len(units) / len(train))
    needed = (np.bincount(train.labels, minlength=len(labels)) > 0) * 2
    if (np.bincount(train.labels[units], minlength=len(labels)) < needed).any() or num_units_cut < len(labels):
        units = first = text_of_row = np.arange(len(train))  # row by row
    else:
        num_cut = num_units_cut
    codes = train.labels[units]
    counts = np.bincount(codes, minlength=len(labels))
    num_classes = int((counts > 0).sum())
    if len(codes) < num_classes:
        raise InputError(f"{len(codes)} training rows for {num_classes} classes: fewer rows than classes")
    single = [labels[code] for code in np.flatnonzero(counts == 1)]
    if single:
        hint = "; to predict the number, pass --problem_type regression" if all(map(str.isdigit, labels)) else ""
        raise InputError(
            f"class{'es' if len(single) > 1 else ''} {', '.join(map(repr, single[:10]))}: 1 row, which cannot be in "
            f"both the training rows and a stratified {name} split{hint}"
        )
    if num_cut < num_classes:
        raise InputError(
            f"{num_cut} of {len(codes)} rows are too few for a stratified {name} split of {num_classes} classes"
        )
    if len(codes) - num_cut < num_classes:
        raise InputError(
            f"a {name} split of {num_cut} of {len(codes)} rows leaves too few to train {num_classes} classes"
        )
    _, cut = train_test_split(units, test_size=num_cut, stratify=codes, random_state=seed)
    is_cut = np.isin(first[text_of_row], cut)
    return np.flatnonzero(~is_cut), np.flatnonzero(is_cut)


def _balanced_cut(
    train: Split, num_cut: int, labels: tuple[str, ...], name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same for several labels a row, or for numbers, whose ranges are spread alike."""
    _, first, text_of_row = np.unique(train.text_hashes, return_index=True, return_inverse=True)
    targets = train.labels[first]
    num_texts_cut = round(num_cut * len(first) / len(train))
    if not 0 < num_texts_cut < len(first):
        raise InputError(f"{len(first)} distinct texts are too few to cut {num_cut} rows off for a {name} split")
    if targets.ndim == 1:
        edges = np.quantile(targets, np.linspace(0.0, 1.0, MAX_RANGES + 1)[1:-1])
        targets = np.searchsorted(edges, targets)[:, None] == np.arange(MAX_RANGES)
    is_cut = spread_alike(targets, num_texts_cut, np.random.default_rng(seed))[text_of_row]
    return np.flatnonzero(~is_cut), np.flatnonzero(is_cut)


def spread_alike(matrix: NDArray[np.bool_], num_cut: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which rows [N] of a matrix [N, C] to cut off, so that each label has its share on both sides.

    The rarest label's rows are dealt first (Sechidis et al. 2011). A label of two rows or more is on both sides.
    """
    total = matrix.sum(axis=0)
    left, num_of_label_cut = total.copy(), np.zeros_like(total)
    is_free, is_cut = np.ones(len(matrix), np.bool_), np.zeros(len(matrix), np.bool_)
    while left.any():
        label = int(np.where(left > 0, left, len(matrix) + 1).argmin())
        rows = random.permutation(np.flatnonzero(is_free & matrix[:, label]))
        done, kept = num_of_label_cut[label], total[label] - left[label] - num_of_label_cut[label]
        count = max(round(total[label] * num_cut / len(matrix)) - done, int(done == 0))
        cut = rows[: max(0, min(count, len(rows) - int(kept == 0)))]
        is_free[rows], is_cut[cut] = False, True
        left -= matrix[rows].sum(axis=0)
        num_of_label_cut += matrix[cut].sum(axis=0)
    unlabelled = random.permutation(np.flatnonzero(is_free))
    is_cut[unlabelled[: max(0, num_cut - int(is_cut.sum()))]] = True
    return is_cut


def strata(labels: Labels) -> NDArray[np.int64]:
    """Return what a sample keeps the shares of, for each row [N]."""
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        rarest = np.where(labels, counts, len(labels) + 1).argmin(axis=1)
        labels = np.where(labels.any(axis=1), rarest, labels.shape[1])
    elif labels.dtype.kind == "f":
        labels = np.searchsorted(np.quantile(labels, np.linspace(0.1, 0.9, 9)), labels)
    return labels


def stratified_sample(labels: NDArray[np.int64], num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of `num_rows` of the labels [N], or of all; each keeps its share to within one row.

    Rows are shuffled within their label, then taken from the label whose share is furthest behind.
    """
    if len(labels) <= num_rows:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    codes = labels[order]
    by_label = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    place_in_label = np.empty(len(labels), np.int64)
    place_in_label[by_label] = np.concatenate([np.arange(count) for count in counts])
    progress = (place_in_label + 0.5) / counts[codes]  # 0 to 1 through the label
    chosen: NDArray[np.int64] = np.sort(order[np.argsort(progress, kind="stable")[:num_rows]])
    return chosen


def _way_out(given: dict[str, Split], config: TrainConfig) -> str:
    """Return how to get the splits that could not be cut: by fractions where there are any that work, else by files."""
    train = given["train"]
    has_classes = train.labels.dtype.kind == "i"  # else whole texts are cut off
    counts = np.bincount(train.labels) if has_classes else np.array([len(np.unique(train.text_hashes))])
    counts, more_rows = counts[counts > 0], "add rows, merge or drop the class" if has_classes else "add rows"
    missing = [
        name for name in ("test", "validation") if name not in given and (name != "test" or config.test_fraction)
    ]
    for names in (missing, [name for name in missing if name != "test"]):
        # Every class needs a row in each split; rounding to more digits would change no number of rows.
        digits = len(str(counts.sum())) + 1
        fraction = math.ceil(len(counts) / counts.sum() * 10**digits) / 10**digits
        if names and counts.min() > len(names) and counts.sum() >= (len(names) + 1) * len(counts):
            flags = [f"--{name}_fraction {fraction if name in names else 0}" for name in missing]
            return f"pass {' '.join(flags)}, or more rows"
    if config.train_file is None:
        return f"{more_rows}, or train on files, with {' and '.join(missing)} rows of your own"
    files = " and ".join(f"--{name}_file" for name in missing)
    return f"{more_rows}, or pass rows of your own: {files}"
