"""Several gloo processes on this machine, each calling one function; and pieces of a run to call there.

    results = on_processes(3, "scenarios:trained", {...})

runs the function in three fresh processes, gives each the same JSON arguments, and returns what each
returned (anything that torch.save takes).
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

TIMEOUT_S = 240


def on_processes(num_processes: int, function: str, arguments: dict[str, Any]) -> list[Any]:
    """Run `module:function` of the tests folder on gloo processes and return what each returned."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        workers = []
        for rank in range(num_processes):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = [sys.executable, __file__, function, json.dumps(arguments), f"{folder}/{rank}.pt"]
            workers.append(
                subprocess.Popen(
                    command,
                    env={**environment, **(place if num_processes > 1 else {})},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        try:
            outputs = [worker.communicate(timeout=TIMEOUT_S)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        statuses = [worker.returncode for worker in workers]
        assert statuses == [0] * num_processes, "\n\n".join(outputs)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(num_processes)]


def build(argv: list[str], dtype: torch.dtype = torch.float32) -> Any:
    """Return the `Training` of a command line, as `main.py` builds it, with weights of `dtype`."""
    from accelerate.utils import DistributedType, parse_flag_from_env, set_seed

    from train_loop.command_line import parse_config
    from train_loop.machine.device import build_accelerator, fsdp_plugin
    from train_loop.model.pretrained import load_model, load_tokenizer
    from train_loop.rows.data import class_counts, load_data
    from train_loop.run.directory import open_run
    from train_loop.run.progress import build_console
    from train_loop.steps.loss import class_weights
    from train_loop.training import build_training

    config = parse_config(["--mixed_precision", "no", *argv] if "--resume" not in argv else argv)
    accelerator = build_accelerator(config)
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):  # Accelerate leaves CPU processes unsharded
        accelerator.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": fsdp_plugin()}
    tokenizer, max_length = load_tokenizer(config)
    with accelerator.local_main_process_first():
        data = load_data(config, tokenizer, max_length)
    set_seed(config.seed)
    model = load_model(config, data.labels, accelerator.device).to(dtype)
    console = build_console(quiet=True)
    weights = class_weights(config.class_weights, class_counts(data.train, data.labels), data.labels)
    run = open_run(config, accelerator)
    return build_training(config, accelerator, model, tokenizer, data, weights, run, console)


def weights_of(training: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the whole weights by name."""
    from train_loop.run.checkpoint import model_tensors

    return model_tensors(training.model)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    torch.save(result, sys.argv[3])
