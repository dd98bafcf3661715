"""An export from beginning to end; `export_bundle` is the table of contents.

1. reference   PyTorch in float32 answers the held-out rows
2. ONNX        the same model as a float32 graph
3. fp32        operators fused, the head's token gathered early; as exported where that is wrong or slower
4. int8, fp16  made from the fused graph
5. pack        speed for the summary, the graphs, and the record of what was proved

Every graph is verified before it may ship. Only fp32 must pass: int8 and fp16 are otherwise left out, with the reason.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import filelock
import numpy as np
from numpy.typing import NDArray

from export.console import Exported, Progress
from export.existing import examined
from export.exporters.choose import TORCH, Exporter, ExporterName, choose
from export.graphs import Candidate, Refused, external_files, fused_operators, input_names
from export.int8.dynamic import quantize_dynamically
from export.int8.static import quantize_statically
from export.mask_lengths import float16_candidates
from export.pack import canary_texts, copy_graph, copy_model_files, examples_of, write_bundle_records
from export.reference import Reference
from export.rewrites import with_early_gather, without_skip_layer_norms
from export.rows import Rows
from export.source import Source, rows_to_calibrate_on
from export.speed import rows_per_second
from export.verify import GATES, Gate, Judge, Proved, Verdict
from serve.contract.bundle import DeviceName, VariantName
from serve.contract.classifier import Classifier, write_classifier
from serve.contract.cores import num_usable_cores
from serve.contract.drift import distributions, features
from serve.contract.errors import InputError, first_line
from serve.contract.field_limits import NOT_NEGATIVE, Limit, out_of_range
from serve.contract.files import staged_folder
from serve.contract.telemetry import switch_off_telemetry
from serve.encoder import Encoder
from serve.encoding import Encoding, windows_of
from serve.providers import PROVIDERS, GpuOptions
from serve.session import Session, require_device

FILES: dict[str, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx", "fp16": "model_fp16.onnx"}
VARIANTS: tuple[VariantName, ...] = get_args(VariantName)
Quantization = Literal["static", "dynamic"]
SLOWER = 0.9
"""Share of its source's rows/s below which a fused graph is dropped: slower beyond the noise of a short timing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export, and how; raises InputError if a field is out of range."""

    variants: Annotated[Sequence[VariantName], Limit(set(FILES).issuperset, "some of fp32, int8 and fp16")] = VARIANTS
    quantization: Annotated[Quantization, Limit(get_args(Quantization).__contains__, "static or dynamic")] = "static"
    min_label_agreement: Annotated[float | None, Limit(lambda share: 0 < share <= 1, "above 0 and at most 1")] = None
    """Overrides the gate of int8; numbers have none."""
    raw_mask: bool = False
    """True keeps float16 right for padding on any side, for clients that run the graph themselves."""
    calibrate: bool = True
    """False keeps the scores of a classifier that was trained elsewhere; a run's were calibrated by training."""
    fuse: bool = True  # False keeps only operators of ONNX, for TensorRT
    verify_device: DeviceName = "cpu"
    """cuda verifies fp32 there too, and float16 only there, where its activations may overflow; int8 is for CPUs."""
    examples: Annotated[int, NOT_NEGATIVE] = 0  # short held-out texts to keep in the bundle, for its page
    exporter: ExporterName = "auto"  # auto is Optimum where it can be imported, else torch

    def __post_init__(self) -> None:
        if problems := list(out_of_range(self)):
            raise InputError("; ".join(problems))


@dataclasses.dataclass(frozen=True)
class Context:
    """What the steps share."""

    settings: Settings
    exporter: Exporter
    judge: Judge
    calibration: Rows
    work: Path  # folder for temporary files
    progress: Progress

    def gate(self, name: str) -> Gate:
        gate = GATES[self.judge.encoder.classifier.problem_type][name]
        if name != "int8" or (agreement := self.settings.min_label_agreement) is None:
            return gate
        return dataclasses.replace(gate, min_label_agreement=agreement)


@dataclasses.dataclass(frozen=True)
class Float32:
    """The float32 graph to ship, and the one to make the others from."""

    proved: Proved
    source: Path  # as `proved`, but with fused layer norms: int8 splits them itself, and on CUDA float16 needs them


