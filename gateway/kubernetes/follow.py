"""One list of the API server, followed: listed whole, then watched, then listed again where that is too old.

The rules this file must obey:

- `items` is always a whole list: what was read half is not in it, and it stays while the server is away.
- A watch goes on where the last one ended, also after a broken connection. Listed again is only what the
  server has forgotten (410) or refuses; consistently then, since a list from a cache may go back in time.
  The first list may come from a cache: a thousand agents that start at once would all ask etcd otherwise.
- A watch is never believed to be alive: the server ends it after some minutes, and sends a bookmark about
  every minute until then, so that a silent connection is a broken one.
- Whatever fails is tried again, later each time, never at the same moment by all agents of a cluster.
- An object of ours is gone only while its definition stays: who deletes the definition deletes every object
  first, and must not open a whole cluster by it. When the definition is back, what it had is kept for as
  long as a watch lasts, so that it can be applied again.

Source: Kubernetes API Concepts: efficient detection of changes, resourceVersion, 410 Gone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import trio

from gateway.kubernetes.api_server import Data, Door, ServerError, SilentError, Stream

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KEEPS_ITS_PLACE = (0, 429, 500, 502, 503)  # after these a watch goes on where it was

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, but for `page`. `watch` is how long the server keeps one open, from and to."""

    watch: tuple[float, float] = (300.0, 600.0)
    silence: float = 150.0  # two bookmarks and a half
    least: float = 1.0  # between two attempts, doubled with each that fails
    most: float = 60.0
    absent: float = 600.0  # and where an API is missing that may be missing
    spread: float = 5.0  # over which agents list again when all of them must
    page: int = 500  # objects


