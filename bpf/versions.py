"""Which version's kernel half decides; a start brings up its own, and finishes or undoes what a crash left.

Two versions differ in the programs' text only, then the new programs are attached over the same maps; or in
the layout of the maps, then there are new maps too (migrate.py), and for a while both are attached.

Rules this file obeys:

- A layout decides if its `egress` is attached and `shadow` of its settings is 0. That alone tells how far a
  swap came: nothing else is written down.
- Who starts has its own layout decide in the end. If it does already, whatever else is there is left over. If
  it does not, what there is of it is not whole: away with it, and everything is taken over from the layout
  that decides. If none does, nothing was filtered, and there is nothing to take over.
- Programs of links are made before anything is copied, since that takes seconds, and put in the place of
  older ones when the new half decides, before anything that is older goes: until then these decide by the
  older maps, whatever stands in the settings there (flows.h). What they learn while the last rows are copied
  is lost.
- Programs are detached before they are unpinned, and unpinned before their maps: so what is attached can
  always be found by its pins, and detached (`skouter off`), whoever died in between.
- Whoever calls this holds the instance's lock.

The text of each contract is kept in RUN, so that an older version can read the maps of a newer one:

    RUN/contract-LAYOUT.h
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cffi import CDefError

from bpf import carry, kernel
from bpf.contract import Contract, contract
from bpf.datapath import Datapath, detach_programs, load, open_folder
from bpf.load import HOOKS, build, maps_folder, programs_folder
from bpf.migrate import Migration

Sockets = Callable[[int], Iterable[tuple[int, bytes]]]
Links = Callable[[Datapath], Callable[[], None]]  # makes programs of links; what that returns puts them there


@dataclass(frozen=True)
class Layout:
    """Maps that are pinned below `root`, and whose programs may be."""

    root: Path
    folder: Path
    contract: Contract | None  # None where its text is not kept

    @property
    def name(self) -> str:
        return self.folder.name.removeprefix("maps-")

    def programs(self) -> dict[int, Path]:
        """Pinned programs over these maps, by their ids."""
        maps = set()
        for path in self.folder.iterdir():
            with opened(path) as fd:
                maps.add(int(kernel.map_info(fd).id))
        found = {}
        for path in self.root.glob("programs-*/*"):
            with opened(path) as fd:
                if maps.intersection(kernel.program_maps(fd)):
                    found[int(kernel.program_info(fd).id)] = path
        return found

    def decides(self, cgroups: Sequence[Path]) -> bool:
        egress = {number for number, path in self.programs().items() if path.name == "egress"}
        return self.shadow() == 0 and any(egress & attached(cgroup) for cgroup in cgroups)

    def shadow(self) -> int | None:
        """Not 0: another layout decides. None where that can't be read."""
        if self.contract is None:
            return None
        path = self.folder / "settings"
        if not path.exists():
            return None
        with opened(path) as fd:
            raw = kernel.lookup(fd, bytes(4), self.contract.maps["settings"].value_size)
        return int(self.contract.unpack("struct settings", raw or b"").shadow)


def bring_up(
    root: Path,
    run: Path,
    cgroups: Sequence[Path],
    sockets: Sockets = carry.sockets,
    flags: tuple[str, ...] = (),
    links: Links = lambda _: lambda: None,
) -> Datapath:
    """The kernel half of this version below `root`; where another one decided, attached in its place.

    `cgroups` are the folders to which programs may be attached. `sockets` lists what is kept with each socket
    (carry.py). `links` makes new programs where older ones are on links; what it returns puts them in their
    places, and is called when the new half decides and what is older is still pinned. Raises
    :class:`DatapathError`: then whatever decided before goes on to do so.
    """
    cgroups = [cgroup for cgroup in cgroups if cgroup.is_dir()]
    there = layouts(root, run)
    mine = next((one for one in there if one.name == contract().layout), None)
    deciding = [one for one in there if one.decides(cgroups)]
    before = mine if mine in deciding else next(iter(deciding), None)
    left_over = []
    for one in there:
        if one is mine:
            # Attached nowhere it is as `skouter off` leaves it, and whole, unless it was still in the shadow.
            useless = one is not before and (before is not None or bool(one.shadow()))
        else:
            # One that nobody can read may still filter: its programs go when ours are attached.
            useless = one is not before and (one.contract is not None or not is_attached(one, cgroups))
        if useless and one is mine:
            set_aside(one, cgroups)
        elif useless:
            left_over.append(one)
    keep_text(run)
    if before is None or before is mine:
        loaded = load(root, flags)
        replace_older(loaded, cgroups, links)
    else:
        loaded = take_over(before, run, cgroups, sockets, flags, links)
        left_over.append(before)
    for one in left_over:
        remove(one, run, cgroups)
    for folder in (*root.glob("programs-*-aside"), *root.glob("aside-maps-*")):
        shutil.rmtree(folder)
    return loaded


