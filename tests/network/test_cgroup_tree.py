"""Cgroups as they come and go, in the real hierarchy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.cgroup_tree import CgroupTree


@pytest.fixture
def root(cgroup_root: Path) -> Iterator[Path]:
    path = cgroup_root / "tree"
    path.mkdir()
    yield path
    for folder in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    path.rmdir()


def slices(path: str) -> bool:
    return path == "/" or path.endswith(".slice")


@pytest.fixture
def tree(root: Path) -> Iterator[CgroupTree]:
    (root / "system.slice" / "old.service").mkdir(parents=True)
    made = CgroupTree(root, slices)
    yield made
    made.close()


def after(tree: CgroupTree, act: Callable[[], object]) -> set[str]:
    """The paths once `act` was noticed."""

    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree.changed)
                await trio.testing.wait_all_tasks_blocked()
                act()

    trio.run(main)
    return set(tree.ids)


THERE = {"/", "/system.slice", "/system.slice/old.service"}


def test_what_is_there_at_first(tree: CgroupTree, root: Path) -> None:
    assert set(tree.ids) == THERE
    assert tree.ids["/system.slice"] == (root / "system.slice").stat().st_ino
    assert not tree.update()


def test_births_are_seen_at_every_level(tree: CgroupTree, root: Path) -> None:
    born = root / "system.slice" / "deep.slice" / "new.service"
    assert after(tree, born.parent.mkdir) == {*THERE, "/system.slice/deep.slice"}
    assert after(tree, born.mkdir) == {
        *THERE,
        "/system.slice/deep.slice",
        "/system.slice/deep.slice/new.service",
    }


def test_many_levels_at_once_lose_none(tree: CgroupTree, root: Path) -> None:
    """Children that are born before their parent is watched."""
    wanted = set(THERE)
    for number in range(100):
        path = root / f"s{number}.slice" / "in.slice" / "unit.service"
        path.mkdir(parents=True)
        for depth in range(3):
            wanted.add("/" + "/".join(path.relative_to(root).parts[: depth + 1]))
        if number % 7 == 0:
            tree.update()
    tree.update()
    assert set(tree.ids) == wanted


def test_a_cgroup_that_went_and_came_again_is_another_one(tree: CgroupTree, root: Path) -> None:
    unit = root / "system.slice" / "old.service"
    before = tree.ids["/system.slice/old.service"]
    unit.rmdir()
    unit.mkdir()
    assert tree.update()
    assert tree.ids["/system.slice/old.service"] == unit.stat().st_ino != before


def test_a_slice_that_went_and_came_again_is_watched_again(tree: CgroupTree, root: Path) -> None:
    for _ in range(3):
        (root / "system.slice" / "old.service").rmdir()
        (root / "system.slice").rmdir()
        (root / "system.slice" / "old.service").mkdir(parents=True)
    assert tree.update()
    assert after(tree, (root / "system.slice" / "new.service").mkdir) == {*THERE, "/system.slice/new.service"}
    (root / "system.slice" / "new.service").rmdir()
    tree.update()
    assert set(tree.ids) == THERE


def test_ends_are_seen(tree: CgroupTree, root: Path) -> None:
    assert after(tree, (root / "system.slice" / "old.service").rmdir) == THERE - {"/system.slice/old.service"}
    assert after(tree, (root / "system.slice").rmdir) == {"/"}


def test_what_lies_in_a_unit_is_not_looked_at(tree: CgroupTree, root: Path) -> None:
    (root / "system.slice" / "old.service" / "inner").mkdir()
    assert not tree.update()
    tree.watch(lambda _path: True)
    assert set(tree.ids) == {*THERE, "/system.slice/old.service/inner"}
    tree.watch(slices)
    assert set(tree.ids) == THERE
    assert after(tree, (root / "system.slice" / "new.service").mkdir) == {*THERE, "/system.slice/new.service"}


def test_a_full_queue_is_made_good_by_looking_again(tree: CgroupTree, root: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    unit = root / "system.slice" / "again.service"
    for _ in range(most // 2 + 1):
        os.mkdir(unit)  # noqa: PTH102 - without pathlib: many
        os.rmdir(unit)  # noqa: PTH106
    unit.mkdir()
    tree.update()
    assert tree.ids["/system.slice/again.service"] == unit.stat().st_ino
    assert after(tree, unit.rmdir) == THERE
