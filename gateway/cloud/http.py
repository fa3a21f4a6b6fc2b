"""One question over HTTP, answered in time or not at all.

Rules this file obeys:

- A redirection is not followed: what is asked carries credentials.
- What is told of an error is where and what the server said, never what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping

import urllib3

TIMEOUT = 10.0  # seconds
LARGEST = 1 << 20  # bytes of an answer that are read


class CloudError(Exception):
    """The cloud did not answer, or refused; the message says who and why."""


_pool = urllib3.PoolManager(retries=False)


def ask(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
    seconds: float = TIMEOUT,
) -> str:
    """The body of the answer; raises CloudError where its status is not 200."""
    try:
        answer = _pool.request(
            method, url, body=body, headers=headers, redirect=False, preload_content=False, timeout=seconds
        )
        try:
            text = answer.read(LARGEST).decode(errors="replace")
        finally:
            answer.release_conn()
    except urllib3.exceptions.HTTPError as error:
        raise CloudError(f"{_where(url)} does not answer: {error}") from error
    if answer.status != 200:
        raise CloudError(f"{_where(url)} says {answer.status}: {text[:500]}")
    return text


def _where(url: str) -> str:
    return url.partition("?")[0]
