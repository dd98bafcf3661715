import pytest
import torch
from torch import nn

from train_loop.steps.dropout import MaskedDropout, MaskSource, replace_dropout

SHAPE = torch.Size([500, 401])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_drop_the_requested_fraction_and_keep_the_mean(p: float) -> None:
    mask = MaskSource().mask(SHAPE, p, torch.float32)
    assert float((mask == 0).float().mean()) == pytest.approx(p, abs=0.005)
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01 / (1 - p))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-3)


def test_neighbours_and_successive_masks_are_independent() -> None:
    source = MaskSource()
    first, second = (source.mask(SHAPE, 0.5, torch.float64) - 1 for _ in range(2))
    assert abs(float((first * second).mean())) < 0.01
    assert abs(float((first[:, 1:] * first[:, :-1]).mean())) < 0.01


def test_masks_depend_only_on_the_seed() -> None:
    source = MaskSource()
    source.seed(3)
    first = source.mask(SHAPE, 0.1, torch.float32)
    source.mask(SHAPE, 0.1, torch.float32)
    source.seed(3)
    assert torch.equal(source.mask(SHAPE, 0.1, torch.float32), first)
    source.seed(4)
    assert not torch.equal(source.mask(SHAPE, 0.1, torch.float32), first)


def test_masks_stay_finite_for_a_probability_close_to_one() -> None:
    assert torch.isfinite(MaskSource().mask(SHAPE, 0.9999999, torch.float32)).all()


def test_every_plain_dropout_is_replaced_and_evaluation_is_unchanged() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3), nn.AlphaDropout(0.5)))
    replace_dropout(model)
    assert [type(module) for module in model.modules() if "Dropout" in type(module).__name__] == [
        MaskedDropout,
        MaskedDropout,
        nn.AlphaDropout,
    ]
    values = torch.ones(7, 3, dtype=torch.bfloat16)
    layer = model[1]
    assert torch.equal(layer.eval()(values), values)
    dropped = layer.train()(values)
    assert dropped.dtype == torch.bfloat16
    assert (dropped == 0).any()


def test_gradients_are_masked_like_the_values() -> None:
    values = torch.ones(50, 50, requires_grad=True)
    dropped = MaskedDropout(0.5, MaskSource())(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())
