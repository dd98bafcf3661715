"""Turn a finished run into a verified ONNX bundle.

python -m export --run runs/latest
python -m export --run runs/latest --output bundle --variants fp32 int8
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("torch", "transformers", "onnx", "onnxruntime", "pyarrow", "rich", "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    """Export and return the exit status: 0 done, 1 a variant was left out or the disk is full, 2 bad input."""
    from serve.contract.command import given_arguments, run_command

    arguments = _parser().parse_args(given_arguments(argv))
    unchanged = "a bundle that was there before is unchanged"
    return run_command(
        lambda: _export(arguments),
        needs=NEEDED,
        extra="export,cpu",
        interrupted=f"Stopped; {unchanged}.",
        after_os_error=f"{unchanged}. Make room, or pass --output with another folder",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a finished run into an ONNX bundle, every graph of it verified against PyTorch.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory, such as runs/latest")
    parser.add_argument("--output", type=Path, help="bundle folder, replaced as a whole (default: RUN/onnx)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=("fp32", "int8", "fp16"),
        default=["fp32", "int8", "fp16"],
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
        help="share of held-out rows on which int8 must agree with PyTorch (default: 0.98)",
    )
    parser.add_argument(
        "--raw_mask",
        action="store_true",
        help="keep fp16 right for padding on any side, for clients that run the graph; may be slower on CUDA",
    )
    parser.add_argument(
        "--no_fusion", action="store_true", help="keep only operators of ONNX, which TensorRT knows; slower elsewhere"
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
    strict = parser.add_mutually_exclusive_group()
    strict.add_argument(
        "--strict",
        action="store_true",
        default=True,
        help="exit with status 1 if a variant is left out because it fell short (default)",
    )
    strict.add_argument("--no_strict", dest="strict", action="store_false", help="exit with status 0 then, too")
    rows = "rows to {}, parquet, csv or jsonl (default: the {} split in RUN/samples)"
    parser.add_argument("--calibration_file", type=Path, help="training " + rows.format("calibrate int8 on", "train"))
    parser.add_argument("--verification_file", type=Path, help="held-out " + rows.format("verify on", "validation"))
    parser.add_argument("--triton", type=Path, help="folder for a Triton model repository (default: none is written)")
    return parser


def _export(arguments: argparse.Namespace) -> int:
    # Imported here, after the command line was checked: these libraries take seconds.
    import transformers
    from rich.console import Console

    from export.build import Settings, export_bundle
    from export.console import print_summary
    from export.pack import write_triton
    from export.rows import read_rows
    from serve.contract.bundle import BUNDLE_FILE
    from serve.contract.classifier import read_classifier
    from serve.contract.errors import InputError

    settings = Settings(
        variants=tuple(arguments.variants),
        quantization=arguments.quantization,
        min_label_agreement=arguments.min_label_agreement,
        raw_mask=arguments.raw_mask,
        fuse=not arguments.no_fusion,
        verify_device=arguments.verify_device,
        exporter=arguments.exporter,
    )
    run: Path = arguments.run.resolve()
    model_folder = run / "model"
    if not model_folder.exists() and (run / "checkpoints").is_dir():
        raise InputError(f"--run {run}: this run is not finished; continue it with train_loop/main.py --resume {run}")
    classifier = read_classifier(model_folder)
    output: Path = (arguments.output or run / "onnx").resolve()
    if output.is_file():
        raise InputError(f"--output {output}: this is a file; name a folder")
    if output.exists() and any(output.iterdir()) and not (output / BUNDLE_FILE).is_file():
        raise InputError(f"--output {output}: the folder has other files, and would be replaced; name a new one")
    train, held_out = (
        read_rows(file or run / "samples" / f"{split}.parquet", file.name if file else f"the {split} split", classifier)
        for file, split in ((arguments.calibration_file, "train"), (arguments.verification_file, "validation"))
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of transformers 5, while it loads weights
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    exported = export_bundle(model_folder, classifier, train, held_out, output, settings, console)
    if arguments.triton is not None:
        write_triton(arguments.triton, exported.folder, classifier, exported.variants)
    print_summary(console, exported, arguments.triton)
    return 1 if exported.left_out and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