@dataclass(frozen=True, slots=True)
class Resource:
    """A list: where it is, and what is kept of each object.

    `keep` runs in a thread; `succeed` decides what follows on the item before. `definition` is the name of
    its CustomResourceDefinition, for objects of ours. An `optional` API may be missing: no objects then.
    """

    path: str
    keep: Callable[[Data], Any]
    succeed: Callable[[Any, Any], Any] = lambda _before, new: new
    fields: str = ""
    labels: str = ""
    definition: str = ""
    optional: bool = False

    @property
    def plural(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def selection(self) -> dict[str, str | int]:
        wanted = {"fieldSelector": self.fields, "labelSelector": self.labels}
        return {key: value for key, value in wanted.items() if value}


@dataclass(slots=True)
class _Event:
    kind: str
    key: str
    version: str
    item: Any


@dataclass(slots=True)
class Follower:
    """`news` is called whenever `items` (by namespace/name, or name) are others than before, or were listed
    for the first time; `told` whenever `error` or `connected` is another one."""

    door: Door
    resource: Resource
    pace: Pace
    threads: trio.CapacityLimiter
    news: Callable[[Follower], None]
    told: Callable[[], None]
    items: dict[str, Any] = field(default_factory=dict)
    listed: bool = False
    connected: bool = False  # it is followed, or is about to be again without anything having failed
    error: str = ""  # a sentence, while it can't be followed
    _version: str = ""  # where the watch goes on; empty: list first
    _failures: int = 0
    _orphaned: bool = False  # the definition of some items was deleted
    _kept: int = 0  # and how many of them are not there again
    _at_once: bool = False  # no pages: the server forgot the rest of a list before it was asked for

    async def run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                self._failures = 0
                if self._kept:
                    self._version = ""  # whoever did not apply them again does not want them
            except ServerError as error:
                await trio.sleep(self._after(error))

    # ---- Listing ------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        query = self.resource.selection
        if not self.listed:
            query["resourceVersion"] = "0"
        if not self._at_once:
            query["limit"] = self.pace.page
        found: dict[str, Any] = {}
        while True:
            items, metadata = await self._in_thread(partial(self._page, query))
            found |= items
            if not metadata.get("continue"):
                break
            query = {**self.resource.selection, "limit": self.pace.page, "continue": metadata["continue"]}
        lost = self.items.keys() - found.keys()
        if lost or not self.listed:
            await self._confirm()
        self._replace(self.items | found if self._orphaned else found)
        self._version, self._at_once = metadata["resourceVersion"], False
        self._kept = len(lost) if self._orphaned else 0
        self._orphaned = False

    def _page(self, query: dict[str, str | int]) -> tuple[dict[str, Any], Data]:
        data = self.door.get(self.resource.path, **query)
        items = data.get("items") or ()
        return {_key(each): self.resource.keep(each) for each in items}, data["metadata"]

    def _replace(self, found: dict[str, Any]) -> None:
        items = {key: self.resource.succeed(self.items.get(key), new) for key, new in found.items()}
        is_news = not self.listed or items != self.items
        self.items, self.listed = items, True
        if is_news:
            self.news(self)

    # ---- Watching -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        query = {**self.resource.selection, "resourceVersion": self._version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = round(random.uniform(*self.pace.watch))
        began = trio.current_time()
        stream = await self._in_thread(
            lambda: self.door.watch(self.resource.path, self.pace.silence, **query)
        )
        try:
            self._tell(self._sentence_of_the_kept(), connected=True)
            while events := await self._in_thread(lambda: self._read(stream)):
                await self._take(events)
                self._failures = 0
        except SilentError:
            return  # whether the server is there is seen when it is asked again
        finally:
            stream.close()
            if trio.current_time() > began + self.pace.most:
                self._failures = 0
        if trio.current_time() < began + self.pace.least:
            raise ServerError(0, "the watch ended as soon as it began")

    def _read(self, stream: Stream) -> list[_Event]:
        return [self._event(each) for each in stream.read()]

    def _event(self, data: Data) -> _Event:
        kind, what = data["type"], data["object"]
        if kind == "ERROR":
            raise ServerError(int(what.get("code") or 500), what.get("message") or "the watch broke")
        metadata = what["metadata"]
        if kind == "BOOKMARK":
            return _Event(kind, "", metadata["resourceVersion"], None)
        item = None if kind == "DELETED" else self.resource.keep(what)
        return _Event(kind, _key(what), metadata["resourceVersion"], item)

    async def _take(self, events: list[_Event]) -> None:
        if any(event.kind == "DELETED" for event in events):
            await self._confirm()
        is_news = False
        for event in events:
            before = self.items.get(event.key)
            if event.kind == "DELETED":
                self.items.pop(event.key, None)
                is_news = True
            elif event.kind != "BOOKMARK":
                self.items[event.key] = self.resource.succeed(before, event.item)
                is_news = is_news or before != self.items[event.key]
            self._version = event.version
        if is_news:
            self.news(self)

    async def _confirm(self) -> None:
        """Raises where the definition of these objects goes, so that their end is not believed."""
        if not (name := self.resource.definition):
            return
        try:
            metadata = (await self._in_thread(lambda: self.door.get(f"{DEFINITIONS}/{name}")))["metadata"]
            is_going = "deletionTimestamp" in metadata
        except ServerError as error:
            if error.status != 404:
                raise ServerError(
                    error.status, f"{name} can't be read: {error}", error.retry_after
                ) from error
            is_going = True
        if is_going:
            self._orphaned = bool(self.items)
            raise ServerError(404, f"the definition {name} was deleted, its objects are kept")

    # ---- When it fails ------------------------------------------------------------------------------------

    def _after(self, error: ServerError) -> float:
        """What follows from an error; the seconds until the next attempt."""
        was_listing, is_missing = not self._version, error.status == 404 and self.resource.optional
        if error.status not in KEEPS_ITS_PLACE:
            self._version = ""
        if is_missing:
            self._replace({})
            self._tell("", connected=True)
            return self.pace.absent * random.uniform(0.75, 1.5)
        self._failures += 1
        if error.status == 410 and self._failures == 1:
            self._at_once = was_listing
            return random.uniform(0, self.pace.spread)
        self._tell(self._sentence("listed" if was_listing else "watched", error), connected=False)
        grown = min(self.pace.most, self.pace.least * 2.0 ** min(self._failures - 1, 16))
        return error.retry_after + grown * random.uniform(0.75, 1.5)

    def _sentence(self, done: str, error: ServerError) -> str:
        mends = {
            401: "; check the token of its service account",
            403: "; add that to the ClusterRole skouter",
            404: "; apply deploy/crds" if self.resource.definition else "",
            429: "; it asks to be left alone for a while",
        }
        return f"{self.resource.plural} can't be {done}: {error}{mends.get(error.status, '')}"

    def _sentence_of_the_kept(self) -> str:
        if not self._kept:
            return ""
        name = self.resource.plural
        return f"{self._kept} {name} of a definition that was deleted stay for some minutes; apply them again"

    def _tell(self, error: str, connected: bool) -> None:
        if (error, connected) != (self.error, self.connected):
            self.error, self.connected = error, connected
            self.told()

    async def _in_thread(self, step: Callable[[], Result]) -> Result:
        """What can't be read is an error like another: one object must not end the agent."""
        try:
            return await trio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self.threads)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(422, f"sent what can't be read ({type(error).__name__}: {error})") from error


def _key(data: Data) -> str:
    metadata = data["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else str(metadata["name"])
