from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from export.int8.static import Repair
from serve.contract.classifier import Classifier


def test_each_attempt_at_int8_keeps_more_layers_in_float32() -> None:
    layers = [SimpleNamespace(name=f"layer{number}") for number in range(20)]
    runs = []

    class Measured(Repair):
        def _measure(self, keep: Sequence[str]) -> tuple[float, float]:
            runs.append(tuple(keep))
            return 1.0 - 0.01 * (20 - len(keep)), 0.01  # each layer in float32 brings one percent

    classifier = Classifier(name="tiny", labels=("bad", "good"), text_column="text", max_length=8)

    def attempts(min_agreement: float) -> list[int]:
        repair = Measured(None, layers, {}, np.zeros((1, 2)), None, classifier)  # type: ignore[arg-type]
        return [len(found.kept) for found in repair.attempts(min_agreement)]

    assert attempts(0.8) == [0, 3, 6, 10]
    assert attempts(0.82) == [2, 3, 6, 10]
    assert attempts(1.0) == [3, 6, 10]
    assert runs.count(("layer0", "layer1", "layer2")) == 3  # no graph is measured twice
