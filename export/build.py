"""The five steps in order: PyTorch -> float graph -> fused -> int8 and fp16 -> verified -> bundle."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import filelock
from rich.console import Console

from export.early_gather import with_early_gather
from export.half import to_half
from export.int8.dynamic import quantize_dynamically
from export.int8.static_int8 import StaticInt8
from export.machine import instruction_set
from export.optimize import fused_operators, optimize_graph
from export.pack import canary_texts, copy_model_files, write_bundle
from export.progress import Progress
from export.reference import Reference
from export.rows import LabelledRows
from export.simplify import without_skip_layer_norms
from export.speed import rows_per_second
from export.to_onnx import export_graph, external_files, input_names
from export.verify import FEW_ROWS, GATES, Gate, Judge, Verdict
from serve.contract.bundle import Variant, VariantName
from serve.contract.classifier import Classifier
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError, first_line
from serve.contract.files import replace_folder
from serve.encoder import Encoder
from serve.session import Session

Quantization = Literal["static", "dynamic"]
Details = dict[str, str | int | float | bool]

FILES: dict[str, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx", "fp16": "model_fp16.onnx"}
SLOWER = 0.9
"""A fused graph below this share of its source's rows/s is not kept: slower beyond the noise of a short timing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is exported, and how."""

    variants: tuple[VariantName, ...] = ("fp32", "int8", "fp16")
    quantization: Quantization = "static"
    min_label_agreement: float | None = None
    """Of int8, in place of the gate's own."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What came out."""

    folder: Path
    variants: dict[str, Variant]
    left_out: dict[str, str]
    """Variant -> why it is not in the bundle."""
    rows_per_s: dict[str, dict[int, float]]
    """Graph (pytorch is not among them) -> batch size -> rows/s."""
    sizes: dict[str, int]
    """Variant -> bytes."""


