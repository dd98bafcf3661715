"""Call a function on several gloo processes of this machine; and parts of a run for it.

    results = on_processes(3, "scenarios:trained", {...})

calls the function in three processes with the same JSON arguments, and returns their results (anything that
torch.save accepts). They are forked from a process that has imported everything, because importing torch takes
longer than most tests.
"""

import functools
import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

TIMEOUT_S = 600


def on_processes(num_processes: int, function: str, arguments: dict[str, Any]) -> list[Any]:
    """Call `module:function` of this folder on gloo processes and return the results."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        ranks = [
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            for rank in range(num_processes)
        ]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        job = {
            "environments": [environment | (rank if num_processes > 1 else {}) for rank in ranks],
            "function": function,
            "arguments": arguments,
            "folder": folder,
        }
        template = _template()
        assert template.stdin is not None
        assert template.stdout is not None
        template.stdin.write(json.dumps(job) + "\n")
        template.stdin.flush()
        if not select.select([template.stdout], [], [], TIMEOUT_S)[0]:
            os.killpg(template.pid, 9)
            _template.cache_clear()
        answer = template.stdout.readline()
        said = "\n\n".join(path.read_text() for path in sorted(Path(folder).glob("*.log")))
        assert answer == json.dumps([0] * num_processes) + "\n", f"{answer or 'no answer in time'}\n{said}"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(num_processes)]


@functools.cache
def _template() -> "subprocess.Popen[str]":
    """Return the process that forks; it ends when its standard input closes, with pytest."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _fork(job: dict[str, Any], rank: int) -> int:
    """Start one process of a job and return its id; its output goes to a file of its own."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        folder = Path(job["folder"])
        log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.clear()
        os.environ.update(job["environments"][rank])
        module, _, name = job["function"].partition(":")
        torch.save(getattr(importlib.import_module(module), name)(**job["arguments"]), folder / f"{rank}.pt")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    """Fork the processes of each job that comes in, and answer with their exit statuses."""
    import scenarios  # noqa: F401 - imported before the fork, as what `build` needs is
    import transformers

    import train_loop.evaluation
    import train_loop.finish  # noqa: F401
    from train_loop.command_line import QUICKSTART, parse_config

    transformers.BertForSequenceClassification  # noqa: B018 - transformers imports it when it is first named
    parse_config(["--config", QUICKSTART])  # makes the parsers
    gc.freeze()  # or each child would copy what it collects
    for line in sys.stdin:
        job = json.loads(line)
        children = [_fork(job, rank) for rank in range(len(job["environments"]))]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


def build(argv: list[str], dtype: torch.dtype = torch.float32) -> Any:
    """Return the `Training` that `main.py` would build for a command line, with weights of `dtype`."""
    from accelerate.utils import DistributedType, parse_flag_from_env

    from train_loop.command_line import parse_config
    from train_loop.defaults import with_defaults
    from train_loop.distillation.teacher import with_teacher
    from train_loop.machine.device import build_accelerator, fsdp_plugin
    from train_loop.machine.processes import local_main_process_first
    from train_loop.model.pretrained import load_tokenizer
    from train_loop.rows.data import load_data
    from train_loop.run.directory import open_run
    from train_loop.run.progress import build_console
    from train_loop.training import build_training, initial_model

    config = parse_config(["--mixed_precision", "no", *argv] if "--resume" not in argv else argv)
    accelerator = build_accelerator(config)
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):  # Accelerate does not shard CPU processes
        accelerator.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": fsdp_plugin()}
    tokenizer, max_length = load_tokenizer(config)
    with local_main_process_first(accelerator):
        data = load_data(config, tokenizer, max_length)
    config = with_defaults(config, data)
    data = with_teacher(config, accelerator, tokenizer, data, build_console(quiet=True))
    model, weights = initial_model(config, accelerator, tokenizer, data, print)
    console = build_console(quiet=True)
    run = open_run(config, accelerator)
    return build_training(config, accelerator, model.to(dtype), tokenizer, data, weights, run, console)


def weights_of(training: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the unsharded weights by name."""
    from train_loop.run.checkpoint import model_tensors

    return model_tensors(training.model)


if __name__ == "__main__":
    _serve()
