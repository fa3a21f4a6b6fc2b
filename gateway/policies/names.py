"""DNS names and wildcards: what a policy may write, what it matches, and the kernel's form of it.

The rules this file must obey:

* Names compare ASCII case-insensitively (RFC 4343) and a trailing dot means nothing: the normal form is
  lower-case, without it. Unicode becomes A-labels by UTS #46, non-transitional (RFC 5891).
* A label has 1 to 63 octets, a name at most 253 in this form (RFC 1035, 2.3.4). Beyond letters, digits and
  "-" only "_" is taken (RFC 8552 puts it into real names): any other octet of an answer teaches nothing.
* `*.example.com` is one or more labels below example.com, never example.com itself and never
  evilexample.com (Kubernetes NPEP-133). `*` is every name, `**.` reads as `*.`. No other `*` has a meaning.
* What cannot be matched is refused with a mend, never skipped.

The kernel looks a name up in a longest-prefix table, so it is kept from its end: "example.com" is
b"moc.elpmaxe\\0". The terminator belongs to an exact name and makes all of it significant; a wildcard stops
after its dot, b"moc.elpmaxe.", and so is a prefix of every name below it, but not of the apex.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

LONGEST_NAME = 253
KEY_BYTES = LONGEST_NAME + 1  # one more for the terminator

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


class BadNameError(ValueError):
    """A text that is no name: what is wrong with it, and what to write instead."""

    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(f"{wrong}; {mend}")
        self.wrong = wrong
        self.mend = mend


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """One name (`exact`), or all names below one; `text` is the normal form and says which."""

    text: str
    exact: bool

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Pattern:
    """The pattern that a policy's `text` means; raises BadNameError."""
    if text == "*":
        return Pattern("*", exact=False)
    star, dot, rest = text.partition(".")
    wildcard = bool(dot) and star in ("*", "**")
    if "*" in (rest if wildcard else text):
        raise BadNameError(f"{text!r} has a * that no rule gives a meaning", _mend(text))
    if not wildcard:
        return Pattern(normal(text), exact=True)
    try:
        name = normal(rest)
    except BadNameError as error:
        raise BadNameError(error.wrong, _mend(text)) from None
    if len(name) + len("*.") > LONGEST_NAME:
        raise BadNameError(f"{text!r} leaves no room for a label below it", "write a shorter name")
    return Pattern(f"*.{name}", exact=False)


def normal(text: str) -> str:
    """The normal form of one name, wildcards excluded; raises BadNameError."""
    name = (text if text.isascii() else _a_labels(text)).lower().removesuffix(".")
    if len(name) > LONGEST_NAME:
        raise BadNameError(f"a name of {len(name)} characters is too long", f"DNS ends at {LONGEST_NAME}")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise BadNameError(_complaint(text, label), _mend(text))
    if _is_address(name):
        raise BadNameError(f"{text!r} is an address, not a name", _mend(text))
    return name


def matches(pattern: Pattern, name: str) -> bool:
    """Whether `pattern` covers `name`, which is in normal form."""
    if pattern.exact:
        return name == pattern.text
    return pattern.text == "*" or name.endswith(pattern.text[1:])


def suffix_key(pattern: Pattern) -> tuple[int, bytes]:
    """The significant bits and the padded text of a pattern's row in the kernel's table of names."""
    reversed_text = pattern.text.removeprefix("*")[::-1]
    text = reversed_text + "\0" if pattern.exact else reversed_text
    return 8 * len(text), text.encode().ljust(KEY_BYTES, b"\0")


def _a_labels(text: str) -> str:
    # Imported here: the tables of Unicode are large, and most policies are plain ASCII.
    import idna

    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in mapped.split(".")
        )
    except (idna.IDNAError, UnicodeError) as error:
        raise BadNameError(f"{text!r} is no international name: {error}", _mend(text)) from error


def _complaint(text: str, label: str) -> str:
    if not label:
        return f"{text!r} has an empty label"
    if len(label) > 63:
        return f"{text!r} has a label of {len(label)} characters, DNS ends at 63"
    odd = next(c for c in label if not _LABEL.fullmatch(c))
    return f"{text!r} has {odd!r} in it, which no name has"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _mend(text: str) -> str:
    """The likeliest thing that was meant, by what people paste into a list of names."""
    bare = text.strip().strip(".")
    if _is_address(bare):
        return f"write {bare.strip('[]')} under ips"
    if "/" in bare and _is_address(bare.split("/")[0]):
        return f"write {bare} under cidrs"
    host = re.sub(r"^[a-z][a-z0-9+.-]*://", "", bare.lower()).split("/")[0]
    host, _, port = host.rpartition("@")[2].partition(":")
    before, star, after = host.rpartition("*")
    # What surrounds a star within its label cannot be said: all names below the rest of it can. A star in
    # front of everything lacks its dot.
    below = host if not star else after.partition(".")[2] if before.strip("*.") else after
    labels = [label for label in below.split(".") if label]
    guess = ".".join(["*"] * bool(star) + labels)
    if not all(map(_LABEL.fullmatch, labels)) or not guess or _is_address(".".join(labels)):
        return "write a name such as example.com, or *.example.com for all names below it"
    return f"write {guess}" + (f", and {port} under ports" if port.isdigit() else "")
