"""Skouter with one of its defences switched off: what each attack is shown against before the real one.

A defence is named after the rule that it keeps. Where one has several parts, of which no attack needs two,
they are taken away together: each variant must be compiled. tests/variants.py sees to it that an edit which
no longer fits its file fails.
"""

from __future__ import annotations

from tests.variants import Edits

CONNECT_JUDGES = (
    "bpf/cgroup.c",
    (
        "\tif (!passes(reason))\n\t\treturn conclude(ctx",
        "\tif (!passes(reason) && !who.policy)\n\t\treturn conclude(ctx",
    ),
)


ANY_PEER = "t, 0);\n\tkey.tuple.protocol = t->protocol;\n\tfound = inbounds.lookup(&key);\n"
NEITHER = "p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP"


def edits(*changes: tuple[str, tuple[str, str]]) -> Edits:
    files: dict[str, list[tuple[str, str]]] = {}
    for file, change in changes:
        files.setdefault(file, []).append(change)
    return files


WEAKENED: dict[str, Edits] = {
    "what is remembered is one whole tuple": edits(
        CONNECT_JUDGES,
        ("bpf/flows.h", ("return f->state && same_tuple(&f->tuple, t) &&", "return f->state &&")),
        # What came in: any packet of the protocol is an answer to it.
        (
            "bpf/flows.h",
            ("t, sizeof(*t));\n\tfound = inbounds.lookup(&key);\n\treturn !", f"{ANY_PEER}\treturn !"),
        ),
        (
            "bpf/flows.h",
            ("t, sizeof(*t));\n\tfound = inbounds.lookup(&key);\n\tif (found)", f"{ANY_PEER}\tif (found)"),
        ),
        # A socket that a listener made stays one, whatever is done with it.
        ("bpf/flows.h", ("\tif (!s->passive)\n\t\treturn 0;\n", "\tif (s)\n\t\treturn s->passive;\n")),
        ("bpf/cgroup.c", ("\t\t\ts->passive = 0;\n\t\t\tremember(", "\t\t\tremember(")),
    ),
    "every header is read": edits(
        (
            "bpf/cgroup.c",
            (
                "\tif (!who.policy)\n\t\treason",
                "\tif (reason)\n\t\treturn PASS;\n\tif (!who.policy)\n\t\treason",
            ),
        ),
        (
            "bpf/cgroup.c",
            (
                "\treason = judge(who, &asked);",
                f"\tif ({NEITHER})\n\t\treturn ALLOWED;\n\treason = judge(who, &asked);",
            ),
        ),
        ("bpf/cgroup.c", ("HOUSEKEEPING : ICMP_ERROR;", "HOUSEKEEPING : HOUSEKEEPING;")),
    ),
    "loopback is not outside": edits(
        ("bpf/cgroup.c", ("return !is_loopback(source) && !same_address(source, destination);", "return 0;")),
        ("bpf/cgroup.c", ("\tif (skb->pkt_type == PACKET_LOOPBACK) ", "\tif (0) ")),
        (
            "bpf/cgroup.c",
            (
                "\tif (skb->ifindex == LOOPBACK_IFINDEX) {\n\t\tif (is_loopback(p.tuple.local)",
                "\tif (is_loopback(p.tuple.local)) {\n\t\tif (is_loopback(p.tuple.local)",
            ),
        ),
        # And a resolver on this host may be a workload.
        ("bpf/cgroup.c", (" && !find_workload(skb, &who))\n\t\tstage(", ")\n\t\tstage(")),
    ),
    "an answer fits its question": edits(
        ("bpf/learn.h", ("\tkey->name = s->hash;\n\tkey->id = be16(s->message);\n", "")),
        ("bpf/learn.h", ("\t\tkey->socket = socket;", "\t\tkey->socket = 0;")),
        ("bpf/learn.h", ("\tif (questions.delete(&key))\n\t\treturn ANSWER_UNASKED;", "")),
        (
            "bpf/cgroup.c",
            (
                "answer = p.protocol == IPPROTO_UDP && trusts(&who, &p);",
                "answer = p.protocol == IPPROTO_UDP;",
            ),
        ),
        ("bpf/learn.h", ("if (r->mapped || never_learned(r->address, s->cluster)) {", "if (0) {")),
    ),
    "one readable question, from an address of its own": edits(
        ("bpf/questions.h", ("if (!skb->gso_size && !load_message", "if (!load_message")),
        (
            "bpf/cgroup.c",
            ("\tif (passes(reason) && (who->flags & OWN_SOURCES)", "\tif (0 && (who->flags & OWN_SOURCES)"),
        ),
    ),
    "a server of DNS over TCP is nobody's workload": edits(
        ("gateway/dns_proxy.py", ("if not self.proxy.door.is_outside(made):", "if made is None:")),
    ),
    "the proxy is known by its listener": edits(("bpf/proxy.h", ("ours = s && s->listener;", "ours = 1;"))),
    "a command is confined": edits(
        ("gateway/privileges.py", ("            _shut_mounts(hidden)\n", "            pass\n")),
        ("gateway/privileges.py", ("            if number <= last:\n", "            if number < 0:\n")),
        ("gateway/privileges.py", ("            _drop_capabilities()\n", "            pass\n")),
        ("gateway/privileges.py", ('        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)\n', "")),
        ("gateway/run.py", ("            become(user)\n", "")),
    ),
}
