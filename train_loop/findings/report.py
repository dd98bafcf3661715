"""report.html: everything to look at after a run, in one self-contained file."""

import base64
import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import get_args

from train_loop.findings.assessment import Assessment
from train_loop.findings.audit import Kind
from train_loop.findings.near_duplicates import THRESHOLD
from train_loop.metrics.probabilities import AREAS

MODEL_FIELDS = (
    *("model_name", "model_revision", "text_column", "text_pair_column", "label_column", "delimiter"),
    *("label_names", "cleaning", "max_length", "long_texts"),
)
"""Fields of the configuration that say something of a model that was trained elsewhere."""
ABBREVIATED = {"spearman": "Spearman", "pearson": "Pearson", "r2": "R²", "rmse": "RMSE", "mse": "MSE", "mae": "MAE"}
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
    environment.filters |= {"decimals": _decimals, "readable": _readable, "thousands": "{:,}".format}
    main = assessment.main
    mistakes = main.mistakes()
    shown = mistakes[:MAX_MISTAKES]
    kinds = (kind for kind in get_args(Kind) if assessment.compared_with_training or kind != "near_duplicate")
    return environment.get_template("report.html").render(
        assessment=assessment,
        main=main,
        classifier=main.classifier,
        pictures=[
            {
                "alt": alt,
                "wide": name == "confusion_matrix.png" and len(main.labels) > 8,
                "content": base64.b64encode((pictures / name).read_bytes()).decode(),
            }
            for name, alt in PICTURES.items()
            if (pictures / name).is_file()
        ],
        num_mistakes=len(mistakes),
        mistakes=zip(shown, main.texts_of(shown), strict=True),
        audit=assessment.findings[:MAX_FINDINGS],
        audit_counts=dict.fromkeys(kinds, 0) | Counter(finding.kind for finding in assessment.findings),
        duplicate_threshold=THRESHOLD,
        max_text_length=MAX_TEXT_LENGTH,
        configuration={
            name: value
            for name, value in dataclasses.asdict(assessment.config).items()
            if assessment.is_run or name in MODEL_FIELDS
        },
    )


def _decimals(value: float | None, digits: int) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _readable(name: str) -> str:
    words = ABBREVIATED.get(name) or name.replace("_", " ").replace("roc auc", "ROC AUC").replace("f1", "F1")
    return f"{words} (macro)" if name in AREAS else words
