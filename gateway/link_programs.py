"""On which interfaces our programs are, in which place of the chain, and how they come and go.

Two forms: tcx (Linux 6.6), where each program has a place before or behind others; else a filter of clsact,
with a preference of its own.

Rules this file obeys:

- Ours are the programs that are pinned below our root; a filter says in its name which program it is.
  Whatever else is there stays, and keeps its place.
- A program takes the very place of the one before it: there is no moment without, none with both.
- In the order of the family's hooks: what comes from a workload is judged last of all, and let go first.

Source: Documentation/bpf/libbpf (tcx), tc-bpf(8).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bpf import kernel
from bpf.datapath import Datapath, identities, program_by_id
from bpf.load import GATEWAY, LINKS, Family
from routing import netlink

CLSACT = {kernel.TCX_INGRESS: netlink.INGRESS, kernel.TCX_EGRESS: netlink.EGRESS}
FAMILIES = (LINKS, GATEWAY)
FOREIGN = 0  # instead of an id: a filter that is no program of ours
LOOPBACK = 1  # every network namespace has it, by this number
GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO)


def has_tcx() -> bool:
    try:
        kernel.attached(LOOPBACK, kernel.TCX_INGRESS)
    except OSError:
        return False
    return True


class LinkPrograms:
    """Those of one family, in the calling thread's network namespace. `by_tcx`: None where the kernel is to
    decide."""

    def __init__(self, root: Path, family: Family = LINKS, by_tcx: bool | None = None) -> None:
        self.root, self.family = root, family
        self.order = tuple(family.hooks)
        self.has_tcx = has_tcx()
        self.by_tcx = self.has_tcx if by_tcx is None else by_tcx

    def pinned(self) -> set[int]:
        """Ids of our programs of this family, of every version."""
        return {number for name in self.order for number in identities(self.root.glob(f"programs-*/{name}"))}

    def attach(self, index: int, programs: Mapping[str, int], ours: set[int]) -> None:
        """Has these programs (name to descriptor) judge an interface, in place of others of `ours`.

        Raises :class:`OSError`: ENODEV where it is gone.
        """
        for name in self.order:
            wanted = int(kernel.program_info(programs[name]).id)
            there = [number for number in self._chain(index, name) if number in ours]
            if wanted not in there:
                self._put(index, name, programs[name], wanted, next(iter(there), None))

    def standing(self, index: int, programs: Mapping[str, int], ours: set[int]) -> tuple[bool, str]:
        """Whether these programs judge an interface, and who may end the chain before them, in words."""
        are_there, first = True, ""
        for name in self.order:
            chain = self._chain(index, name)
            are_there = are_there and int(kernel.program_info(programs[name]).id) in chain
            first = first or ("" if not chain or chain[0] in ours else _called(chain[0]))
        return are_there, first

    def detach(self, index: int, ours: set[int]) -> None:
        for name in reversed(self.order):
            if self.by_tcx:
                self._take(index, name, ours)
            else:
                self._unfilter(index, name)

    def detach_all(self) -> list[str]:
        """From every interface, in either form; needs no tables. What was there, in words."""
        ours, gone = self.pinned(), []
        filtered = netlink.with_filters()
        for index, interface in socket.if_nameindex():
            for name in reversed(self.order):
                taken = self._take(index, name, ours)
                if taken | (index in filtered and self._unfilter(index, name)):
                    gone.append(f"{name} from {interface}")
        return gone

    def judged(self) -> Iterator[int]:
        """Interfaces that programs of ours judge."""
        ours = self.pinned()
        filtered = netlink.with_filters() if not self.by_tcx else []
        for index, _name in socket.if_nameindex():
            with _unless_gone():
                if (self.by_tcx or index in filtered) and self._is_judged(index, ours):
                    yield index

    def replace_all(self, programs: Mapping[str, int]) -> None:
        """These programs wherever others of ours are."""
        ours = self.pinned()
        for index in self.judged():
            with _unless_gone():
                self.attach(index, programs, ours)

    # ---- Both forms ---------------------------------------------------------------------------------------

    def _chain(self, index: int, name: str) -> list[int]:
        """Ids in the order in which they see a packet."""
        found = kernel.attached(index, self.family.hooks[name]) if self.has_tcx else []
        if not self.by_tcx:
            found += [self._number(each.name) for each in netlink.filters(index, self._filters_at(name))]
        return found

    def _is_judged(self, index: int, by: set[int]) -> bool:
        return any(by.intersection(self._chain(index, name)) for name in self.order)

    def _put(self, index: int, name: str, program: int, number: int, older: int | None) -> None:
        if not self.by_tcx:
            hook = self._filters_at(name)
            netlink.set_filter(index, hook, self._preference(index, hook), program, self._title(number))
        elif older is None:
            kernel.attach_to_link(program, index, self.family.hooks[name])
        else:
            with program_by_id(older) as replaced:
                kernel.attach_to_link(program, index, self.family.hooks[name], replaced)

    def _take(self, index: int, name: str, ours: set[int]) -> bool:
        taken = False
        if self.has_tcx:
            with _unless_gone():
                for number in ours.intersection(kernel.attached(index, self.family.hooks[name])):
                    with program_by_id(number) as program:
                        kernel.detach(program, index, self.family.hooks[name])
                    taken = True
        return taken

    # ---- clsact -------------------------------------------------------------------------------------------

    def _filters_at(self, name: str) -> int:
        return CLSACT[self.family.hooks[name]]

    def _title(self, number: int) -> str:
        return f"{self._owner}:{number}"

    def _number(self, title: str) -> int:
        """The program's id."""
        name, _, number = title.rpartition(":")
        return int(number) if name == self._owner and number.isdigit() else FOREIGN

    @property
    def _owner(self) -> str:
        return self.root.name if self.family is LINKS else f"{self.root.name}:{self.family.name}"

    def _preference(self, index: int, hook: int) -> int:
        """Ours, else the first that nobody has."""
        there = netlink.filters(index, hook)
        mine = [each.preference for each in there if self._number(each.name)]
        taken = {each.preference for each in there}
        return mine[0] if mine else next(n for n in range(1, len(taken) + 2) if n not in taken)

    def _unfilter(self, index: int, name: str) -> bool:
        mine = [each for each in netlink.filters(index, self._filters_at(name)) if self._number(each.name)]
        for each in mine:
            netlink.remove_filter(index, self._filters_at(name), each.preference)
        return bool(mine)


def replace_on_links(loaded: Datapath) -> Callable[[], None]:
    """Makes the programs of a version that takes over, where older ones are; what puts them there instead."""
    made = []
    for family, programs in ((LINKS, loaded.for_links), (GATEWAY, loaded.for_gateway)):
        there = LinkPrograms(loaded.root, family)
        if any(there.judged()):
            made.append((there, programs()))

    def put() -> None:
        for there, programs in made:
            there.replace_all(programs)

    return put


def detach_everywhere(root: Path) -> list[str]:
    """All programs of interfaces, on links and of a gateway; needs no tables. What was there, in words."""
    return [line for family in FAMILIES for line in LinkPrograms(root, family).detach_all()]


def _called(number: int) -> str:
    if number == FOREIGN:
        return "a filter of tc"
    with suppress(OSError), program_by_id(number) as program:
        name = kernel.ffi.string(kernel.program_info(program).name).decode(errors="replace")
        return f"program {number} ({name})"
    return f"program {number}"


@contextmanager
def _unless_gone() -> Iterator[None]:
    """What was on an interface that has gone, went with it."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
