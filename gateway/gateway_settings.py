"""What gateway.yaml says beside what agent.yaml may: who is forwarded, which way, and who else does so.

The rules this file must obey:

* Pure: paths are texts here, and nothing asks the host.
* Everything that can be seen to be wrong is told at once, with the mend.
* What is left out is what suits a machine with one interface and the platform's own name servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from gateway.policies.addresses import (
    Address,
    BadAddressError,
    Network,
    Server,
    inside,
    parse_network,
    parse_server,
)
from gateway.policies.names import BadNameError, normal
from gateway.policies.reading import SUBDOMAIN, Reading

AUTO = "auto"
DNS_PORT, PEERS_PORT, HEALTH_PORT = 53, 7946, 9808
DRAIN, DUMP, CONNTRACK = 30, 10, 262144
POLICIES = "/etc/skouter/policies"

SNAT: tuple[Literal["masquerade"], Literal["none"]] = ("masquerade", "none")
EVERY = IPv4Address(0)  # of this host
Snat = (
    Literal["masquerade", "none"] | tuple[IPv4Address | None, IPv6Address | None]
)  # masquerade, none, or the addresses


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """`upstreams` that the resolver asks, none: from the root; `zones` have servers of their own. `capture`:
    what clients ask elsewhere is answered here."""

    upstreams: tuple[Server, ...] = ()
    zones: tuple[tuple[str, tuple[Server, ...]], ...] = ()
    capture: bool = True
    port: int = DNS_PORT


@dataclass(frozen=True, slots=True)
class PeersSettings:
    """The other gateways: addresses or names of members, and a Service of Kubernetes (namespace and name)
    behind which they are. All listen on one port; `dump` is in seconds."""

    listen: Server
    members: tuple[str, ...]
    key: str
    old_key: str | None = None
    service: tuple[str, str] | None = None
    dump: int = DUMP


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`clients` are forwarded, and nobody else. `health`: where /livez, /readyz and /metrics are answered;
    `drain` is in seconds. `kubeconfig`: where policies are not files, but those of that API server."""

    clients: tuple[Network, ...] = ()
    inside: str = AUTO
    outside: str = AUTO
    lets_unselected: bool = False
    policies: str = POLICIES
    kubeconfig: str | None = None
    snat: Snat = "masquerade"
    dns: DnsSettings = DnsSettings()
    peers: PeersSettings | None = None
    health: Server | None = None
    drain: int = DRAIN
    conntrack: int = CONNTRACK


def read(reading: Reading) -> GatewaySettings:
    """From a document of the shape below; what is wrong is the reading's to tell."""
    default = GatewaySettings()
    folder = reading.one(("policies",), _path)
    if folder and reading.get("kubernetes") is not None:
        reading.wrong(("policies",), "is there beside kubernetes", "leave one of them out")
    return GatewaySettings(
        clients=_clients(reading),
        inside=reading.one(("inside",), _interface) or AUTO,
        outside=reading.one(("outside",), _interface) or AUTO,
        lets_unselected=reading.get("unselected") == "allow",
        policies=folder or default.policies,
        kubeconfig=reading.one(("kubernetes", "kubeconfig"), _path),
        snat=_snat(reading),
        dns=_dns(reading),
        peers=_peers(reading) if reading.get("peers") is not None else None,
        health=_endpoint(reading, ("health",), HEALTH_PORT),
        drain=_or(reading.get("drainSeconds"), DRAIN),
        conntrack=_or(reading.get("conntrack"), CONNTRACK),
    )


def _clients(reading: Reading) -> tuple[Network, ...]:
    found = reading.each(("clients",), parse_network)
    for index, network in enumerate(found):
        around = [other for other in found if other.prefixlen and other != network and inside(network, other)]
        if around or network in found[:index]:
            path = ("clients", index)
            reading.wrong(path, f"{network} lies in another network of the list", "leave it out")
        elif network.prefixlen == 0:
            mend = "write the networks of your machines, such as 10.0.0.0/8"
            reading.wrong(("clients", index), f"{network} is everybody, servers outside too", mend)
    return found


def _snat(reading: Reading) -> Snat:
    found = reading.get("snat")
    if found is None or found in SNAT:
        return SNAT[SNAT.index(found or SNAT[0])]
    if not isinstance(found, dict) or not found or found.keys() - {"ipv4", "ipv6"}:
        mend = "write masquerade, none, or addresses: {ipv4: 203.0.113.7}"
        reading.wrong(("snat",), f"{found!r} is no translation of sources", mend)
        return SNAT[0]
    ipv4 = reading.one(("snat", "ipv4"), lambda text: _address(text, 4))
    ipv6 = reading.one(("snat", "ipv6"), lambda text: _address(text, 6))
    assert not isinstance(ipv4, IPv6Address)
    assert not isinstance(ipv6, IPv4Address)
    return ipv4, ipv6


