"""PyTorch's answers in float32: the truth that every graph is compared with."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.rows import Rows
from serve.contract.classifier import Classifier
from serve.contract.labels import ProblemType
from serve.contract.long_texts import pool
from serve.contract.text import clean
from serve.encoder import TextInput
from serve.encoding import length_sorted_batches

if TYPE_CHECKING:
    from train_loop.rows.tokens import Encoded

MAX_TOKENS, MAX_ROWS = 4_096, 32  # limits of one forward pass


def attention() -> str | None:
    """Return the attention whose traced operators ONNX Runtime fuses; None is the default of transformers."""
    return "eager" if int(version("transformers").partition(".")[0]) >= 5 else None


class Reference:
    """The run's model and its transformers tokenizer; it shares nothing with the bundle that is to be verified."""

    def __init__(self, model_folder: Path, classifier: Classifier) -> None:
        # Imported here, after the command line was checked.
        from train_loop.model.pretrained import read_tokenizer
        from train_loop.model.weights import load_finished_model

        self._classifier = classifier
        self._model: Any = load_finished_model(model_folder, attention()).float().eval()
        self.tokenizer: Any = read_tokenizer(model_folder)
        self.labels = tuple(self._model.config.id2label[index] for index in range(self._model.config.num_labels))
        self.problem_type: ProblemType = self._model.config.problem_type or "single_label_classification"
        self.vocabulary_size = int(self._model.config.vocab_size)

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        """Return the logits of rows [N, C], pooled over the windows of long texts."""
        encoded = self.encode(rows.inputs)
        names = self.tokenizer.model_input_names
        columns = {"input_ids": encoded.input_ids, "token_type_ids": encoded.token_type_ids}
        found = np.zeros((len(encoded.input_ids), len(self.labels)), np.float32)
        for batch in length_sorted_batches(list(map(len, encoded.input_ids)), MAX_TOKENS, MAX_ROWS):
            picked = {name: [columns[name][window] for window in batch] for name in columns if name in names}
            found[batch] = self.run(self.tokenizer.pad(picked, return_tensors="np"))
        return pool(found, np.array(encoded.num_windows), self._classifier.long_texts.pooling)

    def run(self, arrays: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the logits [B, C] of arrays [B, T]."""
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.asarray(values, np.int64)) for name, values in arrays.items()}
            logits: NDArray[np.float32] = self._model(**tensors).logits.numpy()
        return logits

    def tokenizer_remedy(self) -> str:
        """Return what to do where this transformers does not tokenize as that which trained the model."""
        saved_by = self._model.config.transformers_version
        named = f" ({saved_by})" if saved_by else ""
        return (
            f"Export with the transformers that trained the model{named}, or let this one take tokenizer.json as "
            'it is: in the model\'s tokenizer_config.json, set "tokenizer_class" to "PreTrainedTokenizerFast" and '
            f'"padding_side" to "{self._classifier.padding_side}"'
        )

    def encode(self, inputs: Sequence[TextInput]) -> "Encoded":
        """Return what the model reads of the inputs, as the transformers tokenizer makes it."""
        from train_loop.rows.tokens import encode

        cleaning = self._classifier.cleaning
        parts = [(text,) if isinstance(text, str) else text for text in inputs]
        columns = [[clean(part[place], cleaning) for part in parts] for place in range(len(parts[0]))]
        return encode(self.tokenizer, columns, self._classifier.max_length, self._classifier.long_texts)
