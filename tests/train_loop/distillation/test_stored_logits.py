from pathlib import Path

import numpy as np
import pytest

from train_loop.distillation.stored_logits import StoredLogits

HASHES = np.array([5, -3, 9, 2**62], np.int64)
LOGITS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_logits_are_found_by_the_hash_of_the_text(tmp_path: Path) -> None:
    stored = StoredLogits(tmp_path / "new" / "a.logits", 3)
    assert stored.missing(HASHES).all()
    stored.add(HASHES[:2], LOGITS[:2])
    np.testing.assert_array_equal(stored.missing(HASHES), [False, False, True, True])
    stored.add(HASHES[2:], LOGITS[2:])
    asked = [3, 0, 0, 2]
    places, found = stored.read(HASHES[asked])
    np.testing.assert_array_equal(found[places], LOGITS[asked])
    assert isinstance(found, np.memmap)


def test_a_record_cut_off_by_a_kill_is_not_read_and_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.logits"
    stored = StoredLogits(path, 3)
    stored.add(HASHES[:2], LOGITS[:2])
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(stored.missing(HASHES), [False, True, True, True])
    stored.add(HASHES[1:], LOGITS[1:])
    places, found = stored.read(HASHES)
    np.testing.assert_array_equal(found[places], LOGITS)


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_text_that_was_never_stored_is_an_error(tmp_path: Path, is_empty: bool) -> None:
    stored = StoredLogits(tmp_path / "a.logits", 3)
    if not is_empty:
        stored.add(HASHES[:2], LOGITS[:2])
    with pytest.raises(KeyError, match="lacks"):
        stored.read(HASHES[3:])
