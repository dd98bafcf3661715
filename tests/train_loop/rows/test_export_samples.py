import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from held_out import split_of
from hypothesis import given, settings
from hypothesis import strategies as st

from train_loop.config import TrainConfig
from train_loop.rows.cuts import stratified_sample
from train_loop.rows.data import Data
from train_loop.rows.export_samples import write_samples
from train_loop.rows.split import Split


def skewed(num_rows: int, name: str = "train") -> Split:
    return split_of([f"text {number}" for number in range(num_rows)], [int(n % 10 == 0) for n in range(num_rows)], name)


def test_samples_hold_texts_and_label_names_and_are_reproducible(tmp_path: Path) -> None:
    data = Data(
        splits={"train": skewed(3_000), "validation": skewed(40, "validation")},
        labels=("common", "rare"),
        max_length=16,
        fingerprint="",
    )
    digests = []
    for _ in range(2):
        write_samples(tmp_path, data, TrainConfig(train_file="a.csv"))
        digests.append([hashlib.sha256((tmp_path / f"{n}.parquet").read_bytes()).hexdigest() for n in data.splits])
    assert digests[0] == digests[1]
    train = pq.read_table(tmp_path / "train.parquet").to_pydict()
    assert train.keys() == {"text", "label"}
    assert len(train["text"]) == len(set(train["text"])) == 512
    assert 45 <= train["label"].count("rare") <= 58
    assert pq.read_table(tmp_path / "validation.parquet").num_rows == 40


@settings(max_examples=50)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200), num_rows=st.integers(1, 50), seed=st.integers(0, 9)
)
def test_every_label_keeps_its_share_to_within_one_row(labels: list[int], num_rows: int, seed: int) -> None:
    codes = np.array(labels)
    chosen = stratified_sample(codes, num_rows, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(num_rows, len(labels))
    share = len(chosen) / len(labels)
    for label, count in zip(*np.unique(codes, return_counts=True), strict=True):
        assert abs((codes[chosen] == label).sum() - share * count) <= 1.0
