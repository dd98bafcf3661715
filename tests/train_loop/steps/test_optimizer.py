import copy
import math
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, save_tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from train_loop.config import TrainConfig
from train_loop.steps.optimizer import build_optimizer, learning_rate_at, parameter_groups, update

# torch deprecates what transformers still imports for DeBERTa and ModernBERT.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SHAPES = ("linear", "cosine", "constant")


def trace(num_updates: int, warmup_ratio: float, shape: str, peak: float = 1.0) -> list[float]:
    """Return the learning rate of every update, and the one after the last."""
    config = TrainConfig(train_file="rows.csv", learning_rate=peak, warmup_ratio=warmup_ratio, lr_schedule=shape)
    return [learning_rate_at(update, num_updates, config) for update in range(num_updates + 1)]


# The learning rate


def test_linear_schedule_of_ten_updates_with_two_of_warm_up() -> None:
    found = trace(10, 0.2, "linear", peak=4.0)
    assert found == pytest.approx([2.0, 4.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_cosine_schedule_is_at_half_its_peak_halfway_through_the_decay() -> None:
    found = trace(12, 2 / 12, "cosine", peak=4.0)
    assert found[:3] == [2.0, 4.0, 4.0]
    assert found[7] == pytest.approx(2.0)


def test_constant_schedule_stays_at_its_peak() -> None:
    assert trace(10, 0.2, "constant", peak=4.0) == [2.0] + [4.0] * 10


@pytest.mark.parametrize("shape", SHAPES)
@given(num_updates=st.integers(2, 300), warmup_ratio=st.floats(0, 0.5))
def test_every_update_of_a_run_has_a_positive_learning_rate(shape: str, num_updates: int, warmup_ratio: float) -> None:
    *rates, after = trace(num_updates, warmup_ratio, shape, peak=3e-4)
    num_warmup = math.ceil(warmup_ratio * num_updates - 1e-9)
    warm_up = rates[:num_warmup]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(3e-4)
    assert rates[num_warmup] == pytest.approx(3e-4)
    assert warm_up == sorted(set(warm_up))  # rises with each update
    assert rates[num_warmup:] == sorted(rates[num_warmup:], reverse=True)
    assert after == pytest.approx(3e-4 if shape == "constant" else 0, abs=1e-18)


@pytest.mark.parametrize(
    ("shape", "reference"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
@pytest.mark.parametrize("num_warmup", [0, 1, 5])
def test_schedule_matches_transformers_with_warm_up_one_update_ahead(
    shape: str, reference: object, num_warmup: int
) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    factor = reference(optimizer, num_warmup, 50).lr_lambdas[0]
    # transformers starts its warm-up at 0, an update that learns nothing.
    expected = [factor(update + 1 if update < num_warmup else update) for update in range(51)]
    assert trace(50, num_warmup / 50, shape) == pytest.approx(expected, abs=1e-15)


# The parameter groups


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny_classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = save_tiny_model(tmp_path_factory.mktemp("optimizer") / request.param, request.param)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def undecayed_names(model: torch.nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    return {names[id(parameter)] for group in groups if not group["weight_decay"] for parameter in group["params"]}


def test_norms_and_biases_of_every_architecture_are_not_decayed(tiny_classifier: torch.nn.Module) -> None:
    expected = set()
    for module_name, module in tiny_classifier.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.LayerNorm) or "LayerNorm" in type(module).__name__ or name.endswith("bias"):
                expected.add(f"{module_name}.{name}")
    assert len(expected) > 4
    assert undecayed_names(tiny_classifier) == expected


def test_weights_of_every_architecture_are_decayed(tiny_classifier: torch.nn.Module) -> None:
    undecayed = undecayed_names(tiny_classifier)
    for module_name, module in tiny_classifier.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            assert f"{module_name}.weight" not in undecayed


def test_each_trainable_parameter_is_in_exactly_one_group(tiny_classifier: torch.nn.Module) -> None:
    first = next(tiny_classifier.parameters())
    first.requires_grad_(False)
    groups = parameter_groups(tiny_classifier, 0.1)
    first.requires_grad_(True)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in tiny_classifier.parameters() if p is not first)


def test_the_learning_rate_falls_from_the_head_to_the_embeddings(tiny_classifier: torch.nn.Module) -> None:
    names = {id(parameter): name for name, parameter in tiny_classifier.named_parameters()}
    groups = parameter_groups(tiny_classifier, 0.1, layer_decay=0.5)
    shares = {names[id(parameter)]: group["share"] for group in groups for parameter in group["params"]}
    assert sorted(shares) == sorted(names.values())
    num_layers = tiny_classifier.config.num_hidden_layers
    is_shared = tiny_classifier.config.model_type == "albert"  # whose layers are one
    of_layers = {name: re.search(r"\.(?:layers?|albert_layers)\.(\d)\.", name) for name in shares}
    assert sum(bool(found) for found in of_layers.values()) > 4
    for name, found in of_layers.items():
        if found:
            assert shares[name] == 0.5 ** (0 if is_shared else num_layers - 1 - int(found[1]))
    embeddings = {name for name in shares if "word_emb" in name or "tok_emb" in name}
    assert {shares[name] for name in embeddings} == {0.5 if is_shared else 0.5**num_layers}
    head = {name for name in shares if re.match(r"classifier|pre_classifier|logits_proj|pooler|head", name)}
    assert head
    assert {shares[name] for name in head} == {1.0}


def test_without_layer_decay_every_layer_learns_alike(tiny_classifier: torch.nn.Module) -> None:
    assert {group["share"] for group in parameter_groups(tiny_classifier, 0.1)} == {1.0}


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("distilbert", r"layer\.\d\.(sa_layer_norm|output_layer_norm)\.weight"),
        ("modernbert", r"layers\.\d\.mlp_norm\.weight|final_norm\.weight|embeddings\.norm\.weight|head\.norm\.weight"),
    ],
)
def test_norms_with_unusual_names_are_not_decayed(tmp_path: Path, architecture: str, names: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(save_tiny_model(tmp_path / "model", architecture))
    named = {name for name, _ in model.named_parameters() if re.search(names, name)}
    assert len(named) >= 4
    assert named <= undecayed_names(model)


def test_weight_decay_moves_weights_but_not_norms_and_biases() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(train_file="rows.csv", learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name == "0.weight" else 1.0))


def test_optimizer_has_the_configured_settings(tiny_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    config = TrainConfig(
        train_file="rows.csv", learning_rate=0.3, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.2
    )
    decayed, undecayed = build_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.2, 0.0)
    for group in (decayed, undecayed):
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.8, 0.95), 1e-6)


def test_a_bad_gradient_leaves_weights_and_statistics_alone() -> None:
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    optimizer = build_optimizer(model, TrainConfig(train_file="rows.csv"))
    states = []
    for gradient, is_bad in [(1.0, False), (float("nan"), True)]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        assert update(accelerator, optimizer, 0.1, torch.tensor(is_bad)) == is_bad
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"])))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
