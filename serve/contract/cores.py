"""The number of cores this process may use: its affinity, limited by the CPU quota of its cgroups.

ONNX Runtime sizes its thread pool by the machine. In a container with a quota of two cores on a 64-core machine,
64 threads would be throttled most of the time.
"""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
QUOTA_FILES: dict[int, tuple[str, ...]] = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
"""Version of cgroups -> files with a quota and its period."""
NO_QUOTA = ("-1", "max")


def num_usable_cores() -> int:
    """Return the number of cores this process may use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float | None:
    """Return the CPU quota [cores] of this process's cgroups, version 1 or 2; None if there is none.

    Parent groups limit it too, so the smallest quota counts.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # not Linux
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = cgroups, QUOTA_FILES[2]
        elif "cpu" in controllers.split(","):
            root = next((cgroups / name for name in (controllers, "cpu") if (cgroups / name).is_dir()), cgroups)
            files = QUOTA_FILES[1]
        else:
            continue
        for group in _group_and_parents(root, path):
            match [word for file in files for word in _words(group / file)]:
                case [quota, period] if quota not in NO_QUOTA:
                    quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _group_and_parents(root: Path, path: str) -> list[Path]:
    """Return the folders of a group and its parents, up to `root`.

    In a container the path may be the host's and not exist here; the container's own group is then `root`.
    """
    group = root / path.lstrip("/")
    return [root, *(folder for folder in (group, *group.parents) if folder != root and root in folder.parents)]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
