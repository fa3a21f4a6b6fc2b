"""One table of nftables, by its name: read and written whole, through nft(8).

Rules this file obeys:

- A table is a list of objects of libnftables-json(5), without what the kernel adds to them: handles, and what
  counters have counted.
- It is written at once in place of what was there, or not at all.
- Without nft(8) there is no table, and none can be written: that is told.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import Any

NFT = "nft"
FAMILY = "inet"
NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7  # linux/netlink.h, linux/netfilter/nfnetlink.h

Json = dict[str, Any]


def read(name: str) -> tuple[Json, ...]:
    if not shutil.which(NFT):
        return ()
    tables = _objects(_nft("list", "tables", FAMILY))
    if not any(item.get("table", {}).get("name") == name for item in tables):
        return ()
    return tuple(_plain(item) for item in _objects(_nft("list", "table", FAMILY, name)))


def write(name: str, table: tuple[Json, ...]) -> None:
    """Nothing: the table is removed."""
    ours = {"table": {"family": FAMILY, "name": name}}
    steps = [{"add": ours}, {"delete": ours}, *({"add": item} for item in table)]
    _nft("-f", "-", text=json.dumps({"nftables": steps}))


def insert(rule: Json) -> None:
    """Before all others of its chain."""
    _nft("-f", "-", text=json.dumps({"nftables": [{"insert": rule}]}))


def changes() -> socket.socket:
    """Becomes readable when somebody changes nftables in this network namespace, we ourselves too."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    link = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
    link.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
    return link


def _objects(text: str) -> list[Json]:
    return [item for item in json.loads(text)["nftables"] if "metainfo" not in item]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: None if key == "counter" else _plain(item) for key, item in value.items() if key != "handle"}


def _nft(*words: str, text: str = "") -> str:
    try:
        done = subprocess.run([NFT, "-j", *words], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError("nft is not there: install the package nftables") from None
    if done.returncode:
        raise OSError(f"nft {' '.join(words)}: {(done.stderr.strip() or 'failed').splitlines()[0]}")
    return done.stdout
