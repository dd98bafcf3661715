"""Attention masks on a GPU, taken as they are given: what the feed knows, the host need not wait to find out."""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, masking_utils


def take_masks_as_given(model: PreTrainedModel, pad_token_id: int) -> bool:
    """Let a model use masks without looking into them; return whether rows without padding need none.

    transformers evaluates `torch.all(mask == 1)` in each forward pass, so that the host waits for the GPU. If all are
    ones, attention runs without a mask, which allows the flash kernel. To version 4 a missing mask is worse: the tokens
    are searched for padding, where the host waits too, and then ones are made and looked at. Here neither is looked at,
    and without a mask attention has none. Models that do not ask are left as they are and need their mask.

    Call it with the model on the CPU. It changes the model and, until `restore_masks`, the functions of its class's
    module: an export in the same process would not find the attention that it fuses.
    """
    module = sys.modules[type(model).__module__]
    found = [name for name in PREPARE if hasattr(module, name)]
    if model.config._attn_implementation != "sdpa" or not found or hasattr(module, WINDOW):
        return False
    for name in found:
        _replaced.setdefault((module, name), getattr(module, name))
        setattr(module, name, PREPARE[name])
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.warn_if_padding_and_no_attention_mask = lambda *_, **__: None  # the host would wait
    return _ones_are_the_default(model, pad_token_id)


_replaced: dict[tuple[ModuleType, str], Any] = {}


def restore_masks() -> None:
    """Undo what `take_masks_as_given` did to modules; models that it was called with are then slower."""
    while _replaced:
        (module, name), function = _replaced.popitem()
        setattr(module, name, function)


def _expand(mask: Tensor, *_: Any, **__: Any) -> Tensor | None:
    """Return a mask [B, T] as the keys that each query attends to, bool [B, 1, T, T], or None.

    The feed's masks are whole numbers. A mask of another type is the ones that a model makes if it is given none.
    """
    if mask.is_floating_point():
        return None
    return mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)


def _create(config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None = None, *args: Any, **named: Any) -> Any:
    """Do the same where transformers 5 calls it, for whatever attention; a mask that is missing is None there."""
    if config._attn_implementation != "sdpa":
        return masking_utils.create_bidirectional_mask(config, inputs_embeds, attention_mask, *args, **named)
    return None if attention_mask is None else _expand(attention_mask)


PREPARE = {"_prepare_4d_attention_mask_for_sdpa": _expand, "create_bidirectional_mask": _create}
"""The functions of transformers 4 and 5 that prepare a mask for torch's fused attention -> what takes their place."""
WINDOW = "create_bidirectional_sliding_window_mask"
"""Models with this one (ModernBERT on transformers 5) look into their mask twice, and are left as they are."""


@torch.inference_mode()
def _ones_are_the_default(model: PreTrainedModel, pad_token_id: int) -> bool:
    """Whether the logits are the same without a mask, even if a row contains the padding token."""
    other = 1 if pad_token_id != 1 else 2
    input_ids = torch.tensor([[other, pad_token_id, other, other], [other] * 3 + [pad_token_id]])
    was_training = model.training
    model.eval()
    given = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    missing = model(input_ids=input_ids).logits
    model.train(was_training)
    return torch.allclose(given, missing, rtol=1e-3, atol=1e-5)
