"""Tiny bundles with a handwritten graph: a text's logits are the mean of its tokens' weights.

So logits depend only on the tokens of their own row, whatever the padding, and a test can compute them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from serve.contract.bundle import Manifest, Variant, Verification, record_files, write_manifest
from serve.contract.classifier import Classifier, Side, write_classifier
from serve.contract.decision import Decision
from serve.contract.drift import Distribution
from serve.contract.labels import ProblemType
from serve.contract.long_texts import LongTexts
from serve.contract.text import CleaningMode

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*(f"w{number}" for number in range(60)), "good", "bad", "fine")
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
VERIFICATION = Verification(
    split="validation",
    rows=200,
    max_abs_logit_difference=1e-6,
    label_agreement=1.0,
    num_ties=0,
    accuracy=0.75,
    pytorch_accuracy=0.75,
    macro_f1=0.5,
    pytorch_macro_f1=0.5,
    accuracy_difference_interval=(-0.01, 0.0),
    num_batch_flips=0,
    max_abs_batch_probability_difference=0.0,
    shape_differences={"right": 1e-6, "left": 1e-6, "mixed": 1e-6},
)


def token_weights(num_labels: int = 3) -> NDArray[np.float32]:
    """Return the weights of each token and segment, [V, 2, C].

    "good" and "bad" vote for the last and first label; for numbers (C = 1), "bad" lowers them.
    """
    weights = np.random.default_rng(0).normal(0, 0.3, (len(VOCABULARY), 2, num_labels)).astype(np.float32)
    weights[VOCABULARY["good"], :, -1] = weights[VOCABULARY["bad"], :, 0] = 5
    if num_labels == 1:
        weights[VOCABULARY["bad"]] = -5
    weights[VOCABULARY["[PAD]"]] = 1000  # makes unmasked padding visible
    return weights


def save_tiny_bundle(
    folder: Path,
    *,
    labels: Sequence[str] = ("negative", "neutral", "positive"),
    text_pair_column: str | None = None,
    max_length: int = 16,
    truncation_side: Side = "right",
    padding_side: Side = "right",
    temperature: float = 1.0,
    cleaning: CleaningMode = "none",
    problem_type: ProblemType = "single_label_classification",
    label_separator: str | None = None,
    decision: Decision = Decision(),  # noqa: B008 - frozen
    long_texts: LongTexts = LongTexts(),  # noqa: B008 - frozen
    reference: Mapping[str, Distribution] = MappingProxyType({}),
    examples: tuple[tuple[str, ...], ...] = (),
    card: str = "# A tiny model\n",
) -> Path:
    """Write a bundle with one variant, `fp32`, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_classifier(
        folder,
        Classifier(
            name="tiny",
            labels=tuple(labels),
            text_column="text",
            text_pair_column=text_pair_column,
            cleaning=cleaning,
            max_length=max_length,
            truncation_side=truncation_side,
            padding_side=padding_side,
            temperature=temperature,
            problem_type=problem_type,
            label_separator=label_separator,
            decision=decision,
            long_texts=long_texts,
            reference=dict(reference),
        ),
    )
    word_tokenizer().save(str(folder / "tokenizer.json"))
    onnx.save(masked_mean_graph(token_weights(len(labels))), folder / "model.onnx")
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_manifest(
        folder,
        Manifest(
            name="tiny",
            input_names=INPUT_NAMES,
            pad_token_id=VOCABULARY["[PAD]"],
            examples=examples,
            canary=("w1 good",) if text_pair_column is None else ("w1 good", "w2"),
            variants={
                "fp32": Variant(
                    file="model.onnx", method="by hand", canary_logits=(0.0,) * len(labels), verification=VERIFICATION
                )
            },
            default_variants={"cpu": "fp32"},
            files=record_files(folder),
        ),
    )
    return folder


def word_tokenizer() -> Tokenizer:
    """Return a lower-casing tokenizer of the vocabulary's words, with BERT's special tokens."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def masked_mean_graph(weights: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a graph: [B, T] int64 inputs -> logits [B, C], the mean over real tokens of weights [V, 2, C]."""
    table = weights.reshape(-1, weights.shape[2])  # row 2 * token + segment
    constants = {"table": table, "two": np.array(2), "last": np.array([2]), "tokens": np.array([1])}
    nodes = [
        helper.make_node("Mul", ["input_ids", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "token_type_ids"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["looked_up"]),  # [B, T, C]
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["looked_up", "mask_3d"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sums"], keepdims=0),  # [B, C]
        helper.make_node("ReduceSum", ["mask", "tokens"], ["counts"], keepdims=1),  # [B, 1]
        helper.make_node("Div", ["sums", "counts"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "masked_mean",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUT_NAMES],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[2]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
