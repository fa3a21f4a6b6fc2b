"""`--allow` on the command line: NAME[:PORT], from text to a rule."""

from __future__ import annotations

import re

from gateway.policies.addresses import BadAddressError, parse_address_or_network
from gateway.policies.names import BadNameError, parse
from gateway.policies.records import Block, Egress, Ports, Rule

PORT = re.compile(r"(?P<first>\d{1,5})(-(?P<last>\d{1,5}))?(/(?P<protocol>tcp|udp|sctp))?", re.IGNORECASE)
LIKE_AN_ADDRESS = re.compile(r"[0-9.]+(/.*)?|[0-9a-f.]*:[0-9a-f:.]*([%/].*)?", re.IGNORECASE)


class BadAllowError(ValueError):
    """The message names the option's value and the mend."""


def rule(text: str) -> Rule:
    """`api.example.com`, `*.example.com:443`, `192.0.2.0/24:8000-8080`, `[2001:db8::1]:53/udp`.

    Without a port: every port and protocol; with one: TCP, unless it says /udp or /sctp.
    """
    try:
        host, port = _split(text)
        ports = (_ports(text, port),) if port is not None else ()
        if LIKE_AN_ADDRESS.fullmatch(host):
            return Rule(blocks=(Block(parse_address_or_network(host)),), ports=ports)
        return Rule(domains=(parse(host),), ports=ports)
    except BadAllowError as error:
        raise BadAllowError(f"--allow {error}") from None
    except (BadAddressError, BadNameError) as error:
        raise BadAllowError(f"--allow {text}: {error.wrong}; {error.mend}") from None


def egress(texts: list[str], audit: bool) -> Egress:
    """All `--allow` options as one object; every problem at once."""
    rules, problems = [], []
    for text in texts:
        try:
            rules.append(rule(text))
        except BadAllowError as error:
            problems.append(str(error))
    if problems:
        raise BadAllowError("\n".join(problems))
    return Egress(namespace="default", name="command-line", audit=audit, rules=tuple(rules))


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise BadAllowError(f"{text}: write [2001:db8::1]:443, or 2001:db8::1 without a port")
        return host, rest[1:] if rest else None
    if text.count(":") == 1:
        host, port = text.split(":")
        return host, port
    return text, None


def _ports(text: str, port: str) -> Ports:
    match = PORT.fullmatch(port)
    if match:
        first = int(match["first"])
        last = int(match["last"] or first)
        if 1 <= first <= last <= 65535:
            return Ports((match["protocol"] or "tcp").upper(), first, last)
    raise BadAllowError(f"{text}: {port!r} is no port: write 443, 8000-8080 or 53/udp (1 to 65535)")


def destination(text: str) -> tuple[str, int | None, str]:
    """NAME[:PORT[/PROTOCOL]] of `policy explain` as (host, port or None, protocol)."""
    host, port = _split(text)
    if port is None:
        return host, None, "TCP"
    found = _ports(text, port)
    if found.first != found.last:
        raise BadAllowError(f"{text}: ask for one port at a time")
    return host, found.first, found.protocol
