"""The contenders that classify: PyTorch in several ways, transformers' and Optimum's pipelines, and ours."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.worker import ContenderWorker, Message
from serve.encoder import Encoder, TextInput
from serve.encoding import windows_of

Arrays = dict[str, NDArray[np.int64]]


class ClassifierWorker(ContenderWorker):
    """Classifies rows of the workload; a subclass says how, by its `settings`.

    Args:
        rows_file: JSON list of texts or pairs, in the order of the workload.
        max_length: longest input [tokens].
    """

    tokenizer: Any  # of transformers, unless a subclass encodes in another way

    def __init__(self, rows_file: str, max_length: int, **settings: Any) -> None:
        rows = json.loads(Path(rows_file).read_text(encoding="utf-8"))
        self.rows: list[TextInput] = [row if isinstance(row, str) else tuple(row) for row in rows]
        self.max_length = max_length
        self.settings = settings
        self.num_threads = int(os.environ["OMP_NUM_THREADS"])

    def load(self) -> None:
        raise NotImplementedError

    def classify(self, rows: Sequence[TextInput]) -> list[int]:
        """Return the class numbers of texts: end to end, tokenization included."""
        return list(self.run(self.encode(rows)).argmax(axis=1).tolist())

    def encode(self, rows: Sequence[TextInput]) -> Arrays:
        """Return the arrays [B, T] of texts, padded to the longest."""
        how = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "np"}
        return {name: array.astype(np.int64) for name, array in self.tokenizer(list(rows), **how).items()}

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits [B, C] of arrays: only the model."""
        raise NotImplementedError

    def start(self) -> Message:
        """Load, and answer a first text."""
        self.load()
        self.classify(self.rows[:1])
        return {"loaded_memory_mib": self.memory()["memory_mib"]}

    def repeat(self, *, batch_size: int, first: int, num_rows: int, min_seconds: float, model_only: bool) -> Message:
        """Classify some rows in batches, in order of arrival, again and again until `min_seconds` have passed.

        After the last row comes the first.
        """
        batches = [
            [self.rows[row % len(self.rows)] for row in range(start, start + batch_size)]
            for start in range(first, first + num_rows, batch_size)
        ]
        if model_only:
            return _timed(self.run, [self.encode(batch) for batch in batches], num_rows, min_seconds)
        return _timed(self.classify, batches, num_rows, min_seconds)

    def repeat_length(self, *, batch_size: int, length: int, min_seconds: float) -> Message:
        """Run only the model on made-up tokens [batch_size, length] until `min_seconds` have passed."""
        template = self.encode(self.rows[:8])
        ids = np.random.default_rng(length).choice(template["input_ids"].ravel(), (batch_size, length))
        arrays = {name: np.zeros_like(ids) for name in template}
        arrays |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return _timed(self.run, [arrays], batch_size, min_seconds)

    def labels(self, *, batch_size: int) -> Message:
        """Return the class numbers [N] of all rows, in batches in order of arrival."""
        return {"labels": [label for batch in self._batches(batch_size) for label in self.classify(batch)]}

    def logits(self, *, batch_size: int) -> Message:
        """Return the logits [N, C] of all rows, in batches in order of arrival."""
        found = [self.run(self.encode(batch)) for batch in self._batches(batch_size)]
        return {"logits": np.concatenate(found).astype(float).tolist()}

    def tokens_read(self) -> Message:
        """Return the mean number of tokens that the model reads of a row."""
        return {
            "tokens_a_row": sum(int(self.encode([row])["attention_mask"].sum()) for row in self.rows) / len(self.rows)
        }

    def _batches(self, size: int) -> list[list[TextInput]]:
        return [self.rows[start : start + size] for start in range(0, len(self.rows), size)]


def _timed(work: Callable[[Any], object], batches: Sequence[Any], num_rows: int, min_seconds: float) -> Message:
    latencies_ms: list[float] = []
    passes = 0
    began = last = time.perf_counter()
    while passes == 0 or last - began < min_seconds:
        for batch in batches:
            work(batch)
            now = time.perf_counter()
            latencies_ms.append(1e3 * (now - last))
            last = now
        passes += 1
    return {"amount": passes * num_rows, "seconds": last - began, "latencies_ms": latencies_ms}


