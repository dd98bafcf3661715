"""`Predictor`: a bundle in, typed predictions out, to embed in a service.

with Predictor("runs/latest/onnx") as predictor:
    prediction = predictor("I loved it")
    print(prediction.label, prediction.score)
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from serve.canary import require_canary
from serve.contract.bundle import DeviceName, VariantName, read_bundle
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.encoder import Encoder, ItemError, TextInput, Truncation, num_characters
from serve.gpu.tensorrt import tensorrt_for
from serve.pipeline import CHUNK_ROWS, Answers, Pipeline, cut_into_chunks
from serve.providers import GpuOptions
from serve.session import SessionPool, resolve_device
from serve.variants import choose_variant


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a long text, as wide as the model."""

    sequence: int
    """0 for a text, or 1 for the second of a pair."""
    start: int
    """Its first character in that text, cleaned."""
    stop: int
    """The character after its last."""
    scores: dict[str, float]
    """Label -> score, if it were all of the text."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer to one text or pair."""

    label: str
    """The label with the highest score, given or not; for numbers, what they are."""
    score: float
    """Its probability, calibrated by the bundle's temperature; for numbers, the number."""
    scores: dict[str, float]
    """Label -> score, in the classifier's order."""
    logits: tuple[float, ...]
    """[C], in that order, as the model returned them: before temperature and softmax, numbers before clipping."""
    truncated: bool
    """Whether the model saw only part of the input."""
    num_tokens: int
    """Tokens that it saw, special tokens included, in all windows."""
    classifier: Classifier = field(repr=False)
    """It decides which labels are given."""
    windows: tuple[Window, ...] = ()
    """The parts of a long text that were read on their own; empty for a text that was read at once."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are given, best first: one, or none if it abstained; or those that reach their thresholds."""
        return self.classifier.given_labels(tuple(self.scores.values()))

    @property
    def value(self) -> float | None:
        """The number, in the unit of the training rows; None where the answers are labels."""
        return self.score if self.classifier.problem_type == "regression" else None

    @property
    def abstained(self) -> bool:
        """Whether the score is too low to answer, by the classifier's `--abstain`; `label` is then only a guess."""
        return self.classifier.abstains(self.score)

    def label_set(self, coverage: float = 0.9) -> tuple[str, ...]:
        """Return the labels that hold the true one in at least this share of rows, on average; best first.

        The rows must be like the validation rows. May be empty: no label scores as high as the true ones of those rows.

        Raises:
            InputError: `classifier.json` has no such coverage; it has 0.8, 0.85, 0.9, 0.95, 0.975 and 0.99. Or inputs
                do not have one label each.
        """
        return self.classifier.label_set(self.scores, coverage)

    def interval(self, coverage: float = 0.9) -> tuple[float, float]:
        """Return the ends between which the true number lies in at least this share of rows, on average.

        Raises:
            InputError: as in `label_set`, or the answers are not numbers.
        """
        return self.classifier.interval(self.score, coverage)

    def top_k(self, k: int) -> list[tuple[str, float]]:
        """Return the `k` labels of the highest scores with these, best first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])[:k]


class Predictor:
    """A classifier, ready for use. Any number of threads may call it at once.

    Pickled, it travels as its folder and arguments and loads where it arrives. Create it after forking, or send it to
    the child: neither ONNX Runtime's threads nor CUDA survive a fork.

    Args:
        bundle: a folder written by `python -m export`.
        device: auto takes CUDA if there are a GPU and `onnxruntime-gpu`; an explicit device is never replaced.
        variant: auto for the bundle's default for the device.
        num_threads: cores to use; None for all that this process may use (affinity and cgroup quota).
        max_tokens_per_batch: padding included; None: by the device.
        max_length: longest input [tokens], at most the classifier's; None for the classifier's.
        verify: check the SHA-256 of every file that is used; otherwise only sizes.
        cuda_graphs: on CUDA, record the kernels of the shapes in use while loading, and replay them: less time between
            them.
        device_id: on CUDA, which of the GPUs that it sees, counted from 0.
        gpu_memory_limit_mib: on CUDA, most memory for weights and activations [MiB]; None for no limit.
        tensorrt: on CUDA, run a bundle exported with `--no_fusion` on TensorRT; its engine is kept in ~/.cache/rawloop.

    Raises:
        InputError: the bundle is missing or damaged, the variant, ONNX Runtime or the device is not available, or the
            model does not answer its canary on CUDA as it did at export.
    """

    def __init__(
        self,
        bundle: str | Path,
        device: Literal["auto"] | DeviceName = "auto",
        variant: Literal["auto"] | VariantName = "auto",
        *,
        num_threads: int | None = None,
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        verify: bool = True,
        cuda_graphs: bool = False,
        device_id: int = 0,
        gpu_memory_limit_mib: int | None = None,
        tensorrt: bool = False,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "bundle")}
        self._bundle = Path(bundle).absolute()
        self.pipeline = open_pipeline(self._bundle, **self._arguments)
        self.classifier = self.pipeline.encoder.classifier
        self.labels = self.classifier.labels
        self.variant = self.pipeline.variant
        # Loads the session: what cannot run fails now, not at the first request.
        self.provider = self.pipeline.sessions.wide.provider
        """ONNX Runtime's name for what runs the model, such as CPUExecutionProvider."""

    @overload
    def __call__(self, inputs: TextInput, *, truncation: Truncation | None = ...) -> Prediction: ...
    @overload
    def __call__(
        self, inputs: list[str] | list[tuple[str, str]], *, truncation: Truncation | None = ...
    ) -> list[Prediction]: ...
    def __call__(
        self, inputs: TextInput | list[str] | list[tuple[str, str]], *, truncation: Truncation | None = None
    ) -> Prediction | list[Prediction]:
        """Return the prediction for a text or a pair, or those for a list, in its order.

        Args:
            inputs: a text, a pair as a tuple, or a list of either; see `serve.encoder`.
            truncation: the side on which inputs that are too long lose tokens, or `error`; None for the side
                that the model was trained with.

        Raises:
            ItemError: the first input that the classifier does not take, or that is too long under `error`.
                A list of up to a few hundred is refused before the model runs.
        """
        several = inputs if isinstance(inputs, list) else [inputs]
        predictions = []
        for outcome in self._outcomes(self._answers(several, truncation)):
            if isinstance(outcome, ItemError):
                raise outcome
            predictions.append(outcome)
        return predictions if isinstance(inputs, list) else predictions[0]

    @overload
    def stream(
        self, inputs: Iterable[TextInput], *, truncation: Truncation | None = ..., errors: Literal["raise"] = ...
    ) -> Iterator[Prediction]: ...
    @overload
    def stream(
        self, inputs: Iterable[TextInput], *, truncation: Truncation | None = ..., errors: Literal["return"]
    ) -> Iterator[Prediction | ItemError]: ...
    def stream(
        self,
        inputs: Iterable[TextInput],
        *,
        truncation: Truncation | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Prediction | ItemError]:
        """Yield predictions in the order of the inputs, in constant memory; reads a few chunks ahead.

        Args:
            inputs: texts, or pairs as tuples; read in the thread that iterates over the predictions.
            truncation: as in a call.
            errors: `return` yields an `ItemError` in the place of a prediction and continues; `raise` raises it.

        Raises:
            InputError: `inputs` is one text.
            ItemError: as in a call, after the predictions before it.
        """
        if isinstance(inputs, str):  # its characters are texts too
            raise InputError(
                f"stream: expected texts, found one ({inputs!r:.80}); pass a list of it, or call the predictor"
            )
        for outcome in self._outcomes(self.pipeline.answer_chunks(cut_into_chunks(inputs, num_characters), truncation)):
            if isinstance(outcome, ItemError) and errors == "raise":
                raise outcome
            yield outcome

    def logits(
        self, inputs: list[str] | list[tuple[str, str]], *, truncation: Truncation | None = None
    ) -> NDArray[np.float32]:
        """Return raw logits [N, C], in the order of inputs and of `labels`, as the model returned them.

        Raises:
            ItemError: as in a call.
        """
        rows = [prediction.logits for prediction in self(inputs, truncation=truncation)]
        return np.array(rows, np.float32).reshape(len(rows), len(self.labels))

    def close(self) -> None:
        """Free threads and memory once current work is done. Closing twice does nothing."""
        self.pipeline.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._arguments), (self._bundle,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self, inputs: Sequence[TextInput], truncation: Truncation | None) -> Iterable[Answers]:
        if len(inputs) <= CHUNK_ROWS:
            return [self.pipeline.answer(inputs, truncation)]
        return self.pipeline.answer_chunks(cut_into_chunks(inputs, num_characters), truncation)

    def _outcomes(self, chunks: Iterable[Answers]) -> Iterator[Prediction | ItemError]:
        first = 0
        for answers in chunks:
            scores = self.classifier.scores(answers.logits)  # [N, C]
            columns: list[NDArray[Any]] = [answers.logits, scores, answers.truncated, answers.num_tokens]
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for index, (row_logits, row_scores, truncated, num_tokens) in enumerate(rows):
                if index in answers.refused:
                    yield ItemError(first + index, answers.refused[index].reason)
                    continue
                best = row_logits.index(max(row_logits))
                yield Prediction(
                    self.labels[best],
                    row_scores[best],
                    dict(zip(self.labels, row_scores, strict=True)),
                    tuple(row_logits),
                    truncated,
                    num_tokens,
                    self.classifier,
                    self._windows(answers.windows[index]) if index in answers.windows else (),
                )
            first += len(answers.logits)

    def _windows(self, found: list[tuple[tuple[int, int, int], NDArray[np.float32]]]) -> tuple[Window, ...]:
        scores = self.classifier.scores(np.array([logits for _, logits in found])).tolist()
        return tuple(
            Window(*place, dict(zip(self.labels, row, strict=True)))
            for (place, _), row in zip(found, scores, strict=True)
        )


