"""A model and its tokenizer made to agree on tokens, and on the side where padding changes nothing."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.classifier import Side
from serve.contract.errors import InputError
from train_loop.model.weights import Report


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, report: Report) -> None:
    """Make a model and a tokenizer agree on tokens and padding; `report` gets what was changed.

    Tokens that the embedding lacks get new rows. The padding side becomes the one on which padding does not change the
    model's answers: position embeddings count from the first token, padding or not.

    Raises:
        InputError: padding changes the answers on either side.
    """
    num_tokens, num_rows = max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().num_embeddings
    if num_tokens > num_rows:
        model.resize_token_embeddings(num_tokens)
        report(f"Embedding: {num_tokens - num_rows} new rows, for tokens that only the tokenizer has.")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token before the padding
    side = fitting_padding_side(model, tokenizer)
    if side is None:
        raise InputError(
            "--model_name: the model's answers change with padding on either side; pad_token_id is "
            f"{model.config.pad_token_id} in its config.json and {tokenizer.pad_token_id} in its tokenizer: make "
            "them equal, or choose another model"
        )
    if (was := tokenizer.padding_side) != side:
        pad_on(tokenizer, side)
        report(f"Padding: on the {side}, because padding on the {was} changes this model's answers.")


def pad_on(tokenizer: PreTrainedTokenizerFast, side: Side) -> None:
    """Change the padding side of a tokenizer; the constructor gets init_kwargs again when the saved one is loaded."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side


def fitting_padding_side(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Side | None:
    """Return the side where padding does not change the answers, if possible the tokenizer's; None if both do."""
    sides: tuple[Side, Side] = ("right", "left") if tokenizer.padding_side == "right" else ("left", "right")
    return next((side for side in sides if not padding_changes_answers(model, tokenizer, side)), None)


@torch.inference_mode()
def padding_changes_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, side: str) -> bool:
    """Whether the logits of a short row change with padding on a side.

    Raises:
        InputError: they are others each time.
    """
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(min(model.get_input_embeddings().num_embeddings, 64)) if token not in special][:4]
    filler = [tokenizer.pad_token_id] * 4
    mask, no_mask = [1] * len(ids), [0] * len(filler)
    padded_row = (filler + ids, no_mask + mask) if side == "left" else (ids + filler, mask + no_mask)
    rows = [(ids, mask), (ids, mask), padded_row]
    was_training = model.training
    model.eval()
    alone, again, padded = (
        model(input_ids=torch.tensor([row]), attention_mask=torch.tensor([mask])).logits for row, mask in rows
    )
    model.train(was_training)
    if not alone.isfinite().all():
        raise InputError(f"{model.config.model_type}: the model's logits are not finite; its weights are damaged")
    if not torch.equal(alone, again):
        raise InputError(
            f"{model.config.model_type}: the model answers the same row differently each time, so its own code leaves "
            "a dropout on; choose another model"
        )
    return bool((alone - padded).abs().max() > 1e-3 * alone.abs().max())
