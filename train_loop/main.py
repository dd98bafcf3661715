"""Train a classifier: config -> data -> plan -> model -> loop -> results.

accelerate launch train_loop/main.py                                        # the quickstart
accelerate launch train_loop/main.py --config recipes/tweet_sentiment.yaml
accelerate launch train_loop/main.py --resume runs/latest
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from serve.contract.command import given_arguments, is_main_process, run_command
from train_loop.config import TrainConfig
from train_loop.machine.packages import NEEDED
from train_loop.machine.peers import advise, connected_peers, is_reported_elsewhere
from train_loop.machine.threads import limit_spinning


def run(argv: Sequence[str]) -> None:
    """Train as the command line says and leave a finished run directory.

    Raises:
        InputError: anything the user gave is wrong.
        Interrupted: a signal stopped the loop, after saving.
        NonFiniteLoss: the loss became NaN or infinite.
        WorkStopped: the finished run could not be uploaded.
    """
    limit_spinning()  # before torch is imported
    with connected_peers():
        from train_loop.command_line import parse_config  # here, so that a missing extra is reported first

        train_as_configured(parse_config(argv))


def train_as_configured(config: TrainConfig) -> Path:
    """Train and return the run directory; raises what `run` raises. Call `limit_spinning` before."""
    # Imported here, so that --help and a missing extra are answered at once.
    from train_loop.defaults import with_defaults
    from train_loop.distillation.teacher import with_teacher
    from train_loop.finish import finish
    from train_loop.hub.upload import push_to_hub, require_uploadable
    from train_loop.loop import train
    from train_loop.machine.agreement import require_same_command, require_same_data
    from train_loop.machine.device import build_accelerator
    from train_loop.machine.processes import local_main_process_first, on_main_process
    from train_loop.model.pretrained import fitting_precision, load_tokenizer
    from train_loop.rows.data import load_data
    from train_loop.rows.summary import print_data
    from train_loop.run.directory import how_to_go_on, open_run, require_new_name, require_writable, resume_by_name
    from train_loop.run.progress import build_console
    from train_loop.run.trackers import running_trackers
    from train_loop.training import build_training, initial_model, print_run, restore

    if is_main_process():
        require_writable(config.output_dir)
        require_new_name(config)
        if config.push_to_hub is not None:
            require_uploadable(config.push_to_hub, "--push_to_hub: ")
    accelerator = build_accelerator(dataclasses.replace(config, mixed_precision=fitting_precision(config)))
    console = build_console(quiet=not accelerator.is_main_process)
    require_same_command(accelerator, config)
    resumed = resume_by_name(config, accelerator, console)
    if resumed is None:  # it is finished
        accelerator.end_training()
        return Path(config.output_dir, str(config.run_name))
    config = resumed

    tokenizer, max_length = load_tokenizer(config)
    with local_main_process_first(accelerator):  # the others find the tokens cached
        data = load_data(config, tokenizer, max_length)
    print_data(console, data)
    given, config = config, with_defaults(config, data)
    data = with_teacher(config, accelerator, tokenizer, data, console)
    config = with_defaults(given, data)  # counts texts that only the teacher labels
    report = console.print if config.resume is None else lambda line: None  # a checkpoint replaces the weights
    model, weights = initial_model(config, accelerator, tokenizer, data, report)
    require_same_data(accelerator, data, model)
    with open_run(config, accelerator) as run_directory:
        advise(how_to_go_on(config, run_directory))
        training = build_training(config, accelerator, model, tokenizer, data, weights, run_directory, console)
        print_run(console, training)
        state = restore(training)
        with running_trackers(config, accelerator, run_directory, state.step, console.print):
            train(training, state)
            finish(training, state, run_directory, console)
    if config.push_to_hub is not None:
        on_main_process(accelerator, lambda: push_to_hub(run_directory.path, str(config.push_to_hub), console.print))
    accelerator.end_training()
    return run_directory.path


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return run_command(
        lambda: run(given_arguments(argv)),
        needs=NEEDED,
        extra="train",
        interrupted="Stopped; the newest checkpoint, if there is one yet, goes on by --resume.",
        after_os_error="free some disk space or fix the folder, then run again or --resume",
        is_reported_elsewhere=is_reported_elsewhere,
    )


if __name__ == "__main__":
    sys.exit(main())