def take_over(
    before: Layout,
    run: Path,
    cgroups: Sequence[Path],
    sockets: Sockets,
    flags: tuple[str, ...],
    links: Links,
) -> Datapath:
    """New maps and programs, which decide when this returns; undone where that can't be."""
    assert before.contract is not None
    try:
        build(before.root, flags)
        loaded = Datapath(before.root)
        put_on_links = links(loaded)
        migration = Migration(before.folder, before.contract, loaded)
        migration.prepare()
        attach_beside(before, loaded, cgroups)
        migration.catch_up(sockets)
    except BaseException:
        remove(Layout(before.root, maps_folder(before.root), contract()), run, cgroups)
        raise
    migration.flip()
    put_on_links()
    return loaded


def attach_beside(before: Layout, loaded: Datapath, cgroups: Sequence[Path]) -> None:
    """To the cgroups to which the other programs are attached; all that decide, where the others do."""
    theirs = before.programs()
    for cgroup in cgroups:
        names = {theirs[number].name for number in attached(cgroup) & theirs.keys()}
        if "egress" in names:
            names |= HOOKS.keys() - {"resolver"}
        loaded.join(cgroup, [name for name in HOOKS if name in names])


def replace_older(loaded: Datapath, cgroups: Sequence[Path], links: Links) -> None:
    """Programs of another text over the same maps: ours are attached first."""
    mine = programs_folder(loaded.root)
    layout = Layout(loaded.root, maps_folder(loaded.root), contract())
    older = {number: path for number, path in layout.programs().items() if path.parent != mine}
    put_on_links = links(loaded)
    for cgroup in cgroups:
        names = {older[number].name for number in attached(cgroup) & older.keys()}
        loaded.join(cgroup, [name for name in HOOKS if name in names])
    put_on_links()
    _detach_and_unpin(older, cgroups)


def remove(layout: Layout, run: Path, cgroups: Sequence[Path]) -> None:
    """All that is pinned and attached of one layout."""
    _detach_and_unpin(layout.programs(), cgroups)
    shutil.rmtree(layout.folder, ignore_errors=True)
    _text(run, layout.name).unlink(missing_ok=True)


def set_aside(layout: Layout, cgroups: Sequence[Path]) -> None:
    """Makes room for maps of the same layout. A crash may have left its programs on links: these go on until
    they are replaced, over all their maps, and are known by their pins."""
    programs = layout.programs()
    for cgroup in cgroups:
        detach_programs(cgroup, programs.keys())
    for folder in {path.parent for path in programs.values()}:
        _rename(folder, folder.with_name(f"{folder.name}-aside"))
    _rename(layout.folder, layout.folder.with_name(f"aside-{layout.folder.name}"))


def _rename(folder: Path, name: Path) -> None:
    shutil.rmtree(name, ignore_errors=True)
    folder.rename(name)


def _detach_and_unpin(programs: dict[int, Path], cgroups: Sequence[Path]) -> None:
    if not programs:
        return
    for cgroup in cgroups:
        detach_programs(cgroup, programs.keys())
    kernel.wait_for_programs()  # without its pin the table of stages is emptied
    for folder in {path.parent for path in programs.values()}:
        shutil.rmtree(folder, ignore_errors=True)


def layouts(root: Path, run: Path) -> list[Layout]:
    """What maps are pinned, each with its contract where the text of that is kept."""
    return [
        Layout(root, path, _read(run, path.name.removeprefix("maps-")))
        for path in sorted(root.glob("maps-*"))
    ]


def attached(cgroup: Path) -> set[int]:
    """Ids of all programs on this very cgroup."""
    with open_folder(cgroup) as target:
        return {number for _, number in kernel.attachments(target)}


def is_attached(layout: Layout, cgroups: Collection[Path]) -> bool:
    return any(attached(cgroup) & layout.programs().keys() for cgroup in cgroups)


def keep_text(run: Path) -> None:
    """This version's contract, for others; whole or not there."""
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _text(run, contract().layout)
    if not path.exists():
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(contract().text)
        scratch.replace(path)


def _text(run: Path, layout: str) -> Path:
    return run / f"contract-{layout}.h"


def _read(run: Path, layout: str) -> Contract | None:
    if layout == contract().layout:
        return contract()
    try:
        found = Contract(_text(run, layout).read_text())
    except (FileNotFoundError, CDefError):
        return None
    return found if found.layout == layout else None


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of what is pinned there."""
    fd = kernel.get(path)
    try:
        yield fd
    finally:
        os.close(fd)
