"""Documents that are wrong: what the checker of files tells, and what the API server answers.

Rules this file obeys:

- One row is one mistake, in an object that is right otherwise. `mend` is of documents.read's problem,
  `server` a part of the API server's message, or None where only the checker can know.
- What is no object at all is in TEXTS: kubectl itself reads YAML, and the server never sees it.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple


class Refusal(NamedTuple):
    name: str
    text: str
    field: str | None
    mend: str
    server: str | None


def egress(spec: str, kind: str = "Egress", metadata: str = "{name: web}") -> str:
    head = f"apiVersion: egress.skouter/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec:\n"
    return head + textwrap.indent(textwrap.dedent(spec).strip("\n"), "  ") + "\n"


def rule(body: str) -> str:
    return egress("podSelector: {}\nrules:\n" + textwrap.indent("- " + body, "  "))


EMPTY = "leave it out, or name at least one"
ADDRESS = "write an address such as 192.0.2.1; names are domains"
SERVERS_ADDRESS = "write an address such as 192.0.2.1, without zone, and IPv4 not as IPv6; names are domains"
SERVERS_NETWORK = "write a network such as 10.0.0.0/8 or 2001:db8::/32, and IPv4 not as IPv6"
A_NAME = "write a name such as example.com, or *.example.com for all names below it"
LEFT = "a" * 63

REFUSALS = [
    Refusal(*row)
    for row in [
        # ---- Shape
        (
            "a boolean by accident",
            rule("domains: [a.com, no]"),
            "spec.rules[0].domains[1]",
            'write "no" in quotes',
            'spec.rules[0].domains[1] in body must be of type string: "boolean"',
        ),
        (
            "a number by accident",
            rule("domains: [1.5]"),
            "spec.rules[0].domains[0]",
            'write "1.5" in quotes',
            'spec.rules[0].domains[0] in body must be of type string: "number"',
        ),
        (
            "a label by accident",
            egress("podSelector: {matchLabels: {on: yes}}"),
            None,
            'write "yes" in quotes',
            'in body must be of type string: "boolean"',
        ),
        (
            "one name without a list",
            rule("domains: a.com"),
            "spec.rules[0].domains",
            "write a list: [a.com]",
            'spec.rules[0].domains in body must be of type array: "string"',
        ),
        (
            "a port in quotes",
            rule('domains: [a]\n  ports: [{port: "80"}]'),
            None,
            "write 80 without quotes",
            'spec.rules[0].ports[0].port in body must be of type integer: "string"',
        ),
        (
            "a flag in quotes",
            egress('dns: {onlyAllowedNames: "true"}'),
            None,
            "write true without quotes",
            'spec.dns.onlyAllowedNames in body must be of type boolean: "string"',
        ),
        (
            "a misspelt field",
            egress("podSelectr: {}"),
            "spec.podSelectr",
            "write podSelector",
            'unknown field "spec.podSelectr"',
        ),
        (
            "a misspelt except",
            rule("ipBlocks: [{cidr: 10.0.0.0/8, excpet: []}]"),
            None,
            "write except",
            'unknown field "spec.rules[0].ipBlocks[0].excpet"',
        ),
        (
            "a misspelt mode",
            egress("mode: audit"),
            "spec.mode",
            "write Audit",
            'spec.mode: Unsupported value: "audit": supported values: "Enforce", "Audit"',
        ),
        (
            "a misspelt protocol",
            rule("domains: [a]\n  ports: [{protocol: tcp}]"),
            None,
            "write TCP",
            'spec.rules[0].ports[0].protocol: Unsupported value: "tcp": supported values: "TCP", "UDP"',
        ),
        (
            "a field of the other kind",
            egress("nodeSelector: {}"),
            None,
            "write a ClusterEgress for it",
            'unknown field "spec.nodeSelector"',
        ),
        (
            "a strange field",
            egress("zzz: 1"),
            "spec.zzz",
            "choose from mode, podSelector, dns, rules",
            'unknown field "spec.zzz"',
        ),
        (
            "no ports in the list",
            rule("domains: [a]\n  ports: []"),
            None,
            EMPTY,
            "spec.rules[0].ports in body should have at least 1 items",
        ),
        (
            "no names in the list",
            rule("domains: []"),
            None,
            EMPTY,
            "spec.rules[0].domains in body should have at least 1 items",
        ),
        (
            "an empty name",
            rule('domains: [""]'),
            None,
            EMPTY,
            "spec.rules[0].domains[0] in body should be at least 1 chars long",
        ),
        (
            "too many rules",
            egress("rules: [" + "{domains: [a]}, " * 65 + "]"),
            "spec.rules",
            "write at most 64, and the rest in another object",
            "spec.rules: Too many: 65: must have at most 64 items",
        ),
        (
            "too many names",
            rule("domains: [" + "a, " * 1001 + "]"),
            None,
            "write at most 1000, and the rest in another object",
            "spec.rules[0].domains: Too many: 1001: must have at most 1000 items",
        ),
        (
            "a text that is too long",
            rule("domains: [" + "a" * 257 + "]"),
            None,
            "write at most 256",
            "spec.rules[0].domains[0]: Too long: may not be more than 256",
        ),
        (
            "no addresses",
            egress("{}", "ExternalWorkload"),
            "spec.addresses",
            "add addresses",
            "spec.addresses: Required",
        ),
        (
            "an empty selector by accident",  # the server takes a null for a field that is not there
            egress("podSelector:"),
            None,
            "leave it out, or write its fields",
            None,
        ),
        # ---- Names
        (
            "a wildcard in a label",
            rule('domains: ["a*.com"]'),
            "spec.rules[0].domains[0]",
            "write *.com",
            'spec.rules[0].domains[0]: Invalid value: "a*.com": a * stands only in front, before a dot',
        ),
        (
            "a wildcard in the middle",
            rule("domains: [a.*.com]"),
            None,
            "write *.com",
            "a * stands only in front, before a dot: write *.example.com for all names below example.com",
        ),
        (
            "a wildcard without its dot",
            rule('domains: ["*example.com"]'),
            None,
            "write *.example.com",
            "a * stands only in front, before a dot: write *.example.com",
        ),
        (
            "an address as a name",
            rule("domains: [192.0.2.1]"),
            None,
            "write 192.0.2.1 under ips",
            'spec.rules[0].domains[0]: Invalid value: "192.0.2.1": write addresses under ips',
        ),
        (
            "an IPv6 address as a name",
            rule('domains: ["2001:db8::1"]'),
            None,
            "write 2001:db8::1 under ips",
            "write the name alone; ports stand under ports, IPv6 addresses under ips",
        ),
        (
            "a network as a name",
            rule("domains: [10.0.0.0/8]"),
            None,
            "write 10.0.0.0/8 under cidrs",
            "write the name alone, without scheme and path; networks stand under cidrs",
        ),
        (
            "a URL as a name",
            rule('domains: ["https://example.com/a"]'),
            None,
            "write example.com",
            "write the name alone, without scheme and path; networks stand under cidrs",
        ),
        (
            "a name with a port",
            rule('domains: ["example.com:443"]'),
            None,
            "write example.com, and 443 under ports",
            "write the name alone; ports stand under ports, IPv6 addresses under ips",
        ),
        (
            "a name with a blank",
            rule("domains: [exa mple.com]"),
            None,
            A_NAME,
            "spec.rules[0].domains[0] in body should match '^",
        ),
        (
            "an empty label",
            rule("domains: [a..com]"),
            None,
            "write a.com",
            "spec.rules[0].domains[0] in body should match '^",
        ),
        (
            "a label that is too long",
            rule(f"domains: [{LEFT}a.com]"),
            None,
            A_NAME,
            "spec.rules[0].domains[0] in body should match '^",
        ),
        (
            "a name that is too long",
            rule(f"domains: [{'.'.join([LEFT] * 4)[:254]}]"),
            None,
            "DNS ends at 253",
            "write a shorter name: DNS ends at 253 characters",
        ),
        (
            "a wildcard that leaves no room",
            rule(f'domains: ["**.{".".join([LEFT] * 4)[:252]}"]'),
            None,
            "write a shorter name",
            "write a shorter name: DNS ends at 253 characters",
        ),
        ("an international name that is none", rule("domains: [xn--ü.com]"), None, A_NAME, None),
        ("an address below a wildcard", rule('domains: ["*.192.0.2.1"]'), None, A_NAME, None),
        # ---- Expressions
        (
            "a wildcard as an expression",
            rule('regex: ["*.example.com"]'),
            "spec.rules[0].regex[0]",
            "write *.example.com under domains",
            "missing argument to repetition operator: `*` evaluating rule: names with a * stand under",
        ),
        (
            "what RE2 has not",
            rule(r"fqdn: ['a(?=b)']"),
            None,
            "see https://github.com/google/re2/wiki/Syntax",
            'spec.rules[0].fqdn[0]: Invalid value: "string": error parsing regexp: invalid or unsupported',
        ),
        (
            "an international expression",
            rule("regex: ['b[üu]cher']"),
            None,
            "write international names as they travel: xn--...",
            "write international names as they travel: xn--...",
        ),
        (
            "a boundary in an expression",
            rule(r"regex: ['\\.a\bc']"),
            None,
            "write what stands on both sides of it",
            r"leave out \b, \B, \p, \P, \C and \Q: write the characters themselves",
        ),
        (
            "an anchor in the middle",
            rule("regex: ['a^b']"),
            None,
            "leave it out: an expression always matches the whole name",
            None,
        ),
        (
            "an expression that no name matches",
            rule(r"regex: ['a\.\.b']"),
            None,
            r"write an expression for a whole name: letters, digits, -, _, and \. between labels",
            None,
        ),
        # ---- Addresses
        (
            "a name as an address",
            rule("ips: [a.com]"),
            None,
            ADDRESS,
            f'spec.rules[0].ips[0]: Invalid value: "a.com": {SERVERS_ADDRESS}',
        ),
        (
            "a network as an address",
            rule("ips: [10.0.0.0/8]"),
            None,
            "write 10.0.0.0/8 under cidrs",
            'spec.rules[0].ips[0]: Invalid value: "10.0.0.0/8": write 10.0.0.0/8 under cidrs',
        ),
        (
            "an address as a network",
            rule("cidrs: [10.0.0.1]"),
            None,
            "write 10.0.0.1/32",
            'spec.rules[0].cidrs[0]: Invalid value: "10.0.0.1": write 10.0.0.1/32',
        ),
        (
            "an IPv6 address as a network",
            rule('cidrs: ["2001:db8::1"]'),
            None,
            "write 2001:db8::1/128",
            "write 2001:db8::1/128",
        ),
        (
            "host bits",
            rule("cidrs: [10.1.2.3/8]"),
            "spec.rules[0].cidrs[0]",
            "write 10.0.0.0/8",
            'spec.rules[0].cidrs[0]: Invalid value: "10.1.2.3/8": it has host bits: write the network alone',
        ),
        (
            "host bits of IPv6",
            rule('cidrs: ["2001:db8::1/32"]'),
            None,
            "write 2001:db8::/32",
            "it has host bits: write the network alone",
        ),
        (
            "host bits of a block",
            rule("ipBlocks: [{cidr: 10.0.0.1/8}]"),
            "spec.rules[0].ipBlocks[0].cidr",
            "write 10.0.0.0/8",
            'spec.rules[0].ipBlocks[0].cidr: Invalid value: "10.0.0.1/8": it has host bits',
        ),
        ("a mask", rule("cidrs: [10.0.0.0/255.0.0.0]"), None, "write 10.0.0.0/8", SERVERS_NETWORK),
        ("IPv4 written as IPv6", rule('ips: ["::ffff:192.0.2.1"]'), None, "write 192.0.2.1", SERVERS_ADDRESS),
        (
            "IPv4 networks written as IPv6",
            rule('cidrs: ["::ffff:10.0.0.0/104"]'),
            None,
            "write 10.0.0.0/8",
            SERVERS_NETWORK,
        ),
        ("a zone", rule("ips: ['fe80::1%eth0']"), None, "write fe80::1", SERVERS_ADDRESS),
        ("leading zeros", rule("ips: [10.0.0.01]"), None, ADDRESS, SERVERS_ADDRESS),
        (
            "an except elsewhere",
            rule("ipBlocks: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]"),
            "spec.rules[0].ipBlocks[0].except[0]",
            "write a network inside 10.0.0.0/8",
            "spec.rules[0].ipBlocks[0].except: Invalid value: write networks inside 10.0.0.0/8",
        ),
        (
            "an except around its network",
            rule("ipBlocks: [{cidr: 10.0.0.0/16, except: [10.0.0.0/8]}]"),
            None,
            "write a network inside 10.0.0.0/16",
            "write networks inside 10.0.0.0/16",
        ),
        (
            "an except of another family",
            rule('ipBlocks: [{cidr: "::/0", except: [10.0.0.0/8]}]'),
            None,
            "write a network inside ::/0",
            "write networks inside ::/0",
        ),
        (
            "an except that leaves nothing",
            rule("ipBlocks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]"),
            None,
            "write a network inside 10.0.0.0/8",
            "nothing is left of it: write networks smaller than 10.0.0.0/8",
        ),
        (
            "host bits of a machine's network",
            egress("addresses: [10.0.0.1, 10.0.0.1/8]", "ExternalWorkload"),
            "spec.addresses[1]",
            "write 10.0.0.0/8",
            'spec.addresses[1]: Invalid value: "10.0.0.1/8": it has host bits',
        ),
        (
            "a machine's name as its address",
            egress("addresses: [vm.example.com]", "ExternalWorkload"),
            "spec.addresses[0]",
            ADDRESS,
            f'spec.addresses[0]: Invalid value: "vm.example.com": {SERVERS_NETWORK}',
        ),
        (
            "an address as a source's network",
            egress("sourceCIDRs: [10.0.0.1]", "ClusterEgress"),
            "spec.sourceCIDRs[0]",
            "write 10.0.0.1/32",
            'spec.sourceCIDRs[0]: Invalid value: "10.0.0.1": write 10.0.0.1/32',
        ),
        # ---- Ports
        (
            "a range backwards",
            rule("domains: [a]\n  ports: [{port: 9, endPort: 8}]"),
            None,
            "write 9 or more",
            "spec.rules[0].ports[0].endPort: Invalid value: the range ends before it begins: write port",
        ),
        (
            "a range from nowhere",
            rule("domains: [a]\n  ports: [{endPort: 8}]"),
            None,
            "add port",
            "spec.rules[0].ports[0].endPort: Invalid value: add port, at which the range begins",
        ),
        (
            "a port of ICMP",
            rule("domains: [a]\n  ports: [{port: 8, protocol: ICMP}]"),
            None,
            "leave the port out",
            "spec.rules[0].ports[0].port: Invalid value: leave the port out: ICMP has no ports",
        ),
        (
            "a port of ANY",
            rule("domains: [a]\n  ports: [{port: 8, protocol: ANY}]"),
            "spec.rules[0].ports[0].port",
            "write one entry each for TCP and UDP",
            "spec.rules[0].ports[0].port: Invalid value: write one entry each for TCP and UDP: ANY has no",
        ),
        (
            "port 0",
            rule("domains: [a]\n  ports: [{port: 0}]"),
            None,
            "write 1 or more",
            "spec.rules[0].ports[0].port in body should be greater than or equal to 1",
        ),
        (
            "port 65536",
            rule("domains: [a]\n  ports: [{port: 65536}]"),
            None,
            "write 65535 or less",
            "spec.rules[0].ports[0].port in body should be less than or equal to 65535",
        ),
        (
            "a rule without a peer",
            rule("ports: [{port: 80}]"),
            "spec.rules[0]",
            'add domains, regex, ips, cidrs or ipBlocks; everything is cidrs: [0.0.0.0/0, "::/0"]',
            "spec.rules[0]: Invalid value: add domains, regex, ips, cidrs or ipBlocks; everything is cidrs",
        ),
        # ---- Selectors
        (
            "a selector that cannot hold",
            egress("podSelector: {matchExpressions: [{key: a, operator: In}]}"),
            "spec.podSelector.matchExpressions[0].values",
            "add the values of In",
            "spec.podSelector.matchExpressions[0].values: Invalid value: add the values of In",
        ),
        (
            "values without a use",
            egress("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}"),
            None,
            "leave it out",
            "spec.podSelector.matchExpressions[0].values: Invalid value: leave it out: Exists has no values",
        ),
        (
            "a key that is none",
            egress('podSelector: {matchLabels: {"a b": c}}'),
            None,
            "write a key such as app or example.com/app",
            "spec.podSelector.matchLabels: Invalid value: write keys such as app or example.com/app",
        ),
        (
            "a key whose prefix is no name",
            egress("podSelector: {matchExpressions: [{key: a..b/c, operator: Exists}]}"),
            "spec.podSelector.matchExpressions[0].key",
            "write a key such as app or example.com/app",
            'matchExpressions[0].key: Invalid value: "a..b/c": write a key such as app or example.com/app',
        ),
        (
            "a value that is none",
            egress('podSelector: {matchLabels: {a: "b c"}}'),
            None,
            "write letters, digits, -, _ and .",
            'spec.podSelector.matchLabels[a]: Invalid value: "b c": write letters, digits, -, _ and .',
        ),
        (
            "namespaces without pods",
            egress("namespaceSelector: {}", "ClusterEgress"),
            None,
            "add podSelector: {} for all their pods",
            "spec.namespaceSelector: Invalid value: add podSelector: {} for all pods of these namespaces",
        ),
        # ---- Who it is
        (
            "a namespace of a cluster's object",
            egress("{}", "ClusterEgress", "{name: a, namespace: b}"),
            None,
            "leave it out",
            None,
        ),
        (
            "no name",
            egress("{}", metadata="{}"),
            "metadata.name",
            "add metadata.name",
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            "a name that is none",
            egress("{}", metadata="{name: A_b}"),
            None,
            "write lower-case letters, digits and -",
            'metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of lower case',
        ),
        (
            "a name with two dots",
            egress("{}", metadata="{name: a..b}"),
            None,
            "write lower-case letters, digits and -",
            'metadata.name: Invalid value: "a..b": a lowercase RFC 1123 subdomain must consist of lower case',
        ),
        (
            "a name that is a number",
            egress("{}", metadata="{name: 010}"),
            None,
            'write "010" in quotes',
            "cannot unmarshal number into Go struct field ObjectMeta.name of type string",
        ),
        (
            "a misspelt namespace",
            egress("{}", metadata="{name: a, namespce: b}"),
            None,
            "write namespace",
            'unknown field "metadata.namespce"',
        ),
        (
            "no metadata",
            egress("{}", metadata=""),
            "metadata",
            "write metadata: {name: ...}",
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            "no spec",
            "apiVersion: egress.skouter/v1alpha1\nkind: Egress\nmetadata: {name: a}",
            "spec",
            "add spec",
            "spec: Required value",
        ),
        (
            "a key twice",
            rule("domains: [a]\n  domains: [b]"),
            "spec.rules[0].domains",
            "leave one of them",
            'key "domains" already set in map',
        ),
    ]
]

TEXTS = [
    (
        "another kind",
        egress("{}", "Deployment"),
        "kind",
        "choose from Egress, ClusterEgress, ExternalWorkload",
    ),
    ("a misspelt kind", egress("{}", "egress"), "kind", "write Egress"),
    (
        "another version",
        egress("{}").replace("v1alpha1", "v1"),
        "apiVersion",
        "write egress.skouter/v1alpha1",
    ),
    ("a list at the top", "- a\n", "", "write apiVersion, kind, metadata and spec"),
    ("a text at the top", "hello", "", "write apiVersion, kind, metadata and spec"),
    ("nothing", "", "", "write an Egress"),
    ("only comments", "# nothing\n---\n", "", "write an Egress"),
    ("a strange tag", rule("domains: [!!python/name:os.system a]"), None, "leave the tag out"),
    ("a tag that does not fit", rule("domains: [!!int a]"), None, "leave the tag out"),
    ("a key that is a list", "? [a]\n: b\n" + egress("{}"), "", "write plain keys"),
    ("an alias within itself", egress("&a {rules: [*a]}"), None, "write less"),
    (
        "an unquoted wildcard",
        rule("domains: [*.a.com]"),
        "",
        'write names with a * in quotes: "*.example.com"',
    ),
    ("no YAML", "a: [", "", "mend the YAML; texts with : # * or & in them need quotes"),
    ("control characters", "a: \x01", "", "write plain UTF-8 text"),
    ("half a character", "a: \ud800", "", "write plain UTF-8 text"),
    ("a cellar of brackets", "[" * 100_000, "", "write plain UTF-8 text"),
    ("a cellar of dashes", "- " * 100_000, "", "write plain UTF-8 text"),
]
