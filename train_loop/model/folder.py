"""`model/`: the best weights and everything needed to load them, written atomically."""

from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.classifier import Classifier, write_classifier
from serve.contract.files import staged_folder
from train_loop.model.weights import last_layer


def write_model(
    folder: Path,
    model: PreTrainedModel,
    weights: Path | None,
    tokenizer: PreTrainedTokenizerFast,
    classifier: Classifier,
    card: str | None,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Write a model folder with the weights from a file, or else the model's own; the card becomes its README.md.

    It loads with `AutoModelForSequenceClassification.from_pretrained` and `pipeline`, and its
    `tokenizer.json` truncates as in training. A model of numbers learned (number - offset) / scale; the one written
    answers with the number.
    """
    tokenizer.model_max_length = classifier.max_length
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.enable_truncation(classifier.max_length, direction=classifier.truncation_side)
    with staged_folder(folder) as staged:
        state = None if weights is None else load_file(weights)
        if state is not None and classifier.problem_type == "regression":
            head, _ = last_layer(model)
            state[f"{head}.weight"] = state[f"{head}.weight"] * scale
            state[f"{head}.bias"] = state[f"{head}.bias"] * scale + offset
        model.save_pretrained(staged, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(staged)
        write_classifier(staged, classifier)
        if card is not None:
            (staged / "README.md").write_text(card, encoding="utf-8")
