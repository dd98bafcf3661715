"""Communication between the processes of a run."""

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object

T = TypeVar("T")

STEP_TIMEOUT = datetime.timedelta(minutes=15)
"""How long a process waits for the others within a step or an evaluation; beyond it, one of them hangs."""
WORK_TIMEOUT = datetime.timedelta(hours=6)
"""How long processes wait while one works for all of them: it tokenizes many rows, or examines the results."""


def on_main_process(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the main process and return its result on all; an exception is raised on all.

    Otherwise, if the main process failed, on a full disk for example, the others would wait forever at the
    next barrier.
    """
    if accelerator.num_processes == 1:
        return work()
    outcome: list[T | BaseException | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[0] = error
    torch.distributed.broadcast_object_list(outcome, src=0, group=_patient_group())
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]  # a T: the exceptions are raised above


@contextlib.contextmanager
def local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process of each machine run the block before the machine's others."""
    waits = accelerator.num_processes > 1
    if waits and not accelerator.is_local_main_process:
        torch.distributed.barrier(_patient_group())
    yield
    if waits and accelerator.is_local_main_process:
        torch.distributed.barrier(_patient_group())


@functools.cache
def _patient_group() -> torch.distributed.ProcessGroup:
    """Return the group of all processes in which a long wait is no fault: over gloo, as only the CPUs wait."""
    group: torch.distributed.ProcessGroup = torch.distributed.new_group(backend="gloo", timeout=WORK_TIMEOUT)
    return group


def all_gather_patiently(value: T) -> list[T]:
    """Return, on all processes, the values of all of them, in order of rank; each may take hours to get here."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=_patient_group())
    return values


def from_all_processes(accelerator: Accelerator, value: T) -> list[T]:
    """Return, on all processes, the values of all of them, in order of rank."""
    return [value] if accelerator.num_processes == 1 else list(gather_object([value]))
