"""What the kernel tells, as frozen records, and the sentence for each reason."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from bpf.contract import contract

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Reason = IntEnum("Reason", {name: value for value, name in contract().enumerators("reason").items()})  # type: ignore[misc]
Verdict = IntEnum("Verdict", {name: value for value, name in contract().enumerators("verdict").items()})  # type: ignore[misc]

SENTENCES = {
    "ALLOWED": "a rule allows it",
    "ESTABLISHED": "its flow was admitted before",
    "LOOPBACK": "it stays on this machine",
    "RESOLVER": "to a trusted DNS server",
    "INBOUND": "answers what came in from outside",
    "NEIGHBOUR": "IPv6 neighbour discovery",
    "HOUSEKEEPING": "what keeps the host on its network",
    "PROXIED": "DNS over TCP, which is read",
    "UNCLASSIFIED": "the workload has no policy yet",
    "UNREADABLE": "its headers can't be read",
    "FRAGMENT": "a hand-made fragment",
    "LATER_FRAGMENT": "a fragment that belongs to nothing that was admitted",
    "IP_OPTION": "an IPv4 option",
    "SOURCE_ROUTE": "a source route to another destination",
    "EXTENSION_HEADER": "an IPv6 extension header",
    "ICMP_ERROR": "an ICMP error made by the workload itself",
    "SPOOFED": "a forged source",
    "NOT_ALLOWED": "no rule allows this address",
    "PORT_NOT_ALLOWED": "allowed, but not on this port",
    "EXPIRED": "its DNS answer ran out: resolve the name again",
    "WITHDRAWN": "the rule that admitted it was withdrawn",
    "FLOWS_FULL": "too many peers at once: the table of open flows has no room for this workload's",
    "QUESTION_REFUSED": "a question for a name that no rule allows",
    "QUESTION_UNREAD": "only allowed names may be asked for, and this way of asking is not read",
    "VLAN_TAG": "a frame of a VLAN",
    "NOT_IP": "a frame that is not IP",
    "PROXY_AWAY": "DNS over TCP while nobody reads it: the agent is away",
    "OUT_OF_STATE": "of a connection that did not begin at this gateway",
    "HELD_BACK": "not known here yet: other gateways are asked",
    "QUESTION_UNREADABLE": "to a DNS server, but no DNS question",
    "QUESTIONS_FULL": "too many open DNS questions: the oldest can no longer be answered",
    "LEARNED": "an address of an allowed name",
    "SEEN": "an address of a name that no rule allows",
    "ANSWER_UNASKED": "a DNS answer that nobody asked for",
    "ANSWER_LATE": "a DNS answer that came too late",
    "ANSWER_UNREADABLE": "a broken DNS answer",
    "ANSWER_TRUNCATED": "a truncated DNS answer",
    "ANSWER_LONG": "a DNS answer too long to learn whole",
    "ANSWER_BUSY": "a DNS answer that could not be read in time",
    "ANSWER_DEFERRED": "a DNS answer too long to read: asked for again over TCP",
    "NEVER_LEARNED": "an address that DNS may not teach",
    "GRANT_CROWDED": "a grant made room for another name on the same address",
    "NAME_FULL": "its name has as many addresses as it may have",
    "GRANTS_FULL": "the table of grants is full",
    "INBOUND_FULL": "too many peers outside at once: the oldest can no longer be answered",
    "EVENTS_LOST": "told of too late",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One verdict, or one address of a DNS answer (then `name` is the question's).

    `time` and `expires` are nanoseconds of CLOCK_BOOTTIME; `peer` is the id of the admitting peer or 0.
    """

    time: int
    workload: int
    socket: int
    peer: int
    policy: int
    reason: str
    verdict: str
    protocol: int
    local: Address
    remote: Address
    local_port: int
    remote_port: int
    pid: int
    process: str
    name: str = ""
    expires: int = 0


def decode(data: bytes) -> Event:
    """One sample of a ring buffer (struct event or struct answer_event)."""
    layout = contract()
    name, expires = "", 0
    if len(data) >= layout.ffi.sizeof("struct answer_event"):
        answer = layout.unpack("struct answer_event", data)
        name = layout.ffi.string(answer.name).decode("ascii", "replace")
        expires = int(answer.expires)
        held = answer.event
    else:
        held = layout.unpack("struct event", data)
    return _record(held, name, expires)


def _record(held: Any, name: str, expires: int) -> Event:
    return Event(
        time=int(held.time),
        workload=int(held.workload),
        socket=int(held.socket),
        peer=int(held.peer),
        policy=int(held.policy),
        reason=Reason(held.reason).name,
        verdict=Verdict(held.verdict).name,
        protocol=int(held.protocol),
        local=address(bytes(held.local)),
        remote=address(bytes(held.remote)),
        local_port=int.from_bytes(bytes(held.local_port), "big"),
        remote_port=int.from_bytes(bytes(held.remote_port), "big"),
        pid=int(held.pid),
        process=contract().ffi.string(held.comm).decode("utf-8", "replace"),
        name=name,
        expires=expires,
    )


def address(raw: bytes) -> Address:
    """16 bytes of the contract; IPv4 comes out as itself."""
    value = ipaddress.IPv6Address(raw)
    return value.ipv4_mapped or value


def pack_address(value: Address | str) -> bytes:
    """The inverse of :func:`address`."""
    value = ipaddress.ip_address(value)
    if value.version == 4:
        return b"\0" * 10 + b"\xff\xff" + value.packed
    return value.packed
