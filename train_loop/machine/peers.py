"""The other processes of a run: an error or a silence of one ends all of them, with one message.

A thread of each process beats in the store through which the processes found each other, and hears the others. It
beats while the process computes, or works for hours while the others wait; gloo and NCCL would not notice a dead link.
"""

import atexit
import contextlib
import datetime
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from serve.contract.command import is_main_process
from serve.contract.errors import WorkStopped, first_line

INTERVAL_S = 2.0  # between beats
QUIET_S = 75.0  # silence after which a process counts as gone; RAWLOOP_PEER_TIMEOUT_S is another
QUIET_WHEN_CUT_S = 10.0  # the same once a connection has failed, when only the culprit is in question
GRACE_S = 30.0  # for a process to end by itself, with an error of its own, after another has failed
NOTE_S, CONNECT_S = 60.0, 300.0  # until a process that is not connected says so, and gives up
SAME_ERROR_S = 3.0  # for the main process to report the same error

DONE = "done"  # the last beat of a process that ends well
ENDED, QUIET, CUT = "ended with an error", "has not answered", ", or its launcher, cannot be reached"


class PeerLost(WorkStopped):
    """Another process of the run ended or cannot be reached."""


class Peers:
    """The processes of a run, as one of them sees the others."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

        from train_loop.machine.device import connect
        from train_loop.machine.processes import all_gather_patiently

        state = connect()
        self.rank, self.local_rank = state.process_index, state.local_process_index
        restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        if is_main_process() and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            print(
                "--max-restarts: processes that torchrun restarts find the addresses of the former ones in its store, "
                "and fail. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine.",
                file=sys.stderr,
            )
        # A name of its own, in case the store was used before.
        found = all_gather_patiently((platform.node(), uuid.uuid4().hex))
        self.names = [f"rank {rank} on {host}" for rank, (host, _) in enumerate(found)]
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: a store is locked while another thread waits in it.
        limit = datetime.timedelta(minutes=5)
        server = TCPStore(address, port, is_master=False, timeout=limit, wait_for_workers=False)
        self.store = PrefixStore(f"rawloop/{found[0][1]}", server)
        self.advice = "start all processes again"
        self.failure: str | None = None
        """Why the run cannot go on, as any process has put it into the store."""
        self.is_cut = False  # whether the store has closed the connection
        self.quiet_s = float(os.environ.get("RAWLOOP_PEER_TIMEOUT_S", QUIET_S))
        self.heard = [time.monotonic()] * len(found)  # when each process last beat; for this one, was last heard
        self.beats = [b"0"] * len(found)
        self.store.set(f"beat/{self.rank}", "0")
        all_gather_patiently(None)  # from here on, all beats can be read
        self._stopped = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self.stop)  # a thread inside the store would crash the interpreter as it ends

    def stop(self) -> None:
        """End the threads; a beat that hangs in a dead connection is left to end with the process."""
        self._stopped.set()
        if self.rank == 0 and self.failure is not None:
            time.sleep(SAME_ERROR_S)  # the store ends with this process, and the others read there what happened
        self._beating.join(timeout=INTERVAL_S)

    def fail(self, reason: str) -> None:
        """Tell all processes why the run cannot go on, unless one has."""
        if self.failure is None and not self.is_cut and time.monotonic() - self.heard[self.rank] < 3 * INTERVAL_S:
            with contextlib.suppress(RuntimeError):
                self.store.compare_set("failure", "", reason)
        self.failure = self.failure or reason

    def verdict(self, quiet_s: float) -> str | None:
        """Return why the run cannot go on, or None."""
        now = time.monotonic()
        if self.failure is not None:
            return self.failure
        if self.is_cut or now - self.heard[self.rank] > quiet_s:
            return self.names[0] + CUT
        quiet = [name for name, heard in zip(self.names, self.heard, strict=True) if now - heard > quiet_s]
        gone = f"{QUIET} for {quiet_s:.0f} s: its process or machine, or the network to it, is gone"
        return f"{quiet[0]} {gone}" if quiet else None

    def sentence(self, reason: str) -> str:
        """Return the whole message about another process: what happened, and what to do."""
        return f"{reason}. {'Fix that, then' if ENDED in reason else 'To go on,'} {self.advice}."

    @property
    def speaks_of_peers(self) -> bool:
        """Whether this process reports what happened to another: the first one of each machine that is left does."""
        first, reason = self.names[self.rank - self.local_rank], self.failure or ""
        is_first_gone = reason.startswith((f"{first} {QUIET}", f"{first}{CUT}"))
        return bool(self.local_rank == 0 or (self.local_rank == 1 and is_first_gone))

    def _beat(self) -> None:
        keys, count = [f"beat/{rank}" for rank in range(len(self.names))], 0
        while not self._stopped.wait(INTERVAL_S):
            count += 1
            try:
                self.store.set(keys[self.rank], str(count))
                beats = self.store.multi_get(keys)
                if self.failure is None and self.store.check(["failure"]):
                    self.failure = self.store.get("failure").decode()
            except RuntimeError:  # torch's DistNetworkError, where the process with the store has ended
                self.is_cut = True
                return
            now = time.monotonic()
            for rank, beat in enumerate(beats):
                if beat != self.beats[rank] or beat == DONE.encode():
                    self.heard[rank] = now
            self.beats = beats

    def _watch(self) -> None:
        """End the process, whose main thread may wait inside gloo or NCCL for ever, if the run cannot go on."""
        while not self._stopped.wait(1):
            if self.verdict(self.quiet_s) is None:
                continue
            if (self.failure or self.is_cut) and self._stopped.wait(GRACE_S):
                return
            self.fail(reason := self.verdict(self.quiet_s) or "")
            if self.speaks_of_peers:
                prefix = "" if is_main_process() else f"{self.names[self.rank]}: "
                print(f"{prefix}error: {self.sentence(reason)}", file=sys.stderr, flush=True)
            self.stop()
            os._exit(PeerLost.exit_status)


_peers: Peers | None = None


@contextlib.contextmanager
def connected_peers() -> Iterator[None]:
    """Connect the processes that a launcher started, and end them all if one fails; one process needs none of it.

    Connected first of all, a process can report whatever goes wrong later.

    Raises:
        PeerLost: the connection to another process failed.
    """
    global _peers
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    # torch logs a lost connection with pages of stack frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _speaking_while_it_connects():
        peers = _peers = Peers()
    try:
        yield
    except BaseException as error:
        if reason := _why_cut(peers, error):
            peers.fail(reason)
            raise PeerLost(peers.sentence(reason)) from error
        if not isinstance(error, SystemExit) or error.code:
            peers.fail(f"{peers.names[peers.rank]} {ENDED}: {first_line(error)}")
        raise
    peers.stop()
    with contextlib.suppress(RuntimeError):  # the store may have ended with the main process
        peers.store.set(f"beat/{peers.rank}", DONE)  # that one may have work left: its trackers upload


@contextlib.contextmanager
def _speaking_while_it_connects() -> Iterator[None]:
    """Say what may be wrong if the processes do not find each other, and end this one after CONNECT_S.

    Raises:
        PeerLost: they do not.
    """
    connected = threading.Event()
    who = f"rank {os.environ['RANK']} on {platform.node()}"
    why = (
        "Look at what the other processes print. Each machine needs a host name of its own that is its address on all "
        "of them, and not 127.0.0.1 (getent hosts NAME); or pass torchrun --local_addr ADDRESS_OF_THIS_MACHINE on each"
    )

    def speak() -> None:
        if not connected.wait(NOTE_S):
            print(f"{who}: still waiting for the other processes. {why}.", file=sys.stderr, flush=True)
            if not connected.wait(CONNECT_S - NOTE_S):
                minutes = CONNECT_S / 60
                print(f"{who}: error: not connected to the other processes in {minutes:g} minutes.", file=sys.stderr)
                os._exit(PeerLost.exit_status)

    threading.Thread(target=speak, daemon=True).start()
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL or the store
        raise PeerLost(f"no connection to the other processes: {first_line(error)}. {why}") from error
    finally:
        connected.set()


def _why_cut(peers: Peers, error: BaseException) -> str | None:
    """Return why the connection to another process failed, if that is the error and the reason becomes known."""
    from torch.distributed import DistError

    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
        deadline = time.monotonic() + 2 * QUIET_WHEN_CUT_S
        while time.monotonic() < deadline:
            if reason := peers.verdict(min(QUIET_WHEN_CUT_S, peers.quiet_s)):
                return reason
            time.sleep(0.2)
    return None


def advise(text: str) -> None:
    """Set what to do if another process is lost."""
    if _peers is not None:
        _peers.advice = text


def is_reported_elsewhere(message: str) -> bool:
    """Return whether another process reports this error; call it on all processes that have one."""
    if _peers is None:  # not connected: the processes of one machine have the same packages
        return os.environ.get("LOCAL_RANK", "0") != "0"
    if _peers.failure is not None and _peers.sentence(_peers.failure) in message:
        return not _peers.speaks_of_peers
    with contextlib.suppress(RuntimeError):  # of the store: then no other process is known to report it
        if is_main_process():
            _peers.store.set("error", message)
        elif not _peers.is_cut:
            _peers.store.wait(["error"], datetime.timedelta(seconds=SAME_ERROR_S))
            return _peers.store.get("error").decode() == message
    return False
