"""Addresses and networks: what a policy may write, and what lies inside of what.

The rules this file must obey:

* A text means exactly one network: it says its prefix length and has no host bits, or it is one address.
  There are no zones, and IPv4 is never written as IPv6.
* What is refused is refused with a mend: the corrected text itself, wherever there is one.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Server = tuple[Address, int]  # and the port on which it answers

V4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class BadAddressError(ValueError):
    """A text that is no address or network: what is wrong with it, and what to write instead."""

    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.mend = mend


def inside(part: Network, whole: Network) -> bool:
    """Whether all of `part` lies in `whole`; never across families."""
    shift = whole.max_prefixlen - whole.prefixlen
    return (
        part.version == whole.version
        and part.prefixlen >= whole.prefixlen
        and int(part.network_address) >> shift == int(whole.network_address) >> shift
    )


def parse_address(text: str) -> Network:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        mend = (
            f"write {text} under cidrs"
            if "/" in text
            else "write an address such as 192.0.2.1; names are domains"
        )
        raise BadAddressError(f"{text!r} is not an address", mend) from None
    return _plain_network(text, ipaddress.ip_network(address.packed), "")


def parse_network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadAddressError(f"{text!r} is not a network", "write a network such as 10.0.0.0/8") from None
    length = f"/{network.prefixlen}"
    if not text.endswith(length):
        raise BadAddressError(f"{text!r} does not end with a prefix length", f"write {network}")
    if network.network_address != ipaddress.ip_address(text.removesuffix(length)):
        raise BadAddressError(f"{text!r} has host bits", f"write {network}")
    return _plain_network(text, network, length)


def parse_address_or_network(text: str) -> Network:
    return parse_network(text) if "/" in text else parse_address(text)


def parse_server(text: str, port: int) -> tuple[Address, int]:
    """`192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`; `port` where it names none."""
    host, found = text, str(port)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        found = rest[1:] if rest.startswith(":") else found if not rest else "?"
    elif text.count(":") == 1:
        host, found = text.split(":")
    try:
        if not found.isascii() or not 0 < int(found) < 65536:
            raise ValueError(found)
        return ipaddress.ip_address(host), int(found)
    except ValueError:
        raise BadAddressError(
            f"{text!r} is not an IP address", "write 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353"
        ) from None


def _plain_network(text: str, network: Network, length: str) -> Network:
    """Refuses what the kernel's tables mean otherwise: IPv4 in IPv6 clothes, and zones."""
    if "%" in text:
        raise BadAddressError(f"{text!r} has a zone", f"write {network.network_address}{length}")
    if inside(network, V4_MAPPED):
        v4 = ipaddress.IPv6Address(network.network_address).ipv4_mapped
        suffix = length and f"/{network.prefixlen - V4_MAPPED.prefixlen}"
        raise BadAddressError(f"{text!r} is an IPv4 address written as IPv6", f"write {v4}{suffix}")
    return network
