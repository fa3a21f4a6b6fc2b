"""The other gateways, as an agent has them: what it hears in the kernel goes to them, and theirs into it.

Rules this file obeys:

- A policy's number is this host's own: it goes out as the policy's digest, and comes in as what has it.
- Keys are read again whenever the plan is made: who changes them needs no restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bpf.datapath import Datapath
from bpf.events import Event, pack_address
from gateway.engine import Held
from gateway.gateway_settings import PeersSettings
from gateway.peers import sealing
from gateway.peers.facts import digest
from gateway.peers.ledger import Ledger
from gateway.peers.talk import Peers
from gateway.plan import Wanted
from gateway.states import EngineError

HOLD_BACK = 500  # milliseconds in which another gateway can say what it knows; a SYN comes again after 1,000


class Neighbours:
    """Made, it listens already; raises :class:`OSError` and :class:`gateway.states.EngineError`."""

    def __init__(self, datapath: Datapath, settings: PeersSettings) -> None:
        self._digests: dict[int, bytes] = {}  # by policy number
        self._numbers: dict[bytes, tuple[int, ...]] = {}
        self._keys = _keys(settings)
        ledger = Ledger(datapath, lambda: self._numbers)
        self.peers = Peers(ledger, self._keys, settings.members, settings.listen, settings.dump)
        datapath.set(hold_back=HOLD_BACK)

    def follow(self, wanted: Mapping[str, Wanted], held: Mapping[str, Held], settings: PeersSettings) -> None:
        """The policies that are held from now on."""
        self._digests = {held[name].number: digest(wanted[name].policy) for name in wanted if name in held}
        self._numbers = {
            each: tuple(number for number, other in self._digests.items() if other == each)
            for each in {*self._digests.values()}
        }
        keys = _keys(settings)
        if keys != self._keys:
            self._keys = keys
            self.peers.use(keys)

    def hear(self, event: Event) -> None:
        if (of := self._digests.get(event.policy)) is None:
            return
        if event.reason == "LEARNED":
            self.peers.learned(of, pack_address(event.remote))
        elif event.reason == "HELD_BACK":
            self.peers.missed(of, pack_address(event.remote))

    def unready(self) -> tuple[str, ...]:
        """In words; nobody waits for longer than `dumpSeconds`."""
        return () if self.peers.ready.is_set() else ("the other gateways have not told what they know yet",)


def _keys(settings: PeersSettings) -> sealing.Keys:
    old = _key(settings.old_key) if settings.old_key else None
    return sealing.Keys(_key(settings.key), old)


def _key(file: str) -> sealing.Key:
    try:
        return sealing.read_key(Path(file).read_text())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise EngineError(f"{file}: {why}") from error