class PyTorchEager(ClassifierWorker):
    """The model of `from_pretrained`, under inference mode, perhaps `compiled` by `torch.compile(dynamic=True)`.

    Settings: `model`, its folder; `precision` (fp32, bf16 or fp16) of weights and arithmetic; `compiled`.
    """

    def load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        torch.set_num_threads(self.num_threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(self.settings["model"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.settings["precision"]]
        model = AutoModelForSequenceClassification.from_pretrained(self.settings["model"], dtype=dtype)
        self._model = model.to(self._device).eval()
        if self.settings.get("compiled"):
            self._model.compile(dynamic=True)
            for num_rows in (1, 2, 8):  # one row is compiled separately from several
                self.classify(self.rows[:num_rows])

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            tokens = {name: self._torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
            return np.asarray(self._model(**tokens).logits.float().cpu())


class TransformersPipeline(ClassifierWorker):
    """transformers' `pipeline("text-classification")` around a PyTorch model; its folder is the setting `model`."""

    def load(self) -> None:
        import torch
        from transformers import AutoTokenizer, pipeline

        torch.set_num_threads(self.num_threads)
        self._model = self.load_model()
        self._numbers = self._model.config.label2id
        self.tokenizer = AutoTokenizer.from_pretrained(self.settings["model"])
        device = 0 if torch.cuda.is_available() else -1
        self._pipeline = pipeline("text-classification", model=self._model, tokenizer=self.tokenizer, device=device)

    def load_model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(self.settings["model"])

    def classify(self, rows: Sequence[TextInput]) -> list[int]:
        inputs = [row if isinstance(row, str) else {"text": row[0], "text_pair": row[1]} for row in rows]
        answers = self._pipeline(inputs, batch_size=len(inputs), truncation=True, max_length=self.max_length)
        return [self._numbers[answer["label"]] for answer in answers]


class OptimumPipeline(TransformersPipeline):
    """transformers' pipeline around Optimum's ONNX Runtime model, as its documentation shows it."""

    def load_model(self) -> Any:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForSequenceClassification

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        return ORTModelForSequenceClassification.from_pretrained(self.settings["model"], session_options=options)

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        return np.asarray(self._model(**arrays).logits)


class OnnxGraph(ClassifierWorker):
    """A graph on one ONNX Runtime session over all threads; settings: `graph`, and the `bundle` of its tokenizer."""

    def load(self) -> None:
        from serve.contract.bundle import read_bundle

        self._encoder = Encoder.from_bundle(read_bundle(Path(self.settings["bundle"]), verify=False))
        self._session = self.load_session()

    def load_session(self) -> Any:
        from serve.session import Session

        return Session(Path(self.settings["graph"]), num_threads=self.num_threads, spinning=True)

    def encode(self, rows: Sequence[TextInput]) -> Arrays:
        truncated_as_by_others = self._encoder.classifier.truncation_side
        return self._encoder.pad(self._encoder.encode(list(rows), truncated_as_by_others))

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        return np.asarray(self._session.run(arrays))


class RawloopPredictor(OnnxGraph):
    """Our predictor, as a service embeds it; settings: `bundle`, `variant`, and perhaps `cuda_graphs`."""

    def load(self) -> None:
        from serve.predictor import Predictor

        self._truncation = self.settings.pop("truncation", None)
        self._predictor = Predictor(num_threads=self.num_threads, **self.settings)
        self._encoder = self._predictor.pipeline.encoder
        self._session = self._predictor.pipeline.sessions.wide
        self._numbers = {label: number for number, label in enumerate(self._predictor.labels)}

    def classify(self, rows: Sequence[TextInput]) -> list[int]:
        predictions = self._predictor(list(rows), truncation=self._truncation)  # type: ignore[arg-type]
        return [self._numbers[prediction.label] for prediction in predictions]

    def tokens_read(self) -> Message:
        windows = windows_of(self._encoder.encode(self.rows, self._truncation))
        return {"tokens_a_row": sum(window.num_tokens for window in windows) / len(self.rows)}