def export_bundle(source: Source, output: Path, settings: Settings, progress: Progress) -> Exported:
    """Export, verify and pack a model.

    The folder `output` is replaced as a whole, or left as it was.

    Raises:
        InputError: the held-out rows prove nothing, the device to verify on is not available, the architecture cannot
            be exported, the float32 graph is wrong, or another export is writing the same bundle. `output` is left as
            it was.
    """
    switch_off_telemetry()
    require_device(settings.verify_device)
    exporter = choose(settings.exporter)
    classifier, held_out = source.classifier, source.held_out
    if classifier.problem_type == "regression" and settings.min_label_agreement is not None:
        raise InputError("--min_label_agreement is for labels, and the model answers with numbers; leave it out")
    calibration = rows_to_calibrate_on(source, progress)
    with _work_folder(output) as work, staged_folder(output) as staged:
        progress.step("PyTorch, float32: the reference answers")
        reference = Reference(source.model_folder, classifier)
        expected = reference.logits(held_out)
        if source.is_existing:
            progress.step("Comparing its answers with the rows' labels")
            classifier = examined(source, reference, calibration, expected, settings.calibrate, progress)

        progress.step("ONNX, float32")
        try:
            raw = exporter.export_graph(source.model_folder, work / "raw")
        except InputError:
            if settings.exporter != "auto" or exporter is TORCH:
                raise
            progress.note("Optimum cannot export this model: torch does")
            exporter = TORCH
            raw = exporter.export_graph(source.model_folder, work / "raw")
        copy_model_files(source.model_folder, staged)
        pad_token_id, pad_token_type_id = reference.tokenizer.pad_token_id, reference.tokenizer.pad_token_type_id
        encoder = Encoder(
            staged / "tokenizer.json",
            classifier,
            input_names=input_names(raw),
            pad_token_id=pad_token_id,
            pad_token_type_id=pad_token_type_id,
        )
        classifier = _with_reference(classifier, expected, encoder.encode(held_out.inputs))
        write_classifier(staged, classifier)
        judge = Judge(encoder, reference, held_out, expected, canary_texts(classifier))
        context = Context(settings, exporter, judge, calibration, work, progress)

        float32 = _fused(raw, context) if settings.fuse else Refused("not fused, as asked")
        if isinstance(float32, Refused):
            float32 = _as_exported(raw, float32.reason, context)
        proved = {"fp32": float32.proved}
        left_out: dict[str, str] = {}
        for name, make in (("int8", _int8), ("fp16", _float16)):
            if name not in settings.variants:
                continue
            outcome = _made_from(float32, make, context)
            if isinstance(outcome, Refused):
                left_out[name] = outcome.reason
                progress.warn(f"{name} is left out: {outcome.reason}")
            else:
                proved[name] = outcome

        progress.step("Speed, in turn")
        graphs = {name: each.candidate.graph for name, each in proved.items() if name != "fp16"}  # which is for GPUs
        rates = rows_per_second(graphs, encoder, windows_of(encoder.encode(held_out.inputs)))

        variants = {name: copy_graph(each, staged / FILES[name]) for name, each in proved.items()}
        examples = examples_of(held_out, settings.examples)
        if examples:
            progress.note(f"The bundle keeps {len(examples)} held-out texts, for its page")
        write_bundle_records(staged, classifier, variants, pad_token_id, pad_token_type_id, exporter.name, examples)
        sizes = {name: (staged / variant.file).stat().st_size for name, variant in variants.items()}
    return Exported(output, variants, left_out, rates, sizes)


def _with_reference(classifier: Classifier, logits: NDArray[np.float32], encodings: Sequence[Encoding]) -> Classifier:
    """Return the contract with what servers compare live texts with: these, by their logits [N, C]."""
    num_tokens = np.array([sum(window.num_tokens for window in each.windows) for each in encodings])
    num_unknown = np.array([sum(window.num_unknown for window in each.windows) for each in encodings])
    found = features(classifier.problem_type, classifier.scores(logits), num_tokens, num_unknown)
    return dataclasses.replace(classifier, reference=distributions(found, len(classifier.labels)))


@contextlib.contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder next to the bundle's, removed at the end; raises InputError if another export has it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(output.with_name(f".{output.name}.lock")).acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"{output}: another export is writing it; wait for it, or stop it first") from error
    work = output.with_name(f".{output.name}.work")
    with lock:
        shutil.rmtree(work, ignore_errors=True)  # of an export that was killed
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fused(raw: Path, context: Context) -> Float32 | Refused:
    """Return the fused graph, or why the graph as exported is better."""
    context.progress.step("Fusing operators")
    fused = context.exporter.fuse_operators(raw, context.work / "fused")
    if isinstance(fused, Refused):
        return fused
    encoder, held_out = context.judge.encoder, context.judge.rows
    try:
        source = _gathered_early(fused, context)
        graph = context.work / "fp32.onnx"
        without_skip_layer_norms(source, graph)
        few = windows_of(encoder.encode(held_out.inputs[:128]))
        rates = rows_per_second({"raw": raw, "fused": graph}, encoder, few)
        if rates["fused"][32] < SLOWER * rates["raw"][32]:
            return Refused("not fused: the fused graph is slower here")
        verdict = _verify(graph, "fp32", context.gate("fp32"), context)
    except (InputError, RuntimeError) as error:  # ONNX Runtime cannot load or run it
        return Refused(f"not fused: the fused graph does not run ({first_line(error)})")
    if verdict.shortfalls:
        return Refused(f"not fused: the fused graph fell short ({'; '.join(verdict.shortfalls)})")
    speeds = {f"rows_per_s_{name}_batch_{size}": rate for name in rates for size, rate in rates[name].items()}
    has_attention = any("Attention" in name for name in fused_operators(graph))
    method = "fused" if has_attention else "fused, but not its attention"
    return Float32(Proved(Candidate(graph=graph, method=method, details=dict(speeds)), verdict), source)


