"""Masks are taken as given: no look into them, and the same answers."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from counted_waits import CountedWaits
from tiny_models import ARCHITECTURES, ON_TRANSFORMERS_5, save_tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from train_loop.model.masks import PREPARE, restore_masks, take_masks_as_given

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # DeBERTa and ModernBERT

LOOKING = ["albert", "bert", "distilbert", "roberta", "xlm-roberta", *(["electra"] if ON_TRANSFORMERS_5 else [])]
"""Architectures that have fused attention and look into the mask."""


@pytest.fixture(autouse=True)
def _restored_modules() -> Iterator[None]:
    theirs = importlib.import_module(
        "transformers.masking_utils" if ON_TRANSFORMERS_5 else "transformers.modeling_attn_mask_utils"
    )
    yield
    for name, module in sys.modules.items():
        for prepare, ours in PREPARE.items():
            if name.startswith("transformers.models.") and vars(module).get(prepare) is ours:
                setattr(module, prepare, getattr(theirs, prepare))


def load(folder: Path, architecture: str) -> PreTrainedModel:
    has_fused = architecture in [*LOOKING, "modernbert"]
    return AutoModelForSequenceClassification.from_pretrained(
        save_tiny_model(folder, architecture), attn_implementation="sdpa" if has_fused else "eager"
    ).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_masks_are_not_looked_at_and_answers_stay(tmp_path: Path, architecture: str) -> None:
    model = load(tmp_path, architecture)
    ids = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 4] = 0  # the padding token, as a text may contain it
    full, padded = torch.ones_like(ids), torch.ones_like(ids)
    padded[2, 6:] = 0
    if architecture == "xlnet":
        padded = padded.flip(1)
    expected = [model(input_ids=ids, attention_mask=mask).logits for mask in (full, padded)]
    module = vars(sys.modules[type(model).__module__])
    before = {name: module.get(name) for name in PREPARE}
    needs_none = take_masks_as_given(model, pad_token_id=0)
    assert needs_none == (architecture in LOOKING)
    with CountedWaits() as waits:
        found = [model(input_ids=ids, attention_mask=mask).logits for mask in (full, padded)]
        if needs_none:
            found.append(model(input_ids=ids).logits)
    for logits, right in zip(found, [*expected, expected[0]], strict=False):
        torch.testing.assert_close(logits, right)
    if needs_none:
        assert waits.number == 0
        assert {name: module.get(name) for name in PREPARE} != before
    restore_masks()
    assert {name: module.get(name) for name in PREPARE} == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_no_mask_means_ones_in_transformers(tmp_path: Path, architecture: str) -> None:
    model = load(tmp_path, architecture)
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    with_ones = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(input_ids=ids).logits, with_ones)


@torch.inference_mode()
def test_transformers_itself_looks_into_masks(tmp_path: Path) -> None:
    """If this fails, transformers has stopped asking, and `masks.py` may go."""
    model = load(tmp_path, "bert")
    ids = torch.full((2, 5), 7)
    with CountedWaits() as with_mask:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with CountedWaits() as without:
        model(input_ids=ids)
    assert (with_mask.number, without.number) == (1, 0 if ON_TRANSFORMERS_5 else 2)


@torch.inference_mode()
def test_a_model_that_finds_padding_itself_keeps_its_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path, "bert")
    forward = model.bert.forward

    def masked_by_ids(input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        mask = (input_ids != 0).long() if attention_mask is None else attention_mask
        return forward(input_ids, attention_mask=mask, **options)

    monkeypatch.setattr(model.bert, "forward", masked_by_ids)
    for parameter in model.parameters():
        parameter.mul_(10)
    assert not take_masks_as_given(model, pad_token_id=0)
