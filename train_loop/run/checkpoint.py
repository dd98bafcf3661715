"""Checkpoints: staged, hashed, flushed, renamed; the newest and the best are kept.

    checkpoints/step-00001200/
      model.safetensors       weights
      optimizer.safetensors   AdamW's state, by parameter name
      state.json              the run's progress, and its identity: model, labels, data
      manifest.json           bytes and SHA-256 of the three; written last

Tensors are unsharded and named, whatever the number of processes, so that a run can resume on another
number of them. No random generator's state is kept: every step seeds from (seed, step, process).
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from serve.contract.bundle import record_files
from serve.contract.errors import InputError
from serve.contract.files import damage_of, staged_folder, write_json
from train_loop.machine.processes import on_main_process

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1

_SAVE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # unsharded tensors, on the main process only


@dataclasses.dataclass
class TrainState:
    """The progress of a run, apart from its tensors."""

    step: int = 0  # optimizer steps completed
    num_updates: int = 0
    """Steps that changed the weights; fp16 skips some. Warm-up and decay count these."""
    skipped_in_a_row: int = 0  # updates that fp16 skipped since the last one it made
    best_score: float | None = None  # best validation value of the run's metric so far; the loss is negated
    best_loss: float = 0.0  # validation loss of the best model; the lower one wins among equal scores
    best_step: int | None = None  # step of the best model
    evaluations_since_best: int = 0  # evaluations in a row that did not raise the best score
    seconds: float = 0.0  # time spent in the loop, over all resumes
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Validation metrics at each evaluation, with `step` and `epoch`."""
    scaler: dict[str, Any] | None = None  # state of the fp16 gradient scaler


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; it is not loaded into anything else."""

    parameters: dict[str, list[int]]  # parameter name -> shape
    labels: tuple[str, ...]
    data_fingerprint: str
    num_steps: int


class CheckpointStore:
    """The checkpoints of one run.

    It keeps the newest ones and the best. Only after update `extends_after` may a run be resumed with more steps.
    """

    def __init__(self, folder: Path, keep: int, identity: Identity, extends_after: int | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.identity = identity
        self.extends_after = extends_after

    def save(self, accelerator: Accelerator, model: nn.Module, optimizer: Any, state: TrainState) -> Path:
        """Write a checkpoint of `state.step`; call on all processes.

        Raises:
            InputError: it cannot be written (a full disk); older checkpoints are unaffected.
        """
        tensors = {MODEL_FILE: model_tensors(model), OPTIMIZER_FILE: _optimizer_tensors(model, optimizer)}
        state.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        return on_main_process(accelerator, lambda: self._write(tensors, state))

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """Return the newest undamaged checkpoint, and what is wrong with newer ones."""
        problems: list[str] = []
        for path in sorted(self._all(), reverse=True):
            if (problem := damage(path)) is None:
                return path, problems
            problems.append(f"{path.name}: {problem}")
        return None, problems

    def restore(self, path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> TrainState:
        """Load a checkpoint into model and optimizer, and return its state; call on all processes.

        Only the main process reads it.

        Raises:
            InputError: it belongs to another model, label set or data.
        """

        def read() -> TrainState:
            content = json.loads((path / STATE_FILE).read_text())
            content["state"].pop("max_tokens_per_forward", None)  # saved by older versions; it depends on the machine
            state = TrainState(**content["state"])
            self._require_same(path, content["identity"], state.num_updates)
            return state

        state = on_main_process(accelerator, read)
        load_model_tensors(accelerator, model, path / MODEL_FILE)
        _load_optimizer_tensors(accelerator, model, optimizer, path / OPTIMIZER_FILE)
        if accelerator.scaler is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        return state

    def path_of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def clear_leftovers(self) -> None:
        """Remove what an interrupted save or removal left behind."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]

    def _write(self, tensors: dict[str, dict[str, Tensor]], state: TrainState) -> Path:
        final = self.path_of(state.step)
        try:
            with staged_folder(final) as staged:
                for name, content in tensors.items():
                    save_file(content, staged / name, metadata={"format": "pt"})
                facts = {"state": dataclasses.asdict(state), "identity": dataclasses.asdict(self.identity)}
                write_json(staged / STATE_FILE, facts)
                files = {name: dataclasses.asdict(record) for name, record in record_files(staged).items()}
                write_json(staged / MANIFEST_FILE, {"schema_version": SCHEMA_VERSION, "files": files})
        except (OSError, SafetensorError) as error:
            newest, _ = self.newest_valid()
            kept = f"the checkpoint {newest.name} stays usable" if newest else "there is no older checkpoint"
            remedy = "Make the folder writable" if isinstance(error, PermissionError) else "Free some disk space"
            raise InputError(
                f"{final}: the checkpoint of step {state.step} could not be written ({error}); {kept}. "
                f"{remedy}, then continue with --resume"
            ) from error
        self._prune(state)
        return final

    def _prune(self, state: TrainState) -> None:
        # Later ones are damaged, or the run would have resumed from them; they will be overwritten.
        written = [path for path in sorted(self._all()) if path <= self.path_of(state.step)]
        protected = set(written[-self.keep :])
        if state.best_step is not None:
            protected.add(self.path_of(state.best_step))
        for path in written:
            if path not in protected:
                retired = path.with_name(f".{path.name}.retired")  # a half-removed one is never taken for a checkpoint
                shutil.rmtree(retired, ignore_errors=True)
                path.rename(retired)
                shutil.rmtree(retired, ignore_errors=True)

    def _require_same(self, path: Path, found: dict[str, Any], num_updates: int) -> None:
        expected = json.loads(json.dumps(dataclasses.asdict(self.identity)))
        if found["labels"] != expected["labels"]:
            raise InputError(
                f"{path}: the checkpoint has the labels {found['labels'][:20]}, the data now has "
                f"{expected['labels'][:20]}; resume with the original data, or start a new run"
            )
        there, here = found["parameters"], expected["parameters"]
        if names := [name for name in there | here if there.get(name) != here.get(name)]:
            raise InputError(
                f"{path}: the checkpoint is of another model; {len(names)} parameters differ, among them {names[0]} "
                f"({there.get(names[0])} there, {here.get(names[0])} here). "
                "Resume with the model of the run's config.yaml, or start a new run"
            )
        if found["data_fingerprint"] != expected["data_fingerprint"]:
            raise InputError(
                f"{path}: the checkpoint is of other rows or another teacher (data_fingerprint "
                f"{found['data_fingerprint']} there, {expected['data_fingerprint']} here), so its next rows are "
                "unknown; restore them, or start a new run"
            )
        before, now = found["num_steps"], expected["num_steps"]
        if now < before or (now > before and (self.extends_after is None or num_updates < self.extends_after)):
            why = "" if self.extends_after is None or now < before else ", whose longer warm-up is not over yet"
            raise InputError(
                f"{path}: the checkpoint is of a run of {before:,} optimizer steps, not of {now:,}{why}; resume with "
                "the same --epochs and --max_steps, or start a new run"
            )


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if they are intact."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        files = manifest["files"]
        if manifest["schema_version"] > SCHEMA_VERSION:
            return f"schema version {manifest['schema_version']} is newer than this rawloop supports"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({type(error).__name__})"
    problems = [damage_of(path / name, file["bytes"], file["sha256"]) for name, file in files.items()]
    return "; ".join(filter(None, problems)) or None


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the unsharded weights by name, on the CPU of the main process; call on all processes."""
    state: dict[str, Any] = get_model_state_dict(model, options=_SAVE)
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def load_model_tensors(accelerator: Accelerator, model: nn.Module, file: Path) -> None:
    """Load unsharded weights from a file, sharding them if the model is; call on all processes."""
    tensors: dict[str, Any] = load_file(file) if accelerator.is_main_process else {}
    set_model_state_dict(model, tensors, options=_load_options(accelerator))


def _optimizer_tensors(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Return AdamW's state as `parameter name/quantity` -> unsharded tensor, on the CPU of the main process."""
    state: dict[str, Any] = get_optimizer_state_dict(model, _bare(optimizer), options=_SAVE)
    return {
        f"{name}/{quantity}": tensor.clone().contiguous()
        for name, quantities in state.get("state", {}).items()
        for quantity, tensor in quantities.items()
    }


def _load_optimizer_tensors(accelerator: Accelerator, model: nn.Module, optimizer: Any, file: Path) -> None:
    # The groups' settings come from the configuration, only the tensors from the checkpoint.
    state: dict[str, Any] = get_optimizer_state_dict(model, _bare(optimizer), options=_SAVE)
    if accelerator.is_main_process:
        state["state"] = {}
        for key, tensor in load_file(file).items():
            name, _, quantity = key.rpartition("/")
            state["state"].setdefault(name, {})[quantity] = tensor
    set_optimizer_state_dict(model, _bare(optimizer), state, options=_load_options(accelerator))


def _load_options(accelerator: Accelerator) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1)


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside Accelerate's wrapper, which torch's state functions do not support."""
    bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return bare
