"""What the API server itself refuses beyond the shape of an object: rules in CEL, each with its mend.

The rules this file must obey:

* documents.py refuses all of this too, and more: what CEL can't say (international names, what an expression
  for names means, an address with a dot behind it) the agent says, by the condition Accepted.
* The server prices each rule by the largest object that the schema permits, and takes 10 million for a rule,
  100 million for a definition. Domains are the dear ones, 64 rules x 1,000: a rule there may cost 156, which
  is one search through a text of four bytes a character, and no regular expression. So a pattern, which costs
  nothing and has no message, decides about names, and rules add the mend for what people write most often.
* A message is a text, or one text joined to another: what `string` makes of anything has no bound.
* Only functions that Kubernetes 1.31 has: that is the oldest server.

Source: https://kubernetes.io/docs/reference/using-api/cel, k8s.io/apiserver/pkg/cel/library.
"""

from __future__ import annotations

from typing import Any

KEY = "x-kubernetes-validations"


class Computed(str):
    """A mend that is itself an expression of CEL, evaluated where its rule does not hold."""

    __slots__ = ()


def refuse(*rules: tuple[str, str] | tuple[str, str, str]) -> dict[str, Any]:
    """Rules for a node of a schema: what must hold, the mend where it does not, and at which field below."""
    return {KEY: [_rule(*rule) for rule in rules]}


def _rule(holds: str, mend: str, field: str = "") -> dict[str, str]:
    message = "messageExpression" if isinstance(mend, Computed) else "message"
    return {"rule": holds, message: str(mend)} | ({"fieldPath": field} if field else {})


_LABEL = "[A-Za-z0-9_-]{1,63}"
_PLAIN = rf"({_LABEL}\.)*{_LABEL}\.?"
_ABROAD = r"[A-Za-z0-9_.-]*[^\x00-\x7F]([A-Za-z0-9_.-]|[^\x00-\x7F])*"  # the agent tells whether it is a name
NAME = {
    "pattern": rf"^(\*|(\*\*?\.)?({_PLAIN}|{_ABROAD}))$",
    **refuse(
        ("!self.contains('/')", "write the name alone, without scheme and path; networks stand under cidrs"),
        ("!self.contains(':')", "write the name alone; ports stand under ports, IPv6 addresses under ips"),
        ("!isIP(self)", "write addresses under ips"),
        (
            "(self.lastIndexOf('*') < 1 || self.startsWith('**.')) && "
            "(!self.startsWith('*') || self == '*' || self.startsWith('*.') || self.startsWith('**.'))",
            "a * stands only in front, before a dot: write *.example.com for all names below example.com",
        ),
        (
            "size(self) - (self.startsWith('**.') ? 1 : 0) - (self.endsWith('.') ? 1 : 0) <= 253",
            "write a shorter name: DNS ends at 253 characters",
        ),
    ),
}
REGEX = refuse(
    (
        "''.matches(self) in [true, false]",  # an error, with RE2's own words, where it can't be compiled
        "names with a * stand under domains; see https://github.com/google/re2/wiki/Syntax",
    ),
    (r"self.matches('^[\\x00-\\x7F]*$')", "write international names as they travel: xn--..."),
    (
        r"!self.matches('^([^\\\\]|\\\\[^bBpPCQ])*\\\\[bBpPCQ]')",
        r"leave out \b, \B, \p, \P, \C and \Q: write the characters themselves",
    ),
)
ADDRESS = refuse(
    (
        "isIP(self)",
        Computed(
            "self.contains('/') ? 'write ' + self + ' under cidrs' : 'write an address such as 192.0.2.1, "
            "without zone, and IPv4 not as IPv6; names are domains'"
        ),
    )
)
_PLAIN_CIDR = "isCIDR(self) && cidr(self) in [cidr(self).masked()]"  # 1.31 knows no price of == for networks
_MEND_CIDR = (
    "isCIDR(self) ? 'it has host bits: write the network alone, as 10.0.0.0/8 for 10.1.2.3/8' : "
    "'write a network such as 10.0.0.0/8 or 2001:db8::/32, and IPv4 not as IPv6'"
)
NETWORK = refuse(
    (
        _PLAIN_CIDR,
        Computed(f"isIP(self) ? 'write ' + self + (ip(self).family() == 4 ? '/32' : '/128') : {_MEND_CIDR}"),
    )
)
ADDRESS_OR_NETWORK = refuse((f"isIP(self) || {_PLAIN_CIDR}", Computed(_MEND_CIDR)))
IP_BLOCK = refuse(
    (
        "!has(self.except) || !isCIDR(self.cidr) || self.except.all(part, !isCIDR(part) || "
        "cidr(self.cidr).containsCIDR(part))",
        Computed("'write networks inside ' + self.cidr"),
        ".except",
    ),
    (
        "!has(self.except) || !isCIDR(self.cidr) || self.except.all(part, !isCIDR(part) || "
        "cidr(self.cidr).prefixLength() != cidr(part).prefixLength())",
        Computed("'nothing is left of it: write networks smaller than ' + self.cidr"),
        ".except",
    ),
)
PORTS = refuse(
    (
        "!has(self.endPort) || (has(self.port) && self.endPort >= self.port)",
        Computed(
            "has(self.port) ? 'the range ends before it begins: write port or more' : "
            "'add port, at which the range begins'"
        ),
        ".endPort",
    ),
    (
        "!has(self.port) || !(self.protocol in ['ICMP', 'ANY'])",
        Computed(
            "self.protocol == 'ICMP' ? 'leave the port out: ICMP has no ports' : "
            "'write one entry each for TCP and UDP: ANY has no ports'"
        ),
        ".port",
    ),
)
RULE = refuse(
    (
        " || ".join(f"has(self.{peer})" for peer in ("domains", "regex", "fqdn", "ips", "cidrs", "ipBlocks")),
        'add domains, regex, ips, cidrs or ipBlocks; everything is cidrs: [0.0.0.0/0, "::/0"]',
    )
)
_NAME_OF_LABEL = "([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
_PREFIX_OF_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
LABEL_VALUE = refuse(
    (f"self.matches('^{_NAME_OF_LABEL}?$')", "write letters, digits, -, _ and ., 63 at most"),
)
LABEL_KEY = refuse(
    (
        f"self.indexOf('/') <= 253 && self.matches('^({_PREFIX_OF_LABEL}/)?{_NAME_OF_LABEL}$')",
        "write a key such as app or example.com/app",
    ),
)
LABELS = refuse(
    (
        f"self.all(key, key.indexOf('/') <= 253 && key.matches('^({_PREFIX_OF_LABEL}/)?{_NAME_OF_LABEL}$'))",
        "write keys such as app or example.com/app",
    ),
)
EXPRESSION = refuse(
    (
        "(self.operator in ['In', 'NotIn']) == has(self.values)",
        Computed(
            "has(self.values) ? 'leave it out: ' + self.operator + ' has no values' : "
            "'add the values of ' + self.operator"
        ),
        ".values",
    )
)
CLUSTER_SPEC = refuse(
    (
        "!has(self.namespaceSelector) || has(self.podSelector)",
        "add podSelector: {} for all pods of these namespaces",
        ".namespaceSelector",
    )
)
