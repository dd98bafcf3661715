"""Train a classifier: config -> data -> plan -> model -> loop -> results.

accelerate launch train_loop/main.py                                        # the quickstart
accelerate launch train_loop/main.py --config recipes/tweet_sentiment.yaml
accelerate launch train_loop/main.py --resume runs/latest
"""

import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence

NEEDED = ("torch", "accelerate", "transformers", "datasets", "evaluate", "jsonargparse", "rich", "sklearn")


def run(argv: Sequence[str]) -> None:
    """Train as the command line says and leave a finished run directory.

    Raises:
        InputError: anything the user gave is wrong.
        Interrupted: a signal stopped the loop, after saving.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    # Imported here, so that --help and a missing extra are answered at once.
    from accelerate.utils import set_seed

    from train_loop.assembly import build_training, restore
    from train_loop.config import parse_config
    from train_loop.data import class_counts, load_data
    from train_loop.device import build_accelerator
    from train_loop.loop import train
    from train_loop.loss import class_weights
    from train_loop.model import load_model, load_tokenizer
    from train_loop.progress import build_console
    from train_loop.results import finish
    from train_loop.run_directory import open_run, require_writable
    from train_loop.summary import print_data, print_run

    config = parse_config(argv)
    require_writable(config.output_dir)
    accelerator = build_accelerator(config)
    console = build_console(quiet=not accelerator.is_main_process)

    tokenizer, max_length = load_tokenizer(config)
    with accelerator.local_main_process_first():  # the others find the tokens cached
        data = load_data(config, tokenizer, max_length)
    print_data(console, data)
    weights = class_weights(config.class_weights, class_counts(data.train, data.labels), data.labels)

    set_seed(config.seed)  # the new head is drawn from it, alike on every process
    model = load_model(config, data.labels, accelerator.device)
    with open_run(config, accelerator) as run_directory:
        training = build_training(config, accelerator, model, tokenizer, data, weights, run_directory, console)
        print_run(console, training)
        state = restore(training)
        train(training, state)
        finish(training, state, run_directory, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit status: 0 done, 1 training failed, 2 bad input, 128 + n stopped by signal n."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {', '.join(missing)} not installed; pip install 'rawloop[train]'", file=sys.stderr)
        return 2

    from serve.contract.errors import InputError
    from train_loop.interrupt import Interrupted
    from train_loop.loop import NonFiniteLoss

    speaks = os.environ.get("RANK", "0") == "0"
    try:
        run(sys.argv[1:] if argv is None else argv)
    except (InputError, NonFiniteLoss) as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Interrupted as stop:
        if speaks:
            print(stop, file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        if speaks:
            print("Stopped; the newest checkpoint, if there is one yet, goes on by --resume.", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if speaks:
            print(f"error: {error}; free some disk space, then run again or --resume", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
