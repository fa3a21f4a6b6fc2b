"""The one door to the API server: requests that block, answers as plain dictionaries, errors as sentences.

The rules this file must obey:

* It is the only importer of `kubernetes`, and imports it late: who needs no API server does not pay for it.
  The client gives configuration, credentials, TLS and connections; its models of objects are not used, they
  cost ten times the memory of what is kept.
* Nothing is tried again here, nor waited for: whoever asks knows better. Every request ends within a time.
* A token that was renewed counts at once: what the server no longer accepts (401) is read from disk anew.
* Called from worker threads, many at once; `Stream.close` from any thread ends a `read` in another.

Source: Kubernetes API Concepts (watches, bookmarks, 410 Gone), RFC 9110 10.2.3 (Retry-After).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import orjson

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Data = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT, ANSWER = 10.0, 30.0  # seconds for a connection, and between two pieces of an answer
CONNECTIONS = 24  # kept open: one for each watch, and some for what comes between
LONGEST_LINE = 8 << 20  # bytes of one event: etcd takes objects of 1.5 MB

APPLY, JSON = "application/apply-patch+yaml", "application/json"


class ServerError(Exception):
    """What the API server answered instead, or why it could not be asked (`status` 0). `retry_after`: seconds
    that it wants to be left alone."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class SilentError(ServerError):
    """A watch in which nothing came for too long, though it may only have been quiet."""


class Door:
    """A connection to the API server by a kubeconfig, or by the service account of the pod that this runs in.

    `requests` counts what was sent.
    """

    def __init__(self, kubeconfig: Path | None = None, account: Path = SERVICE_ACCOUNT) -> None:
        self.kubeconfig, self.account = kubeconfig, account
        self.requests = 0
        self._lock = threading.Lock()
        self._client: ApiClient | None = None

    def endpoint(self) -> tuple[str, int]:
        """Host and port of the API server, as the configuration has them."""
        parts = urlsplit(self._open().configuration.host)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def get(self, path: str, **query: str | int) -> Data:
        return _read(self._ask("GET", path, query))

    def send(self, method: str, path: str, body: Data, form: str = JSON, **query: str | int) -> Data:
        return _read(self._ask(method, path, query, form, orjson.dumps(body)))

    def watch(self, path: str, silence: float, **query: str | int) -> Stream:
        """`silence`: seconds without a byte after which the connection is taken for broken."""
        return Stream(self._ask("GET", path, {**query, "watch": "1"}, patience=silence))

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        form: str = JSON,
        body: bytes | None = None,
        patience: float = ANSWER,
    ) -> Any:
        from urllib3.exceptions import HTTPError

        client = self._open()
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Accept": JSON, "Content-Type": form}
        if "watch" not in query:
            headers["Accept-Encoding"] = "gzip"  # the server does that for large answers alone
        try:
            with self._lock:  # the token may be read again
                self.requests += 1
                ready = client.param_serialize(
                    method, target, None, None, headers, auth_settings=["BearerToken"]
                )
            response = client.rest_client.pool_manager.request(
                method,
                ready[1],
                headers=ready[2],
                body=body,
                preload_content=False,
                timeout=_within(patience),
            )
        except (HTTPError, OSError, ValueError, _config_error()) as error:
            raise self._unreachable(error) from error
        if 200 <= response.status < 300:
            return response
        raise self._refused(response)

    def _open(self) -> ApiClient:
        with self._lock:
            if self._client is None:
                self._client = _connect(self.kubeconfig, self.account)
            return self._client

    def _renew(self) -> None:
        """What is being read goes on; the next request reads the configuration anew."""
        with self._lock:
            self._client = None

    def _unreachable(self, error: Exception) -> ServerError:
        from urllib3.exceptions import SSLError

        if isinstance(error, SSLError | _config_error()):
            self._renew()  # certificates change, too
        text = str(error).rpartition(": ")[2] or type(error).__name__
        return ServerError(0, f"the API server can't be reached: {text}")

    def _refused(self, response: Any) -> ServerError:
        if response.status == 401:
            self._renew()
        message = response.reason or ""
        with suppress(Exception):
            message = orjson.loads(response.data).get("message") or message
        seconds = response.headers.get("Retry-After", "")
        response.release_conn()
        return ServerError(response.status, message, float(seconds) if seconds.isdigit() else 0.0)


class Stream:
    """The events of one watch, as they come."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._rest = b""

    def read(self) -> list[Data]:
        """The next events, at least one; none at the end of the watch. Raises ServerError, SilentError."""
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        while True:
            try:
                data = self._response.read1(1 << 16)
            except ReadTimeoutError as error:
                raise SilentError(0, "the watch fell silent") from error
            except (HTTPError, OSError, ValueError, AttributeError) as error:
                # The last two: it was closed meanwhile.
                raise ServerError(0, f"the watch broke: {type(error).__name__}") from error
            if not data:
                self._response.release_conn()
                return []
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > LONGEST_LINE:
                raise ServerError(0, f"the watch broke: an event of more than {LONGEST_LINE} bytes")
            if events := [orjson.loads(line) for line in lines if line]:
                return events

    def close(self) -> None:
        """Whoever reads, in whichever thread, stops."""
        with suppress(Exception):
            self._response.shutdown()
        with suppress(Exception):
            self._response.close()


def _connect(kubeconfig: Path | None, account: Path) -> ApiClient:
    from kubernetes import client, config
    from kubernetes.config.incluster_config import InClusterConfigLoader

    settings = client.Configuration()
    try:
        if kubeconfig is None:
            InClusterConfigLoader(str(account / "token"), str(account / "ca.crt")).load_and_set(settings)
        else:
            config.load_kube_config(str(kubeconfig), client_configuration=settings, persist_config=False)
    except (config.ConfigException, OSError) as error:
        mend = "run in a pod with a service account, or name a kubeconfig"
        raise ServerError(0, f"no way to the API server: {error}; {mend}") from error
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it warns of is told here
    settings.retries = False
    settings.keep_alive = True
    settings.connection_pool_maxsize = CONNECTIONS
    made = client.ApiClient(settings)
    made.user_agent = "skouter"
    return made


def _config_error() -> type[Exception]:
    from kubernetes.config import ConfigException

    return ConfigException  # type: ignore[no-any-return]


def _read(response: Any) -> Data:
    from urllib3.exceptions import HTTPError

    try:
        data: Data = orjson.loads(response.data)
    except (HTTPError, OSError, ValueError) as error:
        raise ServerError(0, f"the answer broke off: {type(error).__name__}") from error
    response.release_conn()
    return data


def _within(seconds: float) -> Any:
    from urllib3 import Timeout

    return Timeout(connect=CONNECT, read=seconds)
