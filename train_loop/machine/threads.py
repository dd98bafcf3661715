"""The threads of a CPU process: how many, and how long idle ones spin."""

import os

from serve.contract.cores import num_usable_cores

SPIN_COUNT = "4000"  # iterations that an idle thread of libgomp spins before it sleeps: some tens of microseconds


def limit_spinning() -> None:
    """Let idle OpenMP threads sleep soon, so that two trainings share their cores; call it before torch is imported.

    By default libgomp's threads spin for milliseconds while they wait for each other, and what they wait for cannot
    run on a core that a spinning thread of another process holds. Your own OMP_WAIT_POLICY or GOMP_SPINCOUNT is kept.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def use_the_cores(num_processes: int) -> None:
    """Give this process its share of the cores that it may use, among `num_processes` on the machine.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 unless asked for something else, which would leave most
    cores idle; torch ignores a container's quota. A number of threads that was asked for is kept.
    """
    import torch  # here: `limit_spinning` comes before it

    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()  # only launchers set these
    asked_for = os.environ.get("OMP_NUM_THREADS")
    if asked_for is None or (asked_for == "1" and launched):
        torch.set_num_threads(max(1, num_usable_cores() // num_processes))
