"""The policies of an API server as a file that a gateway follows like any other.

Rules this file obeys:

- The file is a whole list, once all of it was heard, and is replaced as a whole; without an object there is
  none. While the server is away it stays, and a gateway that starts meanwhile begins with it.
- An object that can't be read is there in its last version that could, if there was one: the others must not
  wait for its mending.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import trio

from gateway.kubernetes.acceptance import Acceptance
from gateway.kubernetes.source import Kubernetes
from gateway.policies.addresses import Address

NAME = "cluster.json"


class Mirror:
    """`meet` is told the addresses of the other gateways."""

    def __init__(self, source: Kubernetes, folder: Path) -> None:
        self.source = source
        self.file = folder / NAME
        self.meet: Callable[[tuple[Address, ...]], None] = lambda _addresses: None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def is_there(self) -> bool:
        return self.file.exists()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For ever; started when the file is what the server said."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.source.run)
            acceptance = Acceptance(self.source)
            nursery.start_soon(acceptance.run)
            self._write()
            task_status.started()
            while True:
                self.meet(self.source.peers)
                acceptance.look(self.source.cluster)
                await self.source.changed()
                self._write()

    def _write(self) -> None:
        if not self.source.documents:
            self.file.unlink(missing_ok=True)
            return
        found = {"apiVersion": "v1", "kind": "List", "items": self.source.documents}
        text = orjson.dumps(found, option=orjson.OPT_INDENT_2)
        if self.is_there and self.file.read_bytes() == text:
            return
        new = self.file.with_suffix(".new")
        new.write_bytes(text)
        new.replace(self.file)