def _as_exported(raw: Path, method: str, context: Context) -> Float32:
    """Return the float32 graph without fused operators; raises InputError if it is not what PyTorch computes."""
    graph = _gathered_early(raw, context)
    verdict = _verify(graph, "fp32", context.gate("fp32"), context)
    if verdict.shortfalls:
        raise InputError(
            "the float32 graph is not what PyTorch computes, so nothing was written: " + "; ".join(verdict.shortfalls)
        )
    return Float32(Proved(Candidate(graph=graph, method=method), verdict), graph)


def _gathered_early(graph: Path, context: Context) -> Path:
    output = context.work / f"{graph.parent.name}_early.onnx"
    return with_early_gather(graph, output, context.judge.odd_shapes())


def _made_from(
    float32: Float32, make: Callable[[Float32, Context], Proved | Refused], context: Context
) -> Proved | Refused:
    """Make another variant; whatever goes wrong, fp32 still ships."""
    if external_files(float32.proved.candidate.graph):
        return Refused("over 2 GB: not supported")
    try:
        return make(float32, context)
    except OSError:  # a full disk would also stop all later steps
        raise
    except Exception as error:  # quantizers and converters have no errors of their own
        reason = first_line(error)
        return Refused(reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}")


def _int8(float32: Float32, context: Context) -> Proved | Refused:
    gate, graph = context.gate("int8"), context.work / "int8.onnx"
    if context.settings.quantization == "dynamic":
        context.progress.step("int8, dynamic")
        candidate = quantize_dynamically(float32.proved.candidate.graph, graph)
        # The user chose it by name: the manifest states how many answers depend on the batch, the gate allows it.
        return _prove("int8", [candidate], dataclasses.replace(gate, must_be_batch_invariant=False), context)
    encoder, inputs = context.judge.encoder, context.calibration.inputs
    candidates = quantize_statically(float32.source, encoder, inputs, gate, graph, context.progress)
    return _prove("int8", candidates, gate, context, otherwise="more layers in float32")


def _float16(float32: Float32, context: Context) -> Proved | Refused:
    context.progress.step("float16, for CUDA")
    verified_on = PROVIDERS[context.settings.verify_device]  # a CPU's does not show CUDA's arithmetic
    raw_mask = context.settings.raw_mask
    candidates = float16_candidates(float32.source, context.work, context.judge, verified_on, raw_mask=raw_mask)
    return _prove("fp16", candidates, context.gate("fp16"), context)


def _prove(
    name: str, candidates: Iterable[Candidate], gate: Gate, context: Context, *, otherwise: str | None = None
) -> Proved | Refused:
    """Return the first graph that passes its gate, or where the last fell short.

    `otherwise` announces what the next one has instead.
    """
    outcome = Refused("")
    for candidate in candidates:
        if outcome.reason and otherwise:
            context.progress.step(f"{name} fell short ({outcome.reason}): {otherwise}")
        try:
            verdict = _verify(candidate.graph, name, gate, context, right_padding_only=candidate.right_padding_only)
        except (InputError, RuntimeError) as error:  # ONNX Runtime cannot load or run it
            outcome = Refused(first_line(error))
            continue
        if not verdict.shortfalls:
            return Proved(candidate, verdict)
        outcome = Refused("; ".join(verdict.shortfalls))
    return outcome


def _verify(graph: Path, name: str, gate: Gate, context: Context, *, right_padding_only: bool = False) -> Verdict:
    """Return the verdict on a graph; its record is the last device's, its shortfalls are those of all."""
    on_cuda: dict[str, tuple[DeviceName, ...]] = {"fp32": ("cuda", "cpu"), "fp16": ("cuda",)}
    devices = on_cuda.get(name, ("cpu",)) if context.settings.verify_device == "cuda" else ("cpu",)
    shortfalls: list[str] = []
    for device in devices:
        where = f"{name} on CUDA" if device == "cuda" else name
        title = f"Verifying {where} on {len(context.judge.rows):,} held-out rows"
        with (
            contextlib.closing(Session(graph, GpuOptions(device=device), num_threads=num_usable_cores())) as session,
            context.progress.count(title, context.judge.num_windows) as advance,
        ):
            verdict = context.judge.verify(session, gate, advance, right_padding_only=right_padding_only)
        shortfalls += [f"on CUDA: {each}" if device == "cuda" else each for each in verdict.shortfalls]
    return dataclasses.replace(verdict, shortfalls=shortfalls)
