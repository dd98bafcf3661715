"""The five steps in order: PyTorch -> float graph -> fused -> int8 and fp16 -> verified -> bundle."""

import dataclasses
import shutil
from pathlib import Path
from typing import Literal

import filelock
from rich.console import Console

from export.dynamic import quantize_dynamically
from export.half import to_half
from export.machine import instruction_set
from export.optimize import fused_operators, optimize_graph
from export.pack import canary_texts, copy_model_files, write_bundle
from export.progress import Progress
from export.reference import Reference
from export.repair import TARGETS
from export.rows import LabelledRows
from export.simplify import without_skip_layer_norms
from export.speed import rows_per_second
from export.static_int8 import StaticInt8
from export.to_onnx import export_graph, external_files, input_names
from export.verify import FEW_ROWS, GATES, Gate, Judge, Verdict
from serve.contract.bundle import Variant, VariantName
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.files import replace_folder
from serve.cores import num_usable_cores
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
        if (num_rows := len(self._held_out)) < FEW_ROWS:
            self._progress.warn(f"{num_rows} held-out rows prove little; --verification_file takes {FEW_ROWS} or more")
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
            self._add_int8()
        if "fp16" in self._settings.variants:
            self._add_half()
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

    def _add_float(self, raw: Path) -> None:
        self._progress.tell("Fusing operators")
        fused, method = optimize_graph(raw.parent, raw.name, self._work / "fused")
        choice, speeds = raw, {}
        if fused is not None:
            encodings = self._encoder.encode(self._held_out.inputs[:256])
            rates = rows_per_second({"raw": raw, "fused": fused}, self._encoder, encodings)
            speeds = {f"rows_per_s_{name}_batch_{size}": rate for name in rates for size, rate in rates[name].items()}
            if rates["fused"][32] >= SLOWER * rates["raw"][32]:
                choice = fused
            else:
                method = "not fused: the fused graph is slower here"
        self._source = choice  # of static int8, which does the same to itself, and of float16, which is not for CPUs
        if choice is fused:
            choice = without_skip_layer_norms(choice, self._work / "fp32.onnx")
        verdict = self._verify(choice, "fp32")
        if verdict.shortfalls and choice is not raw:
            method = f"not fused: the fused graph fell short ({'; '.join(verdict.shortfalls)})"
            self._source, choice, verdict = raw, raw, self._verify(raw, "fp32")
        if verdict.shortfalls:
            raise InputError(
                "the float32 graph is not what PyTorch computes, so nothing was written: "
                + "; ".join(verdict.shortfalls)
            )
        self._ship("fp32", choice, method, verdict, details=dict(speeds))

    def _add_int8(self) -> None:
        if self._variants["fp32"].external_files:
            self._leave_out("int8", "over 2 GB: not supported")
            return
        gate = GATES["int8"]
        if self._settings.min_label_agreement is not None:
            gate = dataclasses.replace(gate, min_label_agreement=self._settings.min_label_agreement)
        if self._settings.quantization == "dynamic":
            # Asked for by name: how much an answer depends on its batch is stated, and does not stop it.
            self._add_dynamic_int8(Gate(min_label_agreement=gate.min_label_agreement, must_be_batch_invariant=False))
        else:
            self._add_static_int8(gate)

    def _add_dynamic_int8(self, gate: Gate) -> None:
        self._progress.tell("int8, dynamic")
        graph = self._work / "int8.onnx"
        instructions = instruction_set()
        quantize_dynamically(self._staged / FILES["fp32"], graph, reduce_range=instructions is None)
        method = "dynamic, per channel: answers depend on the batch"
        self._add("int8", graph, method, gate, instructions=instructions, details={})

    def _add_static_int8(self, gate: Gate) -> None:
        try:
            static = StaticInt8(self._source, self._encoder, self._train.inputs, self._work, self._progress)
        except InputError as error:
            self._leave_out("int8", str(error))
            return
        graph = self._work / "int8.onnx"
        for target in TARGETS:
            method, details = static.write(graph, target)
            may_fail = target != TARGETS[-1]
            instructions = static.instruction_set
            if self._add("int8", graph, method, gate, instructions=instructions, details=details, may_fail=may_fail):
                return

    def _add_half(self) -> None:
        if self._variants["fp32"].external_files:
            self._leave_out("fp16", "over 2 GB: not supported")
            return
        graph = self._work / "fp16.onnx"
        self._progress.tell("float16, for CUDA")
        try:
            to_half(self._source, graph)
        except Exception as error:  # the converter has no errors of its own
            self._leave_out("fp16", f"could not be converted ({type(error).__name__}: {error})")
            return
        method = "float16 inside, float32 at inputs and outputs"
        details: Details = {"verified_on": "CPUExecutionProvider"}  # CUDA's own arithmetic is not what was tried
        self._add("fp16", graph, method, GATES["fp16"], details=details)

    def _add(
        self,
        name: str,
        graph: Path,
        method: str,
        gate: Gate,
        *,
        instructions: str | None = None,
        details: Details,
        may_fail: bool = False,
    ) -> bool:
        """Ship a graph that passes its gate; return whether it did. With `may_fail` there is a next attempt."""
        try:
            verdict = self._verify(graph, name, gate)
            reason = "; ".join(verdict.shortfalls)
        except (InputError, RuntimeError) as error:  # ONNX Runtime cannot load or run it
            reason = str(error).splitlines()[0]
        if not reason:
            self._ship(name, graph, method, verdict, instructions=instructions, details=details)
        elif may_fail:
            self._progress.tell(f"{name} fell short ({reason}): more layers in float32")
        else:
            self._leave_out(name, reason)
        return not reason

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
