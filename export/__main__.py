"""Turn a finished run, or any classifier of transformers, into a verified ONNX bundle.

python -m export --run runs/latest
python -m export --run runs/latest --output bundle --variants fp32 int8
python -m export --model FOLDER_OR_HUB_ID --rows labelled.csv
"""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from serve.contract.bundle import VariantName
from serve.contract.classifier import CLASSIFIER_FILE, read_classifier
from serve.contract.command import given_arguments, make_ready, run_command, sigterm_as_interrupt
from serve.contract.errors import InputError
from serve.contract.files import why_unwritable
from train_loop.model.flags import ModelFlags

if TYPE_CHECKING:
    from export.console import Exported, Progress
    from export.source import Source

NEEDED, EXTRA = ("torch", "transformers", "onnx", "onnxruntime", "pyarrow", "rich", "sklearn"), "export-base,cpu"
"""Modules that every export imports, and the extra that installs them."""
VARIANTS: tuple[VariantName, ...] = get_args(VariantName)


def main(argv: Sequence[str] | None = None) -> int:
    """Export and return the exit status: 0 done, 1 a variant was left out or the disk is full, 2 bad input."""
    arguments = _parser().parse_args(given_arguments(argv))
    unchanged = "a bundle that was there before is unchanged"
    with sigterm_as_interrupt():
        return run_command(
            lambda: _export(arguments),
            needs=NEEDED,
            extra=EXTRA,
            interrupted=f"Stopped; {unchanged}.",
            after_os_error=f"{unchanged}. Make room, or pass --output with another folder",
        )


def export_run(
    run: str | os.PathLike[str],
    output: str | Path | None = None,
    *,
    variants: Sequence[VariantName] = VARIANTS,
    quantization: Literal["static", "dynamic"] = "static",
    min_label_agreement: float | None = None,
) -> "Exported":
    """Export a finished run as a verified ONNX bundle; prints what the command prints.

    Every graph is compared with PyTorch on the validation rows that training kept in RUN/samples.
    A variant that falls short of its gate is not in the bundle; `Exported.left_out` says why.

    Args:
        run: run directory.
        output: bundle folder, replaced as a whole; None for RUN/onnx.
        variants: graphs to export; fp32 is always among them.
        quantization: kind of int8; with dynamic, a text's answer depends on its batch.
        min_label_agreement: share of held-out rows, above 0 and at most 1, on which int8 must agree with PyTorch; None
            for 0.98, or 0.99 for several labels.

    Raises:
        InputError: the run is not finished, or as in `export_bundle`.
    """
    make_ready(NEEDED, EXTRA)
    # Here: these libraries take seconds.
    from export.build import Settings, export_bundle
    from export.console import prepared_progress, print_summary
    from export.source import RowFiles, source_of_run

    settings = Settings(variants=variants, quantization=quantization, min_label_agreement=min_label_agreement)
    folder = Path(run).resolve()
    bundle = folder / "onnx" if output is None else Path(output).resolve()
    progress = prepared_progress(bundle)
    exported = export_bundle(source_of_run(folder, RowFiles()), bundle, settings, progress)
    print_summary(progress.console, exported, None)
    return exported


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a finished run, or any classifier of transformers, into an ONNX bundle, every graph of it "
        "verified against PyTorch.",
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run directory, such as runs/latest")
    source.add_argument("--model", help="folder or Hub id of a classifier that was trained elsewhere; needs --rows")
    parser.add_argument(
        "--output", type=Path, help="bundle folder, replaced as a whole (default: RUN/onnx, or NAME_onnx for --model)"
    )
    _add_row_flags(parser)
    ModelFlags.add_to(parser)
    parser.add_argument(
        "--no_calibrate", dest="calibrate", action="store_false", help="keep the scores of --model (default: calibrate)"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[*VARIANTS],
        help="graphs to export; fp32 is always among them (default: all)",
    )
    parser.add_argument(
        "--quantization",
        choices=("static", "dynamic"),
        default="static",
        help="kind of int8; with dynamic, a text's answer depends on its batch (default: static)",
    )
    parser.add_argument(
        "--min_label_agreement",
        type=float,
        help="share of held-out rows on which int8 must agree with PyTorch (default: 0.98; several labels: 0.99)",
    )
    parser.add_argument(
        "--raw_mask",
        action="store_true",
        help="keep fp16 right for padding on any side, for clients that run the graph; may be slower on CUDA",
    )
    parser.add_argument(
        "--no_fusion",
        dest="fuse",
        action="store_false",
        help="keep only operators of ONNX, which TensorRT knows; slower elsewhere",
    )
    parser.add_argument(
        "--verify_device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda also verifies on this machine's GPU: fp32 there too, fp16 only there, int8 never (default: cpu)",
    )
    parser.add_argument(
        "--exporter",
        choices=("auto", "optimum", "torch"),
        default="auto",
        help="what exports and fuses: Optimum, which needs transformers 4, or torch and ONNX Runtime's optimizer "
        "(default: auto, which is Optimum where it can be imported)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=0,
        help="short held-out texts to keep in the bundle, which the server's page offers to try (default: none)",
    )
    strict = parser.add_mutually_exclusive_group()
    fell_short = "exit with status 1 if a variant is left out because it fell short (default)"
    strict.add_argument("--strict", action="store_true", default=True, help=fell_short)
    strict.add_argument("--no_strict", dest="strict", action="store_false", help="exit with status 0 then, too")
    parser.add_argument("--triton", type=Path, help="folder for a Triton model repository (default: none is written)")
    return parser


