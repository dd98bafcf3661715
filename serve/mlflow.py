"""Log a bundle to MLflow as a pyfunc model, which brings its own code: where it is loaded, rawloop need not be.

python -m serve.mlflow --bundle runs/latest/onnx --register tickets      # to the server in MLFLOW_TRACKING_URI

The model takes a DataFrame with a column of texts. It returns the columns of `TableClassifier`, empty texts for null.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import serve
from serve.contract.bundle import BUNDLE_FILE, read_bundle
from serve.contract.command import given_arguments, run_command
from serve.contract.files import sha256_of_file
from serve.files.table_classifier import TableClassifier

PACKAGES = ("numpy", "tokenizers", "pyarrow", "pandas", "onnxruntime", "onnxruntime-gpu")
"""What the model needs, of which the last two exclude each other; MLflow adds itself."""


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` gives for a bundle."""

    def __init__(self, bundle: Path) -> None:
        self._classify = TableClassifier(bundle, keep_columns=[])
        self.columns = self._classify.columns
        """The columns of a DataFrame that are read."""

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a `pandas.DataFrame` with the answers to the texts of one, with its index."""
        import pandas

        texts = rows[list(self.columns)].astype(object)
        answers = self._classify.answers(
            *(texts[name].where(texts[name].notna(), None).tolist() for name in self.columns)
        )
        columns = {name: _values(answers[name]) for name in answers.column_names}
        return pandas.DataFrame(columns, index=rows.index, dtype=object)  # else null becomes NaN, which is not JSON


def _values(column: Any) -> list[Any]:
    """Return the values of an Arrow column, with empty texts and lists for null: spark_udf would make it "None"."""
    import pyarrow.types

    kind = column.type
    missing: Any = "" if pyarrow.types.is_string(kind) else [] if pyarrow.types.is_list(kind) else None
    return [missing if value is None else value for value in column.to_pylist()]


def _load_pyfunc(path: str) -> PyfuncModel:
    """Return the model in a folder; MLflow finds this function by its name."""
    return PyfuncModel(Path(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.mlflow",
        description="Log a bundle to the MLflow server in MLFLOW_TRACKING_URI (without it, to ./mlruns).",
        epilog="Exit status: 0 done, 1 the machine failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--bundle", required=True, type=Path, help="folder written by python -m export")
    parser.add_argument("--register", metavar="NAME", help="also make it a version of the registered model NAME")
    return parser


def run(argv: Sequence[str]) -> None:
    """Log the bundle that the command line names, and print where it is; raises InputError if it is none."""
    import mlflow
    import pandas
    from mlflow.models import infer_signature

    arguments = _parser().parse_args(argv)
    manifest = read_bundle(arguments.bundle).manifest
    model = PyfuncModel(arguments.bundle)
    example = pandas.DataFrame([manifest.canary], columns=list(model.columns))
    both = pandas.concat([example, example.where(example.isna(), None)])  # with and without an answer: every type shows
    logged = mlflow.pyfunc.log_model(
        name=manifest.name,
        loader_module="serve.mlflow",
        data_path=str(arguments.bundle),
        code_paths=[str(Path(serve.__file__).parent)],
        pip_requirements=_requirements(),
        signature=infer_signature(example, model.predict(both)),
        input_example=example,
        registered_model_name=arguments.register,
        metadata={"bundle": sha256_of_file(arguments.bundle / BUNDLE_FILE)},
    )
    print(f"{logged.model_uri}\nTo load it: mlflow.pyfunc.load_model({logged.model_uri!r})")


def _requirements() -> list[str]:
    """Return the versions with which the model was tried."""
    found = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    return [f"{name}=={found[name].partition('+')[0]}" for name in PACKAGES if name in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Log and return the exit status: 1 if the machine failed, 2 if the user can fix it."""
    return run_command(
        lambda: run(given_arguments(argv)), needs=("mlflow", "pyarrow", "onnxruntime"), extra="cpu,mlflow"
    )


if __name__ == "__main__":
    sys.exit(main())
