"""Expressions: what is taken, what is refused, and with which words."""

import re

import pytest
import re2

from gateway.policies.patterns import ALPHABET, BadPatternError, matches, parse


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        (r"api-[0-9]+\.example\.com", ["api-7.example.com"], ["api-.example.com", "xapi-7.example.com"]),
        (r"API\.Example\.com", ["api.example.com"], ["apixexample.com"]),
        (r"[A-C]x", ["ax", "cx"], ["dx"]),
        (r"[^A-C]x", ["dx", ".x", "-x"], ["ax"]),
        (r"\D+", ["a.b"], ["a1"]),
        (r"a.b", ["a.b", "axb"], ["ab"]),
        (r".*", ["a", "a.b"], []),
        (r"^a\.b$", ["a.b"], ["xa.b", "a.bx"]),
        (r"\Aa\.b\z", ["a.b"], ["a.b.c"]),
        (r"^a$|^b$", ["a", "b"], ["ab"]),
        (r"(?i)^Api(?s)\.com$", ["api.com"], ["apix.com"]),
        (r"(?i:A)(?P<n>b)(?<m>c)(?:d)", ["abcd"], ["abc"]),
        (r"a|b||c", ["a", "b", "c"], ["d"]),
        (r"a{2,3}?", ["aa", "aaa"], ["a", "aaaa"]),
        (r"a{0}b{1}", ["b"], ["ab"]),
        (r"[a-z]{1,300}", ["a" * 253], ["a.b"]),
        (r"(https?://)?a\.b", ["a.b"], ["httpa.b"]),
        (r"[[:alpha:]_]+", ["a_b"], ["a1"]),
        (r"\x61\x{62}\143", ["abc"], []),
        (r"[\x61-c]", ["b"], ["d"]),
        (r"[,-/]a\.a", ["-a.a"], ["aa.a"]),
    ],
)
def test_an_expression_matches_whole_names_in_any_case(text, yes, no):
    regex = parse(text)
    assert all(matches(regex, name) for name in yes)
    assert not any(matches(regex, name) for name in no)
    for name in yes + no:
        assert bool(re.fullmatch(regex.normal, name)) == (name in yes), "the normal form says the same"


NO_NAME = "names have no empty label, no dot at an end, and 1 to 253 characters"
WHOLE = "write an expression for a whole name: letters, digits, -, _, and \\. between labels"
SYNTAX = "see https://github.com/google/re2/wiki/Syntax"
FLAGS = "leave flags out: names have one line and no case"
MIDDLE = "leave it out: an expression always matches the whole name"


