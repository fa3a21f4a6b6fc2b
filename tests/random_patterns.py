"""Random expressions, and names that match them or nearly do: for the automaton, here and in the kernel."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gateway.policies import names, patterns
from gateway.policies.names import BadNameError
from gateway.policies.patterns import ALPHABET, BadPatternError

Random = random.Random
SIX = [  # typical ones
    r".*\.example\.(com|org)",
    r"api-[0-9]+\.eu-(west|north)-[12]\.amazonaws\.com",
    r"[a-z0-9-]{1,20}\.s3\.amazonaws\.com",
    r"(www|mail|imap)[0-9]{0,2}\.corp\.example\.net",
    r"[a-z]+-[0-9a-f]{8}\.cdn\.example\.io",
    r"registry(-[a-z]{2,4})?\.(docker|quay)\.io",
]


class Node(NamedTuple):
    """A piece of an expression, and how to make a text that matches it."""

    text: str
    sample: Callable[[Random], str]


SYMBOLS = [  # few letters, so that expressions meet; (RE2, some of what it matches)
    *(("a", "a"), ("b", "b"), ("B", "b"), ("1", "1"), ("-", "-"), ("_", "_"), (r"\.", "."), (r"\-", "-")),
    *(
        (".", ALPHABET),
        ("[ab]", "ab"),
        ("[A-C]", "abc"),
        ("[^ab.]", "c1-_z9"),
        ("[^A-Y]", "z0-_."),
        (r"\x61", "a"),
    ),
    *(
        (r"\d", "0123456789"),
        (r"\D", "ab-_."),
        (r"\w", "ab1_"),
        (r"\W", "-."),
        ("[.-1]", ".01"),
        (r"[\w-]", "a1_-"),
    ),
    *(("[-a]", "-a"), ("[]a]", "a"), (r"[^\d]", "a-."), (r"\S", ALPHABET), (r"\141", "a"), ("[a/]", "a")),
]
POSIX = [  # which Python's re does not know
    *(("[[:alpha:]]", "abz"), ("[[:^alpha:]]", "1-_."), ("[^[:digit:]-]", "a_."), ("[[:upper:]1]", "ab1")),
    *(("[[:punct:]]", "-_."), ("[[:xdigit:]]", "af09"), ("[[:word:]]", "a1_"), ("[[:^lower:]b]", "b1.")),
]
QUANTIFIERS = [
    *(("*", 0, 3), ("+", 1, 3), ("?", 0, 1), ("*?", 0, 3), ("{2}", 2, 2), ("{1,3}", 1, 3), ("{0,2}", 0, 2)),
    *(("{2,}", 2, 4), ("{0}", 0, 0), ("{1,3}?", 1, 3)),
]
WIDE = ("{0,300}", 0, 5)  # one within another is too large for RE2


def node(chance: Random, depth: int, posix: bool, repeats: bool = True) -> Node:
    """A random expression; every kind of node may hold every other.

    Without `posix` it is one for Python's `re`, which would take for ever over a repeat within another.
    """
    kinds = ["symbol", "sequence", "choice", "group", *["repeat"] * repeats]
    kind = chance.choice(kinds) if depth else "symbol"
    inner = repeats and (posix or kind != "repeat")
    if kind == "symbol":
        text, matched = chance.choice(SYMBOLS + POSIX * posix)
        return Node(text, lambda chance: chance.choice(matched))
    parts = [node(chance, depth - 1, posix, inner) for _ in range(chance.randint(1, 3))]
    if kind == "choice":
        empty = chance.random() < 0.1
        text = "|".join([part.text for part in parts] + [""] * empty)
        return Node(f"({text})", lambda chance: chance.choice(parts).sample(chance))
    if kind == "repeat":
        quantifier, least, most = chance.choice(QUANTIFIERS + [WIDE] * posix)
        return Node(
            f"(?:{parts[0].text}){quantifier}",
            lambda chance: "".join(parts[0].sample(chance) for _ in range(chance.randint(least, most))),
        )
    joined = "".join(part.text for part in parts)
    text = chance.choice(["({})", "(?:{})"]).format(joined) if kind == "group" else joined
    return Node(text, lambda chance: "".join(part.sample(chance) for part in parts))


def near(chance: Random, text: str) -> str:
    """`text` with a character or two changed, more, fewer or exchanged."""
    for _ in range(chance.randint(0, 2)):
        at = chance.randint(0, len(text))
        put = chance.choice(["", *"ab1-_.z", chance.choice(ALPHABET)])
        text = text[:at] + put + text[at + chance.randint(0, 1) :]
    return text


def is_name(text: str) -> bool:
    """Whether DNS can carry it, and our normal form has it."""
    try:
        return names.normal(text) == text
    except BadNameError:
        return False


def pairs(count: int, seed: int = 1) -> Iterator[tuple[list[str], list[str]]]:
    """`count` sets of one to four expressions that `patterns.parse` takes, each with names near to them."""
    chance = Random(seed)
    while count:
        nodes = [node(chance, 4, posix=True) for _ in range(chance.randint(1, 4))]
        nodes = [one for one in nodes if is_pattern(one.text)]
        samples = (near(chance, chance.choice(nodes).sample(chance)) for _ in range(20 if nodes else 0))
        found = sorted({sample for sample in samples if is_name(sample)})
        if found:
            count -= 1
            yield sorted({one.text for one in nodes}), found


def is_pattern(text: str) -> bool:
    try:
        return bool(patterns.parse(text))
    except BadPatternError:
        return False
