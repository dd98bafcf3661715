"""How many cores this process may really use, by its affinity and the CPU quota of its cgroups.

ONNX Runtime starts a thread per core of the machine. In a container with a quota of two cores on a machine with 64, its
64 threads would be throttled most of the time.
"""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def num_usable_cores() -> int:
    """Return the number of cores this process may use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float | None:
    """Return the CPU quota [cores] of this process's cgroups, version 1 or 2; None if there is none.

    The groups above limit it too, so the smallest quota counts.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # not Linux
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            quotas += [_quota_v2(group) for group in _group_and_above(cgroups, path)]
        elif "cpu" in controllers.split(","):
            mounted = next((cgroups / name for name in (controllers, "cpu") if (cgroups / name).is_dir()), cgroups)
            quotas += [_quota_v1(group) for group in _group_and_above(mounted, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_and_above(root: Path, path: str) -> list[Path]:
    """Return the folders of a group and of those above it, up to `root`.

    In a container the path may be the host's and not exist; then the container's own group is `root`.
    """
    group = root / path.lstrip("/")
    return [root, *(folder for folder in (group, *group.parents) if folder != root and root in folder.parents)]


def _quota_v2(group: Path) -> float | None:
    match _words(group / "cpu.max"):
        case [quota, period] if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_v1(group: Path) -> float | None:
    match _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"):
        case [quota, period] if int(quota) > 0:  # -1 means unlimited
            return int(quota) / int(period)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