def _add_row_flags(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_argument_group("rows", "csv, tsv, jsonl or parquet")
    held_out = rows.add_mutually_exclusive_group()
    held_out.add_argument(
        "--rows",
        type=Path,
        help="labelled rows that the model was not trained on, to verify with (default: those that training kept in "
        "RUN/samples); without --calibration_rows, half of them calibrate a --model",
    )
    held_out.add_argument("--texts", type=Path, help="rows without labels instead: accuracy is not measured then")
    rows.add_argument(
        "--calibration_rows",
        type=Path,
        help="rows to calibrate int8 on, and the scores of a --model if they have labels (default: RUN/samples)",
    )
    rows.add_argument("--text_column", default="text", help="default: text")
    rows.add_argument("--text_pair_column", help="second text of a pair (default: text_pair, if a run has pairs)")
    rows.add_argument("--label_column", default="label", help="label, as the model names it or as a number")
    rows.add_argument("--label_separator", help="between several labels in one cell (default: the model's own)")
    rows.add_argument(
        "--label_columns", type=lambda names: names.split(","), help="instead, a column of 0 and 1 for each label: a,b"
    )
    rows.add_argument("--delimiter", help="between the fields of csv or tsv (default: the format's)")


def _export(arguments: argparse.Namespace) -> int:
    # Here, after the command line was checked: these libraries take seconds.
    from export.build import Settings, export_bundle
    from export.console import prepared_progress, print_summary
    from export.pack import write_triton

    settings = Settings(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)})
    if arguments.triton is not None and (problem := why_unwritable(arguments.triton)):
        raise InputError(f"--triton {arguments.triton}: {problem}")
    output: Path = (arguments.output or _default_output(arguments)).resolve()
    progress = prepared_progress(output)
    with _source(arguments, output, progress) as source:
        exported = export_bundle(source, output, settings, progress)
    if arguments.triton is not None:
        write_triton(arguments.triton, exported.folder, source.classifier, exported.variants)
    print_summary(progress.console, exported, arguments.triton)
    return 1 if exported.left_out and arguments.strict else 0


def _default_output(arguments: argparse.Namespace) -> Path:
    if arguments.run is not None:
        return Path(arguments.run).resolve() / "onnx"
    folder = Path(arguments.model).resolve()
    if (folder / CLASSIFIER_FILE).is_file():  # of a run, whose folder is called `model`, as all are
        return Path(f"{read_classifier(folder).name}_onnx")
    return Path(f"{folder.name}_onnx")  # of a folder, or the Hub id without its namespace


@contextlib.contextmanager
def _source(arguments: argparse.Namespace, output: Path, progress: "Progress") -> Iterator["Source"]:
    """Yield what to export, as the command line says."""
    from export.rows import Columns
    from export.source import RowFiles, source_of_existing_model, source_of_run

    held_out = arguments.rows or arguments.texts
    files = RowFiles(held_out, arguments.calibration_rows, Columns.of(arguments), unlabelled=arguments.texts)
    if arguments.run is not None:
        ModelFlags.refuse_for_run(arguments)
        yield source_of_run(arguments.run.resolve(), files)
        return
    if files.held_out is None:
        raise InputError(
            "--model needs rows that it was not trained on: --rows with labels, or --texts without; half of them "
            "calibrate int8, and every graph is verified on the others"
        )
    config = ModelFlags.of(arguments).config(files.held_out)
    output.parent.mkdir(parents=True, exist_ok=True)
    with source_of_existing_model(config, arguments.padding_side, files, output.parent, progress) as source:
        yield source


if __name__ == "__main__":
    sys.exit(main())
