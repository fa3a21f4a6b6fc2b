"""The links of workloads: what is judged there, and what keeps one from being judged.

Rules this file obeys:

- A link's row is there before a program that asks for it, and goes after it.
- A workload's row says LINKED only while all that leaves its home is judged on its way, by nobody before us:
  the socket side then leaves to the link what only a link can do (answer a question that is refused, lead DNS
  over TCP to the proxy).
- Nobody pushes others aside: who came before us is told, and LINKED is taken back.
- A bridge whose ports are links has a row of no workload and the same programs: they judge nothing there, but
  give to the proxy again what netfilter took from it.
- Whoever changes anything here holds the instance's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from bpf.contract import contract
from bpf.datapath import Datapath
from gateway.link_programs import LinkPrograms
from routing import steering
from routing.interfaces import interface
from routing.links import Link, Ways
from routing.steering import Marks

ATTACHED, BYPASSED, NONE = "attached", "bypassed", "none"
BRIDGE = 0  # in place of a workload
NOT_SEEN = "no interface leads out of its network yet"


@dataclass(frozen=True, slots=True)
class State:
    """Of a workload's link, and why it is no better."""

    link: str
    why: str = ""


class Links:
    """All links of one kernel half, in the calling thread's network namespace."""

    def __init__(self, loaded: Datapath, by_tcx: bool | None = None) -> None:
        self.datapath, self.on = loaded, LinkPrograms(loaded.root, by_tcx=by_tcx)
        self.hand_over: Callable[[], None] = lambda: None  # has the links lead DNS over TCP to the proxy
        held = loaded["settings"][0]
        self._marks = Marks(int(held.mark_mask), int(held.mark))
        self._ways: dict[int, Ways] = {}
        self._last: dict[int, State] = {}
        self._failed: dict[int, str] = {}  # workloads of which some link could not be judged
        self._ours: set[int] = set()
        self._looked: dict[int, tuple[bool, str]] = {}  # by interface: how our programs stand there

    def settle(self) -> None:
        """Before anything is attached to cgroups: who says LINKED without being so does it no more."""
        self._ours = self.on.pinned()
        linked, unlinked = set[int](), set[int]()
        for index, workload in self._rows().items():
            try:
                is_judged, first = self.on.standing(index, self._programs(), self._ours)
            except OSError:
                is_judged, first = False, ""
            (linked if is_judged and not first else unlinked).add(workload)
        for key, row in self.datapath["workloads"].items():
            if int(row.flags) & _linked() and int(key) not in linked - unlinked:
                self._say(int(key), False)

    def keep(self, workloads: Collection[int]) -> None:
        """Lets the links of all others go; to be done while these are still held to something."""
        self._ours = self.on.pinned()
        over = {index: one for index, one in self._rows().items() if one not in {*workloads, BRIDGE}}
        for workload in set(over.values()):
            self._say(workload, False)
        for index in over:
            self._let_go(index)
        self._ways = {workload: ways for workload, ways in self._ways.items() if workload in workloads}
        if not workloads:
            self._let_bridges_go()

    def follow(self, wanted: Mapping[int, Ways]) -> dict[int, State]:
        """Makes it so: a held workload's id to the ways out of its home. How these are."""
        if any(ways.links for ways in wanted.values()):
            self._programs()  # the first link has them made, and pinned
        self._ours = self.on.pinned()
        meant = {link.index for ways in wanted.values() for link in ways.links}
        over = {  # what is merely not seen there any more may still lead here
            index
            for index, one in self._rows().items()
            if one in wanted and index not in meant and interface(index) is None
        }
        self._failed = {}
        for workload, ways in wanted.items():
            for link in ways.links:
                self._judge(link, workload)
        self._ways |= wanted
        states = self._last = self.states()
        for workload, state in states.items():
            self._say(workload, state.link == ATTACHED)
        for index in over:
            self._let_go(index)
        self._let_bridges_go()
        return states

    def states(self) -> dict[int, State]:
        """How the links are now; changes nothing."""
        return {workload: self._state(workload, ways) for workload, ways in list(self._ways.items())}

    def moved(self) -> bool:
        """Whether somebody else did something to a link since :meth:`follow`."""
        before, now = self._last, self.states()
        return any(now.get(workload, state) != state for workload, state in before.items())

    def look_again(self) -> None:
        """To be called now and then: of a change to filters of tc nobody tells, and each takes a question."""
        self._looked = {}

    @property
    def marks(self) -> Marks:
        return self._marks

    def mark(self, marks: Marks) -> None:
        """Which marks are ours, from now on."""
        self._marks = marks
        self.datapath.set(mark=marks.steered, mark_mask=marks.mask)

    def steer(self, name: str) -> None:
        """What the links hand to the proxy gets there; `name` is that of the table of nftables.

        Raises :class:`OSError` with what is missing: then nothing is handed to it, or it would vanish on the
        way, and DNS over TCP is refused at once.
        """
        try:
            steering.apply(self._marks, name)
        except OSError:
            for family in range(2):
                self.datapath["listeners"].discard(family)
            raise
        self.hand_over()

    # ---- One link -----------------------------------------------------------------------------------------

    def _judge(self, link: Link, workload: int) -> None:
        try:
            self._put(link.index, workload, link.mac)
            if link.bridge:
                self._put(link.bridge, BRIDGE, bytes(6))
        except OSError as error:
            self._failed[workload] = f"{link.name}: {error.strerror}"

    def _put(self, index: int, workload: int, mac: bytes) -> None:
        table = self.datapath["links"]
        there = table.get(index)
        if there is None or (int(there.workload), bytes(there.mac)) != (workload, mac):
            table[index] = (workload, mac, bytes(2))
        if not self._standing(index)[0]:
            self.on.attach(index, self._programs(), self._ours)
            self._looked.pop(index, None)

    def _let_bridges_go(self) -> None:
        """Those that have none of the links any more."""
        meant = {link.bridge for ways in self._ways.values() for link in ways.links}
        for index in {index for index, one in self._rows().items() if one == BRIDGE} - meant:
            self._let_go(index)

    def _let_go(self, index: int) -> None:
        self.on.detach(index, self._ours)
        self.datapath["links"].discard(index)
        self._looked.pop(index, None)

    def _state(self, workload: int, ways: Ways) -> State:
        if workload in self._failed:
            return State(NONE, self._failed[workload])
        if not ways.links and not ways.astray:
            return State(NONE, NOT_SEEN)
        if not ways.links:
            return State(NONE, ways.astray[0])
        for link in ways.links:
            try:
                is_judged, first = self._standing(link.index)
                first = f"XDP program {link.xdp}" if link.xdp else first
                if not is_judged:
                    return State(NONE, f"{link.name}: somebody detached what judges it")
                if first:
                    return State(BYPASSED, f"{first} sees the packets of {link.name} first")
            except OSError as error:
                return State(NONE, f"{link.name}: {error.strerror}")
        return State(BYPASSED, ways.astray[0]) if ways.astray else State(ATTACHED)

    def _standing(self, index: int) -> tuple[bool, str]:
        if self.on.by_tcx:
            return self.on.standing(index, self._programs(), self._ours)
        if index not in self._looked:
            self._looked[index] = self.on.standing(index, self._programs(), self._ours)
        return self._looked[index]

    # ---- Rows ---------------------------------------------------------------------------------------------

    def _programs(self) -> dict[str, int]:
        return self.datapath.for_links()

    def _rows(self) -> dict[int, int]:
        return {int(index): int(row.workload) for index, row in self.datapath["links"].items()}

    def _say(self, workload: int, is_linked: bool) -> None:
        """In the row of a workload that is held to a policy."""
        row = self.datapath["workloads"].get(workload)
        if row is None or not 0 < int(row.policy) < contract().constant("POLICIES"):
            return
        flags = int(row.flags) | _linked() if is_linked else int(row.flags) & ~_linked()
        if flags != int(row.flags):
            self.datapath["workloads"][workload] = (int(row.policy), flags, int(row.home))


def _linked() -> int:
    return contract().constant("LINKED")