@pytest.mark.parametrize(
    ("text", "wrong", "mend"),
    [
        (
            "*.example.com",
            "is no RE2 expression: no argument for repetition operator: *",
            "write *.example.com under domains",
        ),
        ("a(?=b)", "is no RE2 expression: invalid perl operator: (?=", SYNTAX),
        ("(?<!a)b", "is no RE2 expression: invalid perl operator: (?<!", SYNTAX),
        (r"(a)\1", r"is no RE2 expression: invalid escape sequence: \1", SYNTAX),
        ("(a", "is no RE2 expression: missing ): (a", SYNTAX),
        ("a**", "is no RE2 expression: bad repetition operator: **", SYNTAX),
        ("a{1001}", "is no RE2 expression: invalid repetition size: {1001}", SYNTAX),
        ("https://.*", "matches no name: no name has ':' in it", WHOLE),
        ("example\\.com/.*", "matches no name: no name has '/' in it", WHOLE),
        ("a b", "matches no name: no name has ' ' in it", WHOLE),
        (r"a\n", r"matches no name: no name has '\n' in it", WHOLE),
        ("a{,3}x", "matches no name: no name has '{' in it", WHOLE),
        ("[/:]a", "matches no name: no name has '/' in it", WHOLE),
        ("[^a-z0-9_.-]", "matches no name: a class has nothing that a name has", WHOLE),
        (r"\s", "matches no name: a class has nothing that a name has", WHOLE),
        ("", f"matches no name: {NO_NAME}", WHOLE),
        ("a{0}", f"matches no name: {NO_NAME}", WHOLE),
        (r"example\.com\.", f"matches no name: {NO_NAME}", WHOLE),
        (r"\.example\.com", f"matches no name: {NO_NAME}", WHOLE),
        (r"a\.{2}b", f"matches no name: {NO_NAME}", WHOLE),
        (r"(a\.)+\.b", f"matches no name: {NO_NAME}", WHOLE),
        ("a{254}", f"matches no name: {NO_NAME}", WHOLE),
        ("a^b", "has the anchor '^' in the middle", MIDDLE),
        ("a$b", "has the anchor '$' in the middle", MIDDLE),
        ("(^a|^b)", "has the anchor '^' in the middle", MIDDLE),
        (r"(a\z)", r"has the anchor '\\z' in the middle", MIDDLE),
        ("^*a", "has '*' in it, which means nothing for names", "put what it repeats in front of it"),
        (r"\ba", r"has '\\b' in it, which means nothing for names", "write what stands on both sides of it"),
        (r"\pL", r"has '\\p' in it, which means nothing for names", "write [a-z] or [0-9]: names are ASCII"),
        (
            r"[\PN]",
            r"has '\\P' in it, which means nothing for names",
            "write [a-z] or [0-9]: names are ASCII",
        ),
        (r"\C", r"has '\\C' in it, which means nothing for names", "write . for any character"),
        (
            r"\Qa.b\E",
            r"has '\\Q' in it, which means nothing for names",
            "write a backslash before each character that is meant as it stands",
        ),
        ("(?m)a", "has '(?m' in it, which means nothing for names", FLAGS),
        ("(?U:a+)", "has '(?U' in it, which means nothing for names", FLAGS),
        ("(?-i)A", "has '(?-' in it, which means nothing for names", FLAGS),
        (r"\x{e9}", r"has '\\x{e9}' in it, which means nothing for names", None),
        ("bücher\\.example", "is not ASCII", "write international names as they travel: xn--..."),
        ("(" * 33 + "a" + ")" * 33, "has too many brackets in brackets", "32 may nest"),
        (
            "([a-z]{0,99}x){0,10}" * 10,
            "has 10000 characters when its repetitions are written out",
            "write smaller counts, or * and +: 8192 are possible",
        ),
    ],
)
def test_what_means_nothing_for_names_is_refused_with_a_mend(text, wrong, mend):
    with pytest.raises(BadPatternError) as refused:
        parse(text)
    assert refused.value.wrong == f"{text!r} {wrong}"
    assert mend in (None, refused.value.mend)


def test_every_class_of_one_character_means_what_re2_means_by_it():
    options = re2.Options()
    options.case_sensitive = options.log_errors = False
    classes = [
        "alnum",
        "alpha",
        "ascii",
        "blank",
        "cntrl",
        "digit",
        "graph",
        "lower",
        "print",
        "punct",
        "space",
    ]
    texts = [
        f"[{no}[:{inner}{name}:]]"
        for name in [*classes, "upper", "word", "xdigit"]
        for no in ("", "^")
        for inner in ("", "^")
    ]
    texts += [
        r"\d",
        r"\D",
        r"\w",
        r"\W",
        r"\s",
        r"\S",
        ".",
        r"[\dx-]",
        r"[^\w]",
        "[+--]",
        "[--/]",
        "[]-a]",
        "[^]a]",
    ]
    texts += [
        r"[\--a]",
        r"[A-z]",
        "[^Z-a]",
        r"[\x2d-\x{39}]",
        r"[\060-\071]",
        r"\.",
        r"\-",
        r"\_",
        r"[\.\-]",
        "[a.-]",
    ]
    for text in texts:
        matching = [symbol for symbol in ALPHABET if re2.fullmatch(text, symbol, options)]
        try:
            normal = parse(text).normal
        except BadPatternError:
            assert not set(matching) - {"."}, text
        else:
            assert [symbol for symbol in ALPHABET if re.fullmatch(normal, symbol)] == matching, text
