"""The study: trials in one journal, shared by any number of processes, each of which may be killed at any time.

A process locks its trial's file while it works, and the kernel lets go of it however the process ends. So a trial that
the journal has running but no process has locked is a dead process's, and the next one that looks for work goes on with
it. Trials are taken and ended under the lock of the study, so that none is taken or counted twice.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from serve.contract.errors import InputError
from train_loop.command_line import RESUME_FLAGS
from train_loop.config import LOWER_IS_BETTER, TrainConfig
from train_loop.search.space import Space

FREE_FIELDS = RESUME_FLAGS | {"output_dir", "run_name", "test_file"}
"""Fields that may differ from one start of a study to the next: they change no score."""
NUM_UNPRUNED = 4  # trials that are completed before any is pruned
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Study:
    """The trials of a search. Scores are higher for better models: the metric, times `sign`."""

    def __init__(self, folder: Path, config: TrainConfig, space: Space, fingerprint: str) -> None:
        self.folder, self.space, self.seed, self.locks = folder, space, config.seed, folder / "locks"
        self.metric, self.sign = str(config.metric_for_best), -1 if config.metric_for_best in LOWER_IS_BETTER else 1
        self.locks.mkdir(exist_ok=True)
        self._lock, lock, journal = FileLock(self.locks / "study"), FileLock(self.locks / "journal"), folder / "journal"
        with lock, journal.open("ab+") as file:  # cut off a line that a killed process has half written
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna's own locks outlive a killed process by half a minute; it only calls acquire and release.
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock))  # type: ignore[arg-type]
        pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_UNPRUNED)
        fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_FIELDS}
        here = json.loads(json.dumps(fields | {"--space": space, "fingerprint of the rows": fingerprint}))
        with self._lock:
            self.optuna = optuna.create_study(
                storage=storage, study_name="search", direction="maximize", pruner=pruner, load_if_exists=True
            )
            if not self.optuna.user_attrs:
                self.optuna.enqueue_trial({name: getattr(config, name) for name in space}, skip_if_exists=True)
                self.optuna.set_user_attr("of", here)
        there = self.optuna.user_attrs["of"]
        if changed := [name for name in here if here[name] != there.get(name)]:
            listed = "; ".join(f"{name} is {there.get(name)} there, {here[name]} here" for name in changed)
            raise InputError(f"{folder} is of another search: {listed}. Restore that, or pass --run_name NEW")

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of the states, the best first where they have scores."""
        found = self.optuna.get_trials(deepcopy=False, states=states)
        return sorted(found, key=lambda trial: (0.0 if trial.value is None else -trial.value, trial.number))

    def folder_of(self, number: int) -> Path:
        return self.folder / f"trial_{number:04d}"

    @contextlib.contextmanager
    def claimed(self, num_trials: int) -> Iterator[Trial | None]:
        """Yield a dead process's trial, or a new one, with its values, and hold it; None if `num_trials` have begun."""
        with contextlib.ExitStack() as held:
            with self._lock:
                trial = self._next(num_trials, held)
                if trial is not None:
                    _draw_values(trial, self.space)
            yield trial

    def _next(self, num_trials: int, held: contextlib.ExitStack) -> Trial | None:
        for left in self.trials(TrialState.RUNNING):
            with contextlib.suppress(Timeout):  # another process works on it
                self._hold(left.number, held)
                return Trial(self.optuna, left._trial_id)
        if (begun := len(self.trials(TrialState.RUNNING, *ENDED))) >= num_trials:
            return None
        self._hold(begun, held)
        return self.optuna.ask()

    def _hold(self, number: int, held: contextlib.ExitStack) -> None:
        """Lock a trial, and let what is drawn for it follow from the seed and its number, whoever draws it."""
        held.enter_context(FileLock(self.locks / self.folder_of(number).name, timeout=0))
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.optuna.sampler = optuna.samplers.TPESampler(seed=seed)

    def is_shared(self) -> bool:
        """Return whether another process is at work on a trial."""
        with self._lock, contextlib.ExitStack() as held:
            try:
                for trial in self.trials(TrialState.RUNNING):
                    self._hold(trial.number, held)
            except Timeout:
                return True
        return False

    def end(self, trial: Trial, state: TrialState, score: float | None = None) -> FrozenTrial:
        """Record how a trial ended, and remove the checkpoints of all that ended but the best."""
        with self._lock:
            ended = self.optuna.tell(trial, score, state)
            for loser in self.trials(TrialState.COMPLETE)[1:] + self.trials(*ENDED[1:]):
                shutil.rmtree(self.folder_of(loser.number) / "checkpoints", ignore_errors=True)
        return ended


def _draw_values(trial: Trial, space: Space) -> None:
    """Draw a trial's value of each field; those that were drawn before a kill stay the same."""
    for name, each in space.items():
        if "choices" in each:
            trial.suggest_categorical(name, each["choices"])
        else:
            (trial.suggest_int if isinstance(each["low"], int) else trial.suggest_float)(name, **each)