def _dns(reading: Reading) -> DnsSettings:
    zones = []
    for name in reading.get("dns", "zones") or {}:
        path = ("dns", "zones", name)
        try:
            zones.append((normal(name), reading.each(path, _dns_server)))
        except BadNameError as error:
            reading.wrong(path, error.wrong, error.mend)
    return DnsSettings(
        upstreams=reading.each(("dns", "upstreams"), _dns_server),
        zones=tuple(sorted(zones)),
        capture=reading.get("dns", "capture") is not False,
        port=_or(reading.get("dns", "port"), DNS_PORT),
    )


def _peers(reading: Reading) -> PeersSettings | None:
    listen = reading.one(("peers", "listen"), lambda text: parse_server(text, PEERS_PORT))
    members = reading.each(("peers", "members"), _member)
    key = reading.one(("peers", "keyFile"), _path)
    if key is None and reading.sound(("peers", "keyFile")):
        mend = "write the path of a file that every gateway has: skouter gateway --make-key"
        reading.wrong(("peers", "keyFile"), "is missing: nobody could tell a gateway from a stranger", mend)
    if key is None:
        return None
    return PeersSettings(
        listen=listen or parse_server("[::]", PEERS_PORT),
        members=members,
        key=key,
        old_key=reading.one(("peers", "oldKeyFile"), _path),
        service=_service(reading),
        dump=_or(reading.get("peers", "dumpSeconds"), DUMP),
    )


def _service(reading: Reading) -> tuple[str, str] | None:
    text = reading.get("peers", "service")
    if text is None:
        return None
    namespace, slash, name = text.partition("/")
    if not slash or not SUBDOMAIN.fullmatch(namespace) or not SUBDOMAIN.fullmatch(name):
        reading.wrong(("peers", "service"), f"{text!r} is no Service", "write NAMESPACE/NAME")
    elif reading.get("kubernetes", "kubeconfig") is None:
        mend = "write kubernetes: {kubeconfig: FILE}, or list members"
        reading.wrong(("peers", "service"), "needs the API server", mend)
    return namespace, name


def _endpoint(reading: Reading, path: tuple[str, ...], port: int) -> Server | None:
    if reading.get(*path) is None:
        return None
    address = reading.one((*path, "address"), _any_address)
    return (address or EVERY, _or(reading.get(*path, "port"), port))


def _or(value: Any, default: int) -> int:
    return default if value is None else int(value)


# ---- Texts ------------------------------------------------------------------------------------------------

_INTERFACE = re.compile(r"[^\s/]{1,15}")  # IFNAMSIZ (netdevice(7))
_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise BadAddressError(f"{text!r} is not the name of an interface", "write eth0, or auto")
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise BadAddressError(f"{text!r} is not a whole path", f"write /etc/skouter/{text}")
    return text


def _any_address(text: str) -> Address:
    return parse_server(f"[{text}]" if ":" in text else text, DNS_PORT)[0]


def _address(text: str, version: int) -> Address:
    found = _any_address(text)
    if found.version != version:
        raise BadAddressError(f"{text!r} is of the other family", f"write it as ipv{found.version}")
    return found


def _dns_server(text: str) -> Server:
    return parse_server(text, DNS_PORT)


def _member(text: str) -> str:
    """An address or a name. All listen on one port, which `listen` has."""
    try:
        return str(_any_address(text))
    except BadAddressError:
        if not _HOST.fullmatch(text):
            mend = "write 10.0.0.1, 2001:db8::1 or gateways.internal; the port is that of listen"
            raise BadAddressError(f"{text!r} is neither an address nor a name", mend) from None
        return text


# ---- Shape ------------------------------------------------------------------------------------------------

_TEXT = {"type": "string", "minLength": 1, "maxLength": 4096}
_SERVERS = {"type": "array", "minItems": 1, "maxItems": 64, "items": _TEXT}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_SECONDS = {"type": "integer", "minimum": 0, "maximum": 86400}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


PROPERTIES: dict[str, Any] = {
    "inside": _TEXT,
    "outside": _TEXT,
    "clients": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _TEXT},
    "unselected": {"type": "string", "enum": ["deny", "allow"]},
    "policies": _TEXT,
    "kubernetes": _object(kubeconfig=_TEXT) | {"required": ["kubeconfig"]},
    "dns": _object(
        upstreams=_SERVERS,
        capture={"type": "boolean"},
        zones={"type": "object", "maxProperties": 1000, "additionalProperties": _SERVERS},
        port=_PORT,
    ),
    "peers": _object(
        listen=_TEXT,
        members={"type": "array", "maxItems": 256, "items": _TEXT},
        service=_TEXT,
        keyFile=_TEXT,
        oldKeyFile=_TEXT,
        dumpSeconds=_SECONDS,
    ),
    "health": _object(address=_TEXT, port=_PORT),
    "snat": {},  # a word or a map
    "drainSeconds": _SECONDS,
    "conntrack": {"type": "integer", "minimum": 1024, "maximum": 2**31 - 1},
}
REQUIRED = ["clients"]
