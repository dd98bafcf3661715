"""report.html: everything to look at after a run, in one self-contained file."""

import base64
import collections
import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

from train_loop.findings.assessment import Assessment
from train_loop.findings.audit import Kind
from train_loop.findings.near_duplicates import THRESHOLD

MODEL_FIELDS = (
    *("model_name", "model_revision", "text_column", "text_pair_column", "label_column", "delimiter"),
    *("label_names", "cleaning", "max_length", "long_texts"),
)
"""Fields of the configuration that say something of a model that was trained elsewhere."""
NAMES_OF_NUMBERS = {
    "spearman": "Spearman",
    "pearson": "Pearson",
    "r2": "R²",
    "rmse": "RMSE",
    "mse": "MSE",
    "mae": "MAE",
}
MAX_MISTAKES = 25
MAX_FINDINGS = 40
MAX_TEXT_LENGTH = 600
PICTURES = {
    "confusion_matrix.png": "Confusion matrix",
    "roc.png": "ROC curve of each class",
    "pr.png": "Precision-recall curve of each class",
    "reliability.png": "Reliability of the scores",
    "risk_coverage.png": "Accuracy of the answers if those with low scores are withheld",
    "thresholds.png": "Precision, recall and F1 by threshold",
    "answers.png": "Answers and errors by true number",
    "training.png": "Loss, validation metrics and learning rate by step",
}


def render_report(assessment: Assessment, pictures: Path) -> str:
    """Return the page; `pictures` is the folder of the plots.

    The template engine escapes texts, labels and names, and the page's policy forbids scripts.
    """
    # Imported here: only needed at the end of a run.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train_loop.findings", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"decimals": _decimals, "readable": _readable, "shortened": _shortened}
    return environment.get_template("report.html").render(**_content(assessment, pictures))


def _content(assessment: Assessment, pictures: Path) -> dict[str, Any]:
    headline = assessment.main
    split, labels = headline.split, headline.labels
    mistakes = headline.mistakes()
    shown = mistakes[:MAX_MISTAKES]
    return {
        "assessment": assessment,
        "classifier": headline.classifier,
        "headline_metrics": headline.headline,
        "splits": {
            name: {"rows": len(found.split), "origin": found.split.origin, "metrics": assessment.metrics[name]}
            for name, found in assessment.predictions.items()
        },
        "pictures": [
            {
                "alt": alt,
                "wide": name == "confusion_matrix.png" and len(labels) > 8,
                "content": base64.b64encode((pictures / name).read_bytes()).decode(),
            }
            for name, alt in PICTURES.items()
            if (pictures / name).is_file()
        ],
        "num_mistakes": len(mistakes),
        "mistakes": [
            {
                "row": split.row_number(row),
                "text": text,
                "true": headline.truth(row),
                "predicted": headline.answer(row),
                "score": headline.score(row),
            }
            for row, text in zip(shown, headline.texts_of(shown), strict=True)
        ],
        "audit": assessment.findings[:MAX_FINDINGS],
        "audit_counts": {
            kind: 0 for kind in get_args(Kind) if assessment.compared_with_training or kind != "near_duplicate"
        }
        | collections.Counter(finding.kind for finding in assessment.findings),
        "duplicate_threshold": THRESHOLD,
        "configuration": {
            name: value
            for name, value in dataclasses.asdict(assessment.config).items()
            if assessment.is_run or name in MODEL_FIELDS
        },
    }


def _decimals(value: float | None, digits: int) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _readable(name: str) -> str:
    if name in NAMES_OF_NUMBERS:
        return NAMES_OF_NUMBERS[name]
    words = name.replace("_", " ").replace("roc auc", "ROC AUC").replace("f1", "F1")
    return f"{words} (macro)" if name in ("roc_auc", "average_precision") else words


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else text[:MAX_TEXT_LENGTH] + " …"
