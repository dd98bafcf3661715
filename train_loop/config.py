"""The configuration of a run: one frozen dataclass."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from serve.contract.decision import parse_abstain, parse_threshold
from serve.contract.errors import InputError
from serve.contract.field_limits import (
    AT_LEAST_1,
    FRACTION,
    FRACTION_ABOVE_0,
    FRACTION_BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_1024,
    Limit,
    out_of_range,
)
from serve.contract.labels import ProblemType
from serve.contract.long_texts import LongTexts, LongTextStrategy
from serve.contract.rows.file import given_delimiter
from serve.contract.text import CleaningMode

ClassWeights = Literal["none", "balanced", "sqrt", "effective"] | dict[str, float]
LengthGrouping = Literal["window", "batch", "none"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
LossName = Literal["cross_entropy", "focal", "mse", "huber"]
LabelMetric = Literal["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_recall"]
SetMetric = Literal["micro_f1", "samples_f1", "subset_accuracy", "average_precision", "label_ranking_average_precision"]
NumberMetric = Literal["spearman", "pearson", "r2", "rmse", "mae"]
MetricName = Literal[LabelMetric, SetMetric, NumberMetric, "loss"]
NEEDS = {
    "head_tokens": "long_texts head_tail",
    **dict.fromkeys(("window_stride", "max_windows", "window_pooling"), "long_texts windows"),
    **dict.fromkeys(("teacher_rows", "distil_weight", "distil_temperature"), "teacher"),
    "student_layer_choice": "student_layers",
    "compile_mode": "compile true",
}
"""Field -> another, and perhaps its value, without which it has no effect."""
LOWER_IS_BETTER = ("loss", "rmse", "mae")

AT_LEAST_4_TOKENS = Limit(lambda value: value >= 4, "at least 4 tokens (special tokens included)")
PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BY_NAME = "auto"  # as --resume: the run of the name --run_name, if there is one, or a new one
CONFIG_FILE = "config.yaml"
"""The resolved configuration in a run directory; it runs again with --config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Sizes are in rows, tokens or optimizer steps, as stated per field."""

    # The model
    model_name: str = PACKAGED_MODEL
    """Hub id or folder of a pretrained encoder; the default is also available as a package (extra `demo`)."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the Hub; null: its default branch."""

    # The rows
    dataset_name: str | None = None
    """Hub id, or a folder with train, validation and test files, or one of `save_to_disk`."""
    dataset_config: str | None = None
    """Configuration of a Hub data set."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub data set; null: its default branch."""
    train_file: str | None = None
    """Training rows: a csv, tsv, jsonl or parquet file; text may be gzip (.csv.gz)."""
    validation_file: str | None = None
    """Rows that select the best model; null: cut `validation_fraction` from the training rows."""
    test_file: str | None = None
    """Rows for the final metrics only; null: cut `test_fraction` from the training rows."""
    validation_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Fraction of the training rows to hold out, stratified by label, if there is no validation split."""
    test_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """The same for a missing test split; 0: no test split."""
    max_train_rows: Annotated[int, AT_LEAST_1] | None = None
    """Training rows to use, drawn by label; null: all. More of them hold those that fewer do."""
    delimiter: str | None = None
    """Character between the fields of csv files, such as ";"; null: a comma, and a tab in tsv."""
    text_column: str = "text"
    """Column with the text."""
    text_pair_column: str | None = None
    """Column with the second text of a pair; null: single texts."""
    label_column: str = "label"
    """Column with the label: strings, whole numbers or a ClassLabel; lists of them for several labels a row."""
    label_names: list[str] | None = None
    """Names of integer labels 0, 1, ... in order; null: the data's own."""
    label_separator: str | None = None
    """Between the labels of a row in one cell, such as ","; an empty cell has none. null: one label a row."""
    label_columns: list[str] | None = None
    """A column of 0 and 1 for each of several labels, in the place of label_column."""
    problem_type: ProblemType | None = None
    """null: several labels if they are lists, or by the two fields above; regression: the label is a number."""
    value_range: tuple[float, float] | None = None
    """Numbers: lowest and highest answer, such as [0, 5]; null: no limits."""
    cleaning: CleaningMode = "none"
    """Text cleaning, saved with the model and applied when serving too."""
    max_length: Annotated[int, AT_LEAST_4_TOKENS] | None = None
    """Longest input of the model, or length of a window [tokens]; null: the model's limit."""

    # Longer texts
    long_texts: LongTextStrategy = "truncate"
    """truncate: what fits is read; head_tail: both ends; windows: all of it, in pieces whose logits are pooled."""
    head_tokens: Annotated[int, NOT_NEGATIVE] | None = None
    """head_tail: tokens kept from the start, the rest from the end; null: a quarter."""
    window_stride: Annotated[int, AT_LEAST_1] | None = None
    """windows: most tokens from the start of one to that of the next; null: windows do not overlap."""
    max_windows: Annotated[int, UP_TO_1024] = 32
    """windows: most of a text; those of a longer one are spread evenly over it."""
    window_pooling: Literal["mean", "max", "auto"] = "mean"
    """windows, several labels: the mean of their logits, or the highest; auto: what is better on validation rows."""

    # The steps
    epochs: Annotated[int, AT_LEAST_1] = 3
    """Passes over the training rows."""
    max_steps: Annotated[int, AT_LEAST_1] | None = None
    """Optimizer steps after which training and the learning-rate schedule end; null: all epochs."""
    batch_size: Annotated[int, AT_LEAST_1] = 32
    """Rows per optimizer step, over all processes together."""
    gradient_accumulation_steps: Annotated[int, AT_LEAST_1] | None = None
    """Forward passes per process and step; null: derived from max_tokens_per_forward."""
    max_tokens_per_forward: Annotated[int, AT_LEAST_1] | None = None
    """Most tokens of one forward pass, padding included; null: no limit. Changes only rounding and dropout's draws."""
    length_grouping: LengthGrouping = "window"
    """window: rows of similar length share a step; batch: random steps, sorted within; none: random order."""

    # The optimizer
    learning_rate: Annotated[float, POSITIVE] | None = None
    """Peak learning rate of AdamW; null: by the width of the model and the number of steps, at most 5e-4."""
    layer_decay: Annotated[float, FRACTION_ABOVE_0] | None = None
    """Learning rate of each layer, as a share of the layer above; null: 1, or what suits a null learning_rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up; linear and cosine end at 0."""
    warmup_ratio: Annotated[float, FRACTION_BELOW_1] = 0.06
    """Fraction of the optimizer steps over which the learning rate rises linearly."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Decoupled weight decay; never on biases and norms."""
    adam_beta1: Annotated[float, FRACTION_BELOW_1] = 0.9
    """Decay of AdamW's running mean of gradients."""
    adam_beta2: Annotated[float, FRACTION_BELOW_1] = 0.999
    """Decay of AdamW's running mean of squared gradients."""
    adam_epsilon: Annotated[float, POSITIVE] = 1e-8
    """Added to AdamW's denominator."""
    max_grad_norm: Annotated[float, POSITIVE] | None = 1.0
    """Gradients are clipped to this global 2-norm; null: no clipping."""

    # The loss
    loss: LossName | None = None
    """focal: times (1 - p)^focal_gamma; mse, huber (delta 1): of standardized numbers; null: cross_entropy, or mse."""
    focal_gamma: Annotated[float, NOT_NEGATIVE] = 2.0
    """Exponent of the focal loss."""
    class_weights: ClassWeights = "none"
    """balanced: 1/count; sqrt: 1/sqrt(count); effective: Cui et al. 2019; or a mapping label -> weight. Several labels:
    weight of the rows with the label, balanced: rows without it / rows with it."""
    label_smoothing: Annotated[float, FRACTION_BELOW_1] = 0.0
    """Fraction of the target spread over all classes, in [0, 1)."""
    dropout: Annotated[float, FRACTION_BELOW_1] | None = None
    """Every dropout probability of the model; null: the model's own."""

    # A teacher, and a student made from the model
    teacher: str | None = None
    """Run directory, folder or Hub id of a classifier of the same labels, whose logits are learned too."""
    teacher_rows: str | None = None
    """File with texts, in the same columns, that only the teacher labels; texts of the other rows are left out."""
    distil_weight: Annotated[float, FRACTION] = 0.5
    """The teacher's share of the loss of a row that has a label."""
    distil_temperature: Annotated[float, POSITIVE] = 2.0
    """The logits of both are divided by it when they are compared."""
    student_layers: Annotated[int, AT_LEAST_1] | None = None
    """Layers of the model to keep; null: all."""
    student_layer_choice: Literal["even", "importance"] = "even"
    """even: evenly spaced, the last among them; importance: whose removal hurts least on validation rows."""
    student_ffn: Annotated[int, AT_LEAST_1] | None = None
    """Feed-forward units to keep in each layer, the most active ones; null: all."""

    # Answers
    abstain: str = "none"
    """When to answer "I don't know": score<0.6; or accuracy>=0.95, below the score that keeps it on validation rows."""
    threshold: str = "0.5"
    """Several labels: score from which one is given: a number; or by label on validation rows, f1: where F1 is highest,
    precision>=0.9 or recall>=0.9."""
    threshold_scope: Literal["label", "global"] = "label"
    """label: a threshold for each, where it has rows enough; global: one for all."""

    # Precision and speed
    mixed_precision: MixedPrecision = "auto"
    """auto: bf16 if the hardware has it, fp16 on other GPUs, else no."""
    compile: bool = False
    """Compile the model in place (torch.compile, dynamic shapes); pays off on long runs."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of torch.compile; reduce-overhead uses CUDA graphs."""
    cuda_graphs: bool | None = None
    """Record each shape's forward and backward pass as a CUDA graph, on one GPU; null: for BERT, unless in fp16."""
    attn_implementation: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention; auto: torch's fused one (sdpa) on a GPU where the model has it, else eager."""
    tf32: bool = False
    """With mixed_precision no, multiply in TF32 on an NVIDIA GPU: faster, with a mantissa of 10 bits."""

    # Evaluation and checkpoints
    eval_every: Annotated[int, AT_LEAST_1] | None = None
    """Optimizer steps between evaluations; null: evaluate at the end of each epoch."""
    eval_max_tokens_per_forward: Annotated[int, AT_LEAST_1] = 8192
    """Most tokens of one forward pass when evaluating, padding included."""
    metric_for_best: MetricName | None = None
    """Validation metric that selects the best model; null: macro_f1, for several labels average_precision (macro), for
    numbers r2."""
    early_stopping_patience: Annotated[int, AT_LEAST_1] | None = None
    """Evaluations in a row without a new best after which training stops; null: never."""
    save_every: Annotated[int, AT_LEAST_1] | None = None
    """Optimizer steps between checkpoints, in addition to one at each evaluation; null: only those."""
    keep_checkpoints: Annotated[int, AT_LEAST_1] = 2
    """Newest checkpoints to keep, in addition to the best."""
    output_dir: str = "runs"
    """Folder in which the run directory is created."""
    run_name: str | None = None
    """Name of the run directory; null: built from time, model and data."""
    resume: str | None = None
    """Run directory to continue from its newest valid checkpoint; auto: the one named run_name, or else a new run."""
    push_to_hub: str | None = None
    """Private Hub repository (name, or owner/name) to upload the finished run to; null: no upload."""

    # Logging and the seed
    log_every: Annotated[int, AT_LEAST_1] = 10
    """Optimizer steps between entries in logs/metrics.jsonl and the trackers."""
    baselines: bool = True
    """Compare with simpler models (a constant answer; a linear model of TF-IDF features), in a minute at most."""
    trackers: list[str] = dataclasses.field(default_factory=list)
    """Accelerate trackers: tensorboard, wandb, mlflow, comet_ml, aim, clearml, dvclive, swanlab, trackio."""
    seed: Annotated[int, NOT_NEGATIVE] = 42
    """Seed of the splits, the order of rows, dropout and the new head."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Column of the text, or of both texts of a pair."""
        return (self.text_column,) if self.text_pair_column is None else (self.text_column, self.text_pair_column)

    @property
    def long_text_rule(self) -> LongTexts:
        """What is read of long texts, as in the contract."""
        return LongTexts(
            strategy=self.long_texts,
            head_tokens=self.head_tokens,
            window_stride=self.window_stride,
            max_windows=self.max_windows,
            pooling="max" if self.window_pooling == "max" else "mean",
        )

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Column of the label, or of each of several."""
        return (self.label_column,) if self.label_columns is None else tuple(self.label_columns)

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return [*self.text_columns, *self.answer_columns]

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise InputError("\n".join(problems))


def _problems(config: TrainConfig) -> Iterator[str]:
    """Yield everything that is wrong with a configuration, each with its remedy."""
    yield from out_of_range(config)
    for field in dataclasses.fields(config):
        needed, _, value = NEEDS.get(field.name, "").partition(" ")
        if needed and getattr(config, field.name) != field.default:
            found = getattr(config, needed)
            if found is None or (value and str(found).lower() != value):
                yield f"--{field.name} needs --{NEEDS[field.name]}"
    for check in (
        lambda: given_delimiter(config.delimiter),
        lambda: parse_abstain(config.abstain),
        lambda: parse_threshold(config.threshold),
    ):
        try:
            check()
        except InputError as error:
            yield str(error)
    yield from _problems_of_rows(config)
    yield from _problems_of_steps(config)
    if config.run_name is not None and (
        config.run_name in ("", ".", "..", "latest") or Path(config.run_name).name != config.run_name
    ):
        yield f"--run_name must be a plain folder name, found {config.run_name!r}"
    if config.resume == BY_NAME and config.run_name is None:
        yield "--resume auto looks for the run by its name; pass --run_name NAME too"


def _problems_of_rows(config: TrainConfig) -> Iterator[str]:
    if config.validation_fraction + config.test_fraction >= 1:
        yield "--validation_fraction and --test_fraction leave no rows to train on; their sum must be below 1"
    for name in ("head_tokens", "window_stride"):
        tokens = getattr(config, name)
        if tokens is not None and config.max_length is not None and tokens >= config.max_length:
            yield f"--{name} {tokens} must be below --max_length {config.max_length}; leave it out for the usual"
    if config.validation_fraction <= 0 and config.validation_file is None and config.dataset_name is None:
        yield "--validation_fraction 0 leaves no rows to select the best model; pass --validation_file or a fraction"
    if config.dataset_name is not None and config.train_file is not None:
        yield "--dataset_name and --train_file both name training rows; pass one"
    if config.dataset_name is None and config.train_file is None:
        yield (
            "no training rows: pass --train_file FILE or --dataset_name ID_OR_FOLDER "
            "(no argument at all runs the quickstart; with other flags it is --config quickstart)"
        )
    if config.dataset_name is not None and (config.validation_file or config.test_file):
        yield "--validation_file and --test_file need --train_file; a --dataset_name has its own splits"
    if config.dataset_config is not None and config.dataset_name is None:
        yield "--dataset_config needs --dataset_name"
    if config.text_pair_column == config.text_column:
        yield f"--text_column and --text_pair_column are both {config.text_column!r}; a pair needs two columns"
    for name in [name for name in config.answer_columns if name in config.text_columns]:
        yield f"--label_column{'s' * (config.label_columns is not None)} {name!r} is also a text column"
    if config.label_columns is not None and not _are_distinct(config.label_columns):
        yield f"--label_columns must be two or more distinct columns, found {config.label_columns}"
    if config.label_columns is not None and config.label_separator is not None:
        yield "--label_columns and --label_separator are two ways to write several labels; pass one"
    has_several = bool(config.label_columns or config.label_separator)
    if has_several and config.problem_type not in (None, "multi_label_classification"):
        flags = "--label_columns and --label_separator"
        yield f"--problem_type {config.problem_type}: {flags} are for several labels a row"
    if config.label_names is not None and not _are_distinct(config.label_names):
        yield f"--label_names must be two or more distinct names, found {config.label_names}"
    if (ends := config.value_range) and (config.problem_type != "regression" or not ends[0] < ends[1]):
        yield "--value_range LOWEST HIGHEST limits numbers, and needs --problem_type regression"


def _problems_of_steps(config: TrainConfig) -> Iterator[str]:
    if config.gradient_accumulation_steps is not None and config.max_tokens_per_forward is not None:
        yield "--gradient_accumulation_steps and --max_tokens_per_forward both say how a step is cut; pass one"
    is_of_numbers = config.loss in ("mse", "huber")
    if config.loss is not None and is_of_numbers != (config.problem_type == "regression"):
        yield f"--loss {config.loss} is for {'numbers; pass --problem_type regression' if is_of_numbers else 'labels'}"
    if config.compile and config.cuda_graphs:
        yield "--cuda_graphs records what --compile would replace; pass one (--compile_mode reduce-overhead has both)"
    if config.tf32 and (precision := config.mixed_precision) != "no":
        yield f"--tf32 is for float32; with --mixed_precision {precision}, leave it out, or pass --mixed_precision no"
    if isinstance(config.class_weights, dict):
        if unquoted := [label for label in config.class_weights if not isinstance(label, str)]:
            yield f"--class_weights: {unquoted} are not strings in YAML; put quotes around the labels"
        if bad := {k: v for k, v in config.class_weights.items() if not (math.isfinite(v) and v > 0)}:
            yield f"--class_weights must be positive, found {bad}"


def _are_distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names) >= 2