def open_pipeline(
    folder: Path,
    device: Literal["auto"] | DeviceName = "auto",
    variant: Literal["auto"] | VariantName = "auto",
    *,
    num_threads: int | None = None,
    max_tokens_per_batch: int | None = None,
    max_length: int | None = None,
    verify: bool = True,
    cuda_graphs: bool = False,
    device_id: int = 0,
    gpu_memory_limit_mib: int | None = None,
    tensorrt: bool = False,
) -> Pipeline:
    """Return the pipeline of a bundle; arguments and errors as in `Predictor`.

    It loads the graph only on CUDA, to ask the canary.
    """
    bundle = read_bundle(folder, verify=False)
    device = resolve_device(device, device_id)
    name = choose_variant(bundle, device, variant)
    if verify:
        bundle.verify(name)
    encoder = Encoder.from_bundle(bundle, max_length=max_length)
    gpu = GpuOptions(
        device=device,
        device_id=device_id,
        gpu_memory_limit_mib=gpu_memory_limit_mib,
        cuda_graphs=cuda_graphs,
        tensorrt=tensorrt_for(bundle, name, encoder.max_length) if tensorrt else None,
        max_length=encoder.max_length,
    )
    sessions = SessionPool(bundle.graph(name), gpu, num_threads=num_threads)
    pipeline = Pipeline(encoder, sessions, variant=name, max_tokens_per_batch=max_tokens_per_batch)
    if device == "cuda":
        try:
            require_canary(bundle, name, encoder, sessions.wide)
        except BaseException:
            pipeline.close()
            raise
    return pipeline
