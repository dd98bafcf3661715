import os
from pathlib import Path

import pytest

from serve.contract.cores import cpu_quota, num_usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def quota(folder: Path, membership: str) -> float | None:
    write(folder / "membership", membership)
    return cpu_quota(folder / "membership", folder / "cgroup")


def test_version_2_is_quota_over_period(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "150000 100000\n")
    assert quota(tmp_path, "0::/\n") == 1.5


def test_no_limit_is_none(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "max 100000\n")
    write(tmp_path / "cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert quota(tmp_path, "0::/\n") is None
    assert quota(tmp_path, "3:cpu,cpuacct:/\n") is None


def test_the_smallest_quota_of_the_parents_counts(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/a/cpu.max", "200000 100000\n")
    write(tmp_path / "cgroup/a/b/cpu.max", "400000 100000\n")
    write(tmp_path / "cgroup/a/b/c/cpu.max", "max 100000\n")
    assert quota(tmp_path, "0::/a/b/c\n") == 2.0


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1_is_read_where_it_is_mounted(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "cgroup" / folder / "docker/x/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "cgroup" / folder / "docker/x/cpu.cfs_period_us", "100000\n")
    assert quota(tmp_path, "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n") == 2.5


def test_in_a_container_the_root_is_its_own_group(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "50000 100000\n")
    assert quota(tmp_path, "0::/the/hosts/path\n") == 0.5


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "absent", tmp_path) is None


def test_cores_are_limited_by_the_affinity_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    for found, expected in ((None, cores), (0.2, 1), (1e6, cores), (1.5, min(2, cores))):
        monkeypatch.setattr("serve.contract.cores.cpu_quota", lambda found=found: found)
        assert num_usable_cores() == expected
