"""The contenders that classify: PyTorch in several ways, transformers' and Optimum's pipelines, and ours."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.session import ContenderWorker, Message, NotAvailable
from serve.contract.errors import first_line

Arrays = dict[str, NDArray[np.int64]]
Text = str | tuple[str, str]


class ClassifierWorker(ContenderWorker):
    """Classifies rows of the workload; a subclass says how.

    Args:
        rows_file: JSON with `texts` and `pairs`, in the order of the workload.
        max_length: longest input [tokens].
    """

    def __init__(self, rows_file: str, max_length: int) -> None:
        content = json.loads(Path(rows_file).read_text(encoding="utf-8"))
        texts, pairs = content["texts"], content["pairs"]
        self.rows: list[Text] = list(zip(texts, pairs, strict=True)) if pairs else texts
        self.max_length = max_length
        self.num_threads = int(os.environ["OMP_NUM_THREADS"])

    def load(self) -> None:
        """Load model and tokenizer."""
        raise NotImplementedError

    def classify(self, rows: Sequence[Text]) -> list[int]:
        """Return the class numbers of texts: end to end, tokenization included."""
        raise NotImplementedError

    def encode(self, rows: Sequence[Text]) -> Arrays:
        """Return the padded arrays [B, T] of texts, not timed."""
        raise NotImplementedError

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits [B, C] of arrays: the model alone."""
        raise NotImplementedError

    def start(self) -> Message:
        """Load, and answer a first text."""
        self.load()
        self.classify(self.rows[:1])
        return {"loaded_memory_mib": self.memory()["memory_mib"]}

    def repeat(self, *, batch_size: int, first: int, num_rows: int, min_seconds: float, model_only: bool) -> Message:
        """Classify some rows in batches, in order of arrival, again and again until `min_seconds` have passed.

        Every batch is a whole one: the last takes the rows that follow, and after the last row the first. Returns the
        labels of the rows asked for too, but for `model_only`.
        """
        starts = range(first, first + num_rows, batch_size)
        batches = [[self.rows[(start + row) % len(self.rows)] for row in range(batch_size)] for start in starts]
        amount = len(batches) * batch_size
        if model_only:
            return self._timed(self.run, [self.encode(batch) for batch in batches], amount, min_seconds)
        labels: list[int] = []

        def classify(batch: Sequence[Text]) -> None:
            labels.extend(self.classify(batch))

        answer = self._timed(classify, batches, amount, min_seconds)
        return answer | {"labels": labels[:num_rows]}

    def logits(self, *, batch_size: int) -> Message:
        """Return the logits [N, C] of all rows, in batches in order of arrival."""
        starts = range(0, len(self.rows), batch_size)
        found = [self.run(self.encode(self.rows[start : start + batch_size])) for start in starts]
        return {"logits": np.concatenate(found).astype(float).tolist()}

    def repeat_length(self, *, batch_size: int, length: int, min_seconds: float) -> Message:
        """Run the model alone on made-up tokens [batch_size, length] until `min_seconds` have passed."""
        template = self.encode(self.rows[:8])
        ids = np.random.default_rng(length).choice(template["input_ids"].ravel(), (batch_size, length))
        arrays = {name: np.zeros_like(ids) for name in template} | {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
        }
        return self._timed(self.run, [arrays], batch_size, min_seconds)

    def _timed(
        self, work: Callable[[Any], object], batches: Sequence[Any], num_rows: int, min_seconds: float
    ) -> Message:
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
    """The model as `from_pretrained` gives it, under inference mode.

    Args:
        model: folder of the model.
        precision: fp32, bf16 or fp16 weights and arithmetic.
        compiled: through `torch.compile(dynamic=True)`.
    """

    def __init__(self, model: str, precision: str, compiled: bool = False, **rows: Any) -> None:
        super().__init__(**rows)
        self._folder = model
        self._precision = precision
        self._compiled = compiled

    def load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        torch.set_num_threads(self.num_threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self._precision]
        model = AutoModelForSequenceClassification.from_pretrained(self._folder, dtype=dtype)
        self._model = model.to(self._device).eval()
        if self._compiled:
            self._model.compile(dynamic=True)
            try:
                for num_rows in (1, 2, 8):  # one row is compiled apart from several
                    self.classify(self.rows[:num_rows])
            except Exception as error:
                raise NotAvailable(f"torch.compile does not work here: {first_line(error)}") from error

    def classify(self, rows: Sequence[Text]) -> list[int]:
        labels: list[int] = self._logits(self._tokens(rows)).argmax(-1).tolist()
        return labels

    def encode(self, rows: Sequence[Text]) -> Arrays:
        return {name: tensor.numpy() for name, tensor in self._tokens(rows).items()}

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        tokens = {name: self._torch.from_numpy(array) for name, array in arrays.items()}
        logits: NDArray[np.float32] = self._logits(tokens).float().cpu().numpy()
        return logits

    def _tokens(self, rows: Sequence[Text]) -> Any:
        return self._tokenizer(
            list(rows), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )

    def _logits(self, tokens: Any) -> Any:
        with self._torch.inference_mode():
            return self._model(**{name: tensor.to(self._device) for name, tensor in tokens.items()}).logits


