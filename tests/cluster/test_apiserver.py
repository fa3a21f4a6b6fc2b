"""The API server of the tests: it comes back as it was, forgets when told to, and goes with its owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import apiserver
from tests.cluster.apiserver import HOST, ApiServer, KubectlError, ServerError

CHECKOUT = Path(__file__).parent.parent.parent
NAMESPACES = "/api/v1/namespaces"


@pytest.fixture(scope="module")
def own(programs: Path) -> Iterator[ApiServer]:
    """One that may be killed without anybody else noticing."""
    with ApiServer(programs) as running:
        yield running


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex((HOST, port)) == 0


def test_a_killed_server_comes_back_with_its_url_and_its_objects(own: ApiServer) -> None:
    assert own.request("POST", NAMESPACES, {"metadata": {"name": "kept"}})[0] == 201
    url = own.url
    own.kill()
    with pytest.raises(urllib.error.URLError):
        own.request("GET", NAMESPACES)
    own.start()
    assert own.url == url
    assert own.request("GET", f"{NAMESPACES}/kept")[0] == 200


def test_a_restart_in_order_ends_watches(own: ApiServer) -> None:
    version = own.request("GET", NAMESPACES)[1]["metadata"]["resourceVersion"]
    with own.open("GET", f"{NAMESPACES}?watch=1&resourceVersion={version}") as watch:
        own.request("POST", NAMESPACES, {"metadata": {"name": "watched"}})
        assert json.loads(watch.readline())["object"]["metadata"]["name"] == "watched"
        own.restart()
        assert watch.read() == b""
    assert own.request("GET", f"{NAMESPACES}/watched")[0] == 200


def test_after_a_compaction_the_past_is_gone(own: ApiServer) -> None:
    _, before = own.request("GET", NAMESPACES)
    version = before["metadata"]["resourceVersion"]
    own.request("POST", NAMESPACES, {"metadata": {"name": "later"}})
    exact = f"?resourceVersion={version}&resourceVersionMatch=Exact"
    assert own.request("GET", NAMESPACES + exact)[0] == 200
    own.compact()
    assert own.request("GET", NAMESPACES + exact)[0] == 410


def test_a_service_accounts_token_is_that_account_and_may_nothing(own: ApiServer) -> None:
    own.kubectl("create", "serviceaccount", "someone", "--namespace", "default")
    token = own.account_token("default", "someone", seconds=600)
    config = own.write_kubeconfig(own.folder / "someone", token)
    who = json.loads(own.kubectl("auth", "whoami", "-o", "json", kubeconfig=config))
    assert who["status"]["userInfo"]["username"] == "system:serviceaccount:default:someone"
    with pytest.raises(KubectlError, match="forbidden"):
        own.kubectl("get", "pods", kubeconfig=config)
    assert own.request("GET", NAMESPACES, token=token)[0] == 403


def test_a_port_that_somebody_took_is_left_to_them(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        ports = iter([other.getsockname()[1], *(apiserver._free_port() for _ in range(3))])
        monkeypatch.setattr(apiserver, "_free_port", lambda: next(ports))
        with ApiServer(programs) as api:
            assert api.etcd.port != other.getsockname()[1]


def test_a_server_that_cannot_start_shows_its_log(programs: Path) -> None:
    api = ApiServer(programs, ["--no-such-flag"])
    with pytest.raises(ServerError, match="unknown flag: --no-such-flag"):
        api.__enter__()
    assert not api.folder.exists()
    assert not listens(api.etcd.port)


def test_servers_die_with_a_killed_owner(programs: Path) -> None:
    code = f"""
from pathlib import Path
from tests.cluster.apiserver import ApiServer
api = ApiServer(Path({str(programs)!r})).__enter__()
print(api.folder, api.etcd.port, api.server.port, flush=True)
input()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, cwd=CHECKOUT)
    assert owner.stdout is not None
    folder, *ports = owner.stdout.readline().split()
    assert all(listens(int(port)) for port in ports)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 60
    while any(listens(int(port)) for port in ports):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with ApiServer(programs):
        assert not Path(folder).exists(), "who comes next tidies up"
