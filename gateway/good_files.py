"""The files of an agent as one set that is good: the last one of them, and what is wrong with a newer one.

Rules this file obeys:

- Files are read and understood as one set. Where that is not good the last good one stays, also that of an
  earlier agent.
- What was said is not said again until it changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gateway import source_files
from gateway.notify import ERR, NOTICE, say
from gateway.policies.records import Problem
from gateway.source_files import Documents, PolicyFiles, Texts, understand

AtLength = Callable[[Callable[[], Any]], Awaitable[Any]]


class GoodFiles:
    """`at_length` runs what takes long in a thread. `problems` are those of the files as they stand."""

    def __init__(self, files: PolicyFiles, kept: Path, at_length: AtLength) -> None:
        self.files, self.kept, self.at_length = files, kept, at_length
        self.texts = source_files.kept(kept)
        self.seen: Texts | None = None  # when the files were read last, good or not
        self.problems: tuple[str, ...] = ()

    async def first(self) -> Documents | None:
        """The set to begin with, that of an earlier agent if need be; None where there is none."""
        documents = await self.read()
        if documents is None and self.texts is not None:
            documents, _ = self._understand(self.texts)
        return documents

    async def read(self) -> Documents | None:
        """The files, if they are good as a whole; every problem is told."""
        texts, unreadable = self.files.read()
        documents, wrong = await self.at_length(lambda: self._understand(texts, self.texts))
        before, self.problems = self.problems, tuple(map(str, (*unreadable, *wrong)))
        if (texts, self.problems) != (self.seen, before):
            self._tell_problems(was_bad=bool(before))
        self.seen = texts
        if documents is None or self.problems:
            return None
        if texts != self.texts:
            say(f"files read: {len(texts.policies)}, objects: {len(documents.objects)}", NOTICE)
            self.texts = texts
            await self.at_length(self._keep)
        assert isinstance(documents, Documents)
        return documents

    def _understand(
        self, texts: Texts, before: Texts | None = None
    ) -> tuple[Documents | None, list[Problem]]:
        return understand(texts, str(self.files.config), before, self.files.gateway)

    def _tell_problems(self, was_bad: bool) -> None:
        for problem in self.problems:
            say(problem, ERR)
        if self.problems and self.texts is not None:
            say("the last good set of files stays in force", ERR)
        elif was_bad and not self.problems:
            say("the files are good again", NOTICE)

    def _keep(self) -> None:
        assert self.texts is not None
        try:
            source_files.keep(self.kept, self.texts)
        except OSError as error:
            say(f"{self.kept}: {error.strerror}: a restart on broken files has an older set", ERR)
