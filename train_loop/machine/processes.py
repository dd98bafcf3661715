"""Communication between the processes of a run."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


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
    broadcast_object_list(outcome)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]  # a T: the exceptions are raised above


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return, on all processes, whether `flag` is true on any."""
    if accelerator.num_processes == 1:
        return flag
    return any(gather_object([flag]))


def from_all_processes(accelerator: Accelerator, value: T) -> list[T]:
    """Return, on all processes, the values of all of them, in order of rank."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[T] = gather_object([value])
    return gathered