class TransformersPipeline(ClassifierWorker):
    """transformers' `pipeline("text-classification")` around a PyTorch model.

    Args:
        model: folder of the model, or of Optimum's export.
    """

    def __init__(self, model: str, **rows: Any) -> None:
        super().__init__(**rows)
        self._folder = model

    def load(self) -> None:
        import torch
        from transformers import AutoTokenizer, pipeline

        torch.set_num_threads(self.num_threads)
        self._model = self.load_model()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        device = 0 if torch.cuda.is_available() else -1
        self._pipeline = pipeline("text-classification", model=self._model, tokenizer=self._tokenizer, device=device)
        self._numbers = self._model.config.label2id

    def load_model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(self._folder)

    def classify(self, rows: Sequence[Text]) -> list[int]:
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
        return ORTModelForSequenceClassification.from_pretrained(self._folder, session_options=options)

    def encode(self, rows: Sequence[Text]) -> Arrays:
        tokens = self._tokenizer(
            list(rows), truncation=True, max_length=self.max_length, padding=True, return_tensors="np"
        )
        return {name: array.astype(np.int64) for name, array in tokens.items()}

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._model(**arrays).logits
        return logits


class RawloopPredictor(ClassifierWorker):
    """Our predictor, as a service embeds it.

    Args:
        bundle: folder of the bundle.
        variant: its graph.
    """

    def __init__(self, bundle: str, variant: str, **rows: Any) -> None:
        super().__init__(**rows)
        self._bundle = bundle
        self._variant = variant

    def load(self) -> None:
        from serve.predictor import Predictor

        self._predictor = Predictor(self._bundle, variant=self._variant, num_threads=self.num_threads)  # type: ignore[arg-type]
        self._numbers = {label: number for number, label in enumerate(self._predictor.labels)}

    def classify(self, rows: Sequence[Text]) -> list[int]:
        predictions = self._predictor(list(rows))  # type: ignore[arg-type]
        return [self._numbers[prediction.label] for prediction in predictions]

    def encode(self, rows: Sequence[Text]) -> Arrays:
        encoder = self._predictor.pipeline.encoder
        return encoder.pad(encoder.encode(list(rows)))

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        return self._predictor.pipeline.sessions.wide.run(arrays)


class OnnxGraph(ClassifierWorker):
    """A graph on one ONNX Runtime session over all threads, with a bundle's tokenizer; for the model alone.

    Args:
        graph: the ONNX file.
        bundle: folder of the bundle.
    """

    def __init__(self, graph: str, bundle: str, **rows: Any) -> None:
        super().__init__(**rows)
        self._graph = Path(graph)
        self._bundle = Path(bundle)

    def load(self) -> None:
        from serve.contract.bundle import read_bundle
        from serve.encoder import Encoder
        from serve.session import Session

        self._encoder = Encoder.from_bundle(read_bundle(self._bundle, verify=False))
        self._session = Session(self._graph, num_threads=self.num_threads, spinning=True)

    def classify(self, rows: Sequence[Text]) -> list[int]:
        labels: list[int] = self.run(self.encode(rows)).argmax(axis=1).tolist()
        return labels

    def encode(self, rows: Sequence[Text]) -> Arrays:
        return self._encoder.pad(self._encoder.encode(list(rows)))

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        return self._session.run(arrays)
