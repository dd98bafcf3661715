"""What all processes of a run must have alike: configuration, packages, rows, model; compared before the first step."""

import dataclasses
import hashlib
import platform
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from serve.contract.errors import InputError
from serve.contract.versions import installed_versions
from train_loop.command_line import SOURCE_FIELDS
from train_loop.config import BY_NAME, TrainConfig
from train_loop.machine.processes import all_gather_patiently
from train_loop.rows.data import Data

OWN_FIELDS = {*SOURCE_FIELDS, "model_name", "model_revision", "teacher", "output_dir", "resume"}
"""Fields with places, which may differ over machines: what is found there is compared."""
PACKAGES = ("rawloop", "torch", "accelerate", "transformers", "tokenizers", "numpy")


def require_same_command(accelerator: Accelerator, config: TrainConfig) -> None:
    """Raise InputError unless all processes run the same configuration with the same packages; call on all of them."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in OWN_FIELDS}
    fields["resume"] = config.resume if config.resume in (None, BY_NAME) else "a run directory"
    packages = {f"version of {name}": version for name, version in installed_versions(PACKAGES).items()}
    precision = {"precision of the hardware": accelerator.mixed_precision}
    _require_same(accelerator, fields | packages | precision, "Run the same command with the same packages everywhere")


def require_same_data(accelerator: Accelerator, data: Data, model: PreTrainedModel) -> None:
    """Raise InputError unless all processes have the same rows in one order, tokens and model; call on all of them."""
    lengths = hashlib.sha256(b"".join(split.lengths.tobytes() for split in data.splits.values()))
    places = ("_name_or_path", "transformers_version")
    facts: dict[str, Any] = {f"{name} rows": len(split) for name, split in data.splits.items()}
    facts |= {"data fingerprint": data.fingerprint_of_learned[:12], "lengths in tokens": lengths.hexdigest()[:12]}
    facts |= {f"model's {name}": value for name, value in model.config.to_dict().items() if name not in places}
    _require_same(accelerator, facts, "Copy the rows, in one order, and the model from one machine to the others")


def _require_same(accelerator: Accelerator, facts: dict[str, Any], remedy: str) -> None:
    if accelerator.num_processes == 1:
        return
    everyone = all_gather_patiently((platform.node(), facts))
    main_host, expected = everyone[0]
    problems = [
        f"{name}: {found.get(name)} on rank {rank} ({host}), {expected.get(name)} on rank 0 ({main_host})"
        for rank, (host, found) in enumerate(everyone)
        for name in expected | found
        if found.get(name) != expected.get(name)
    ]
    if problems:
        listed = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise InputError("\n".join(["the processes differ, so they would not train one model:", *listed, remedy]))