class Build:
    """One export, from a model folder to a staged bundle that takes the place of the old one at the end.

    Args:
        model_folder: the run's `model/`.
        classifier: its contract.
        train: rows to calibrate on.
        held_out: rows to verify on.
        output: the bundle's folder; replaced as a whole, or left as it was.
        settings: what is wanted.
        console: where progress is told.
    """

    def __init__(
        self,
        model_folder: Path,
        classifier: Classifier,
        train: LabelledRows,
        held_out: LabelledRows,
        output: Path,
        settings: Settings,
        console: Console,
    ) -> None:
        self._model_folder = model_folder
        self._classifier = classifier
        self._train = train
        self._held_out = held_out
        self._output = output
        self._settings = settings
        self._progress = Progress(console)
        self._staged = output.with_name(f".{output.name}.tmp")
        self._work = output.with_name(f".{output.name}.work")
        self._variants: dict[str, Variant] = {}
        self._left_out: dict[str, str] = {}

    def run(self) -> Exported:
        """Export, verify and pack.

        Raises:
            InputError: the architecture cannot be exported, the float graph is not right, or another export writes
                the same bundle: nothing ships.
        """
        self._output.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._output.with_name(f".{self._output.name}.lock"))
        try:
            with lock.acquire(timeout=0):
                return self._run_alone()
        except filelock.Timeout as error:
            raise InputError(f"{self._output}: another export is writing it; wait for it, or stop it first") from error

    def _run_alone(self) -> Exported:
        for folder in (self._staged, self._work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            return self._run()
        finally:
            for folder in (self._staged, self._work):
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self) -> Exported:
        self._check_held_out()
        self._progress.tell("PyTorch, float32: the answers to compare with")
        reference = Reference(self._model_folder, self._classifier)
        expected = reference.logits(self._held_out)
        self._progress.tell("ONNX, float32")
        raw = export_graph(self._model_folder, self._work / "raw")
        copy_model_files(self._model_folder, self._staged)
        self._encoder = Encoder(
            self._staged / "tokenizer.json",
            self._classifier,
            input_names=input_names(raw),
            pad_token_id=reference.tokenizer.pad_token_id,
            pad_token_type_id=reference.tokenizer.pad_token_type_id,
        )
        self._judge = Judge(self._encoder, reference, self._held_out, expected, canary_texts(self._classifier))
        self._add_float(raw)
        if "int8" in self._settings.variants:
            self._add_unless_impossible("int8", self._add_int8)
        if "fp16" in self._settings.variants:
            self._add_unless_impossible("fp16", self._add_half)
        self._progress.tell("Speed, in turn")
        graphs = {name: self._staged / v.file for name, v in self._variants.items() if name != "fp16"}
        rates = rows_per_second(graphs, self._encoder, self._encoder.encode(self._held_out.inputs))
        write_bundle(
            self._staged,
            self._classifier,
            self._variants,
            reference.tokenizer.pad_token_id,
            reference.tokenizer.pad_token_type_id,
        )
        sizes = {name: (self._staged / variant.file).stat().st_size for name, variant in self._variants.items()}
        replace_folder(self._staged, self._output)
        return Exported(self._output, self._variants, self._left_out, rates, sizes)

    def _check_held_out(self) -> None:
        """Say what the held-out rows cannot prove.

        Raises:
            InputError: all of them are rows to calibrate on.
        """
        num_rows, calibration = len(self._held_out), set(self._train.inputs)
        if num_rows < FEW_ROWS:
            self._progress.warn(f"{num_rows} held-out rows prove little; --verification_file takes {FEW_ROWS} or more")
        num_shared = sum(row in calibration for row in self._held_out.inputs)
        if num_shared == num_rows:
            raise InputError(
                f"{self._held_out.name}: every row is one of the calibration rows ({self._train.name}) too, and proves "
                "nothing; --verification_file takes rows that the model was not trained on"
            )
        if num_shared:
            self._progress.warn(f"{num_shared} of {num_rows} held-out rows are calibration rows too")

    def _add_float(self, raw: Path) -> None:
        method = self._add_fused(raw)
        if method is None:
            return
        self._source = self._gathered_early(raw)
        verdict = self._verify(self._source, "fp32")
        if verdict.shortfalls:
            raise InputError(
                "the float32 graph is not what PyTorch computes, so nothing was written: "
                + "; ".join(verdict.shortfalls)
            )
        self._ship("fp32", self._source, method, verdict, details={})

    def _add_fused(self, raw: Path) -> str | None:
        """Ship the fused form of a graph as fp32, or return why not."""
        self._progress.tell("Fusing operators")
        fused, method = optimize_graph(raw.parent, raw.name, self._work / "fused")
        if fused is None:
            return method
        try:
            fused = self._gathered_early(fused)
            graph = without_skip_layer_norms(fused, self._work / "fp32.onnx")
            encodings = self._encoder.encode(self._held_out.inputs[:256])
            rates = rows_per_second({"raw": raw, "fused": graph}, self._encoder, encodings)
            if rates["fused"][32] < SLOWER * rates["raw"][32]:
                return "not fused: the fused graph is slower here"
            verdict = self._verify(graph, "fp32")
        except (InputError, RuntimeError) as error:  # ONNX Runtime cannot load or run it
            return f"not fused: the fused graph does not run ({first_line(error)})"
        if verdict.shortfalls:
            return f"not fused: the fused graph fell short ({'; '.join(verdict.shortfalls)})"
        self._source = fused  # of static int8, which splits operators itself, and of float16, which is not for CPUs
        speeds = {f"rows_per_s_{name}_batch_{size}": rate for name in rates for size, rate in rates[name].items()}
        self._ship("fp32", graph, method, verdict, details=dict(speeds))
        return None

    def _gathered_early(self, graph: Path) -> Path:
        if external_files(graph):
            return graph  # over 2 GB
        return with_early_gather(graph, self._work / f"{graph.parent.name}_early.onnx", self._judge.odd_shapes())

    def _add_unless_impossible(self, name: str, add: Callable[[], None]) -> None:
        """Add a variant beside fp32; whatever stands in the way, fp32 ships."""
        if self._variants["fp32"].external_files:
            self._leave_out(name, "over 2 GB: not supported")
            return
        try:
            add()
        except OSError:  # a full disk harms all that comes after, too
            raise
        except Exception as error:  # quantizers and converters have no errors of their own
            reason = first_line(error)
            self._leave_out(name, reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}")

    def _add_int8(self) -> None:
        gate = GATES["int8"]
        if (agreement := self._settings.min_label_agreement) is not None:
            gate = dataclasses.replace(gate, min_label_agreement=agreement)
        if self._settings.quantization == "dynamic":
            # Asked for by name: how much an answer depends on its batch is stated, and does not stop it.
            self._add_dynamic_int8(dataclasses.replace(gate, must_be_batch_invariant=False))
        else:
            self._add_static_int8(gate)

    def _add_dynamic_int8(self, gate: Gate) -> None:
        self._progress.tell("int8, dynamic")
        graph = self._work / "int8.onnx"
        instructions = instruction_set()
        quantize_dynamically(self._staged / FILES["fp32"], graph, reduce_range=instructions is None)
        method = "dynamic, per channel: answers depend on the batch"
        if reason := self._add("int8", graph, method, gate, instructions=instructions, details={}):
            self._leave_out("int8", reason)

    def _add_static_int8(self, gate: Gate) -> None:
        static = StaticInt8(self._source, self._encoder, self._train.inputs, self._work, self._progress)
        graph, reason = self._work / "int8.onnx", ""
        for method, details in static.attempts(graph, gate.min_label_agreement or 0.0):
            if reason:
                self._progress.tell(f"int8 fell short ({reason}): more layers in float32")
            reason = self._add("int8", graph, method, gate, instructions=static.instruction_set, details=details)
            if not reason:
                return
        self._leave_out("int8", reason)

    def _add_half(self) -> None:
        graph = self._work / "fp16.onnx"
        self._progress.tell("float16, for CUDA")
        to_half(self._source, graph)
        method = "float16 inside, float32 at inputs and outputs"
        details: Details = {"verified_on": "CPUExecutionProvider"}  # CUDA's own arithmetic is not what was tried
        if reason := self._add("fp16", graph, method, GATES["fp16"], details=details):
            self._leave_out("fp16", reason)

    def _add(
        self, name: str, graph: Path, method: str, gate: Gate, *, instructions: str | None = None, details: Details
    ) -> str:
        """Ship a graph that passes its gate, or return what it fell short of."""
        try:
            verdict = self._verify(graph, name, gate)
        except (InputError, RuntimeError) as error:  # ONNX Runtime cannot load or run it
            return first_line(error)
        if not verdict.shortfalls:
            self._ship(name, graph, method, verdict, instructions=instructions, details=details)
        return "; ".join(verdict.shortfalls)

    def _verify(self, graph: Path, name: str, gate: Gate | None = None) -> Verdict:
        num_rows = len(self._held_out)
        session = Session(graph, num_threads=num_usable_cores())
        try:
            with self._progress.count(f"Verifying {name} on {num_rows:,} held-out rows", num_rows) as advance:
                return self._judge.verify(session, gate or GATES[name], advance)
        finally:
            session.close()

    def _ship(
        self,
        name: str,
        graph: Path,
        method: str,
        verdict: Verdict,
        *,
        instructions: str | None = None,
        details: Details,
    ) -> None:
        file = self._staged / FILES[name]
        shutil.copyfile(graph, file)
        external = external_files(graph)
        for other in external:
            shutil.copyfile(graph.parent / other, self._staged / other)
        self._variants[name] = Variant(
            file=file.name,
            external_files=external,
            method=method,
            instruction_set=instructions,
            fused_operators=fused_operators(graph),
            details=details,
            canary_logits=verdict.canary_logits,
            verification=verdict.record,
        )

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out[name] = reason
        self._progress.warn(f"{name} is left out: {reason}")
