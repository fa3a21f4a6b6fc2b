"""Names by regular expression: what a policy may write.

The rules this file must obey:

* The syntax is RE2's, and RE2 itself judges it, so that messages are those of the API server, whose CEL asks
  RE2 too. What RE2 takes and a name gives no meaning (an anchor in the middle, a boundary, a class of
  Unicode, a flag) is refused with a mend, and so is an expression that no name matches.
* An expression matches whole names in normal form: lower-case letters, digits, "-", "_" and "." (names.py).
  "." and negated classes mean any of these, the dot too, as in RE2. Upper case is folded (RFC 4343).
* What may be written is decided without building an automaton (dfa.py does that later), at a cost that the
  length of the text bounds: an object of somebody else's must not keep us busy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.policies import names
from gateway.policies.names import LONGEST_NAME, BadNameError

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-_."
IMPOSSIBLE = "!"  # stands for what no name has; not in ALPHABET, so nothing moves over it
LONGEST = 8192  # characters of an expression when its repetitions are written out
DEEPEST = 32  # brackets within brackets


class BadPatternError(ValueError):
    """A text that is no expression for names: what is wrong with it, and what to write instead."""

    def __init__(self, wrong: str, mend: str) -> None:
        super().__init__(f"{wrong}; {mend}")
        self.wrong = wrong
        self.mend = mend


@dataclass(frozen=True, slots=True, order=True)
class Regex:
    """An expression as it was written, and `normal`: the same in what RE2 and automata-lib read alike.

    There a character is a [class] of ALPHABET, or IMPOSSIBLE, and a quantifier is {a count}.
    """

    text: str
    normal: str

    def __str__(self) -> str:
        return f"/{self.text}/"


def parse(text: str) -> Regex:
    """The expression that a policy's `text` means; raises BadPatternError."""
    if not text.isascii():
        raise BadPatternError(f"{text!r} is not ASCII", "write international names as they travel: xn--...")
    _check_syntax(text)
    part = _Reader(text).whole()
    if part.spans[_AT_START][_IN_LABEL] == _NEVER:
        raise BadPatternError(f"{text!r} matches no name: {part.why or _NO_NAME}", _MEND)
    if part.size > LONGEST:
        wrong = f"{text!r} has {part.size} characters when its repetitions are written out"
        raise BadPatternError(wrong, f"write smaller counts, or * and +: {LONGEST} are possible")
    return Regex(text, part.text)


def matches(regex: Regex, name: str) -> bool:
    """Whether `regex` covers `name`, which is in normal form."""
    import re2

    return bool(re2.fullmatch(regex.text, name, _options()))


# ---- Syntax -----------------------------------------------------------------------------------------------

_MEND = "write an expression for a whole name: letters, digits, -, _, and \\. between labels"
_NO_NAME = f"names have no empty label, no dot at an end, and 1 to {LONGEST_NAME} characters"


def _options() -> Any:
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    return options


def _check_syntax(text: str) -> None:
    # Imported here: most policies have no expressions.
    import re2

    try:
        re2.compile(text, _options())
    except re2.error as error:
        said = error.args[0]
        told = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise BadPatternError(f"{text!r} is no RE2 expression: {told}", _mend(text)) from None


def _mend(text: str) -> str:
    """The likeliest thing that was meant: `*.example.com` is a wildcard, not an expression."""
    try:
        return f"write {names.parse(text)} under domains"
    except BadNameError:
        return "see https://github.com/google/re2/wiki/Syntax"


# ---- What could be a name ---------------------------------------------------------------------------------
#
# Labels are not empty, so no name begins or ends with a dot or has two in a row. Read from its start, a name
# is either where a label must begin or within one, and an expression takes it from here to there. `spans`
# holds the fewest characters for each of the four ways, NEVER where there is none: matrices over (min, +).

_AT_START, _IN_LABEL = 0, 1
_NEVER = LONGEST_NAME + 1

_Spans = tuple[tuple[int, int], tuple[int, int]]

_NOTHING: _Spans = ((_NEVER, _NEVER), (_NEVER, _NEVER))
_EMPTY: _Spans = ((0, _NEVER), (_NEVER, 0))


def _either(one: _Spans, other: _Spans) -> _Spans:
    a, b = ((min(one[i][0], other[i][0]), min(one[i][1], other[i][1])) for i in (0, 1))
    return a, b


def _then(one: _Spans, other: _Spans) -> _Spans:
    def fewest(i: int, j: int) -> int:
        return min(_NEVER, one[i][0] + other[0][j], one[i][1] + other[1][j])

    return (fewest(0, 0), fewest(0, 1)), (fewest(1, 0), fewest(1, 1))


def _times(one: _Spans, count: int) -> _Spans:
    if count == 0:
        return _EMPTY
    half = _times(one, count // 2)
    return _then(_then(half, half), one) if count % 2 else _then(half, half)


# ---- Reading ----------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A piece of an expression: its normal text, what it spans, its size, and why it may match nothing."""

    text: str
    spans: _Spans
    size: int = 0
    why: str = ""


_LETTERS, _DIGITS = frozenset(ALPHABET[:26]), frozenset(ALPHABET[26:36])
_ALL = frozenset(ALPHABET)
_PERL = {"d": _DIGITS, "w": _LETTERS | _DIGITS | {"_"}, "s": frozenset("")}
_POSIX = {
    **dict.fromkeys(("alpha", "lower", "upper"), _LETTERS),
    **dict.fromkeys(("ascii", "graph", "print"), _ALL),
    **dict.fromkeys(("blank", "cntrl", "space"), frozenset("")),
    "alnum": _LETTERS | _DIGITS,
    "digit": _DIGITS,
    "punct": frozenset("-_."),
    "word": _PERL["w"],
    "xdigit": _DIGITS | frozenset("abcdef"),
}
_QUANTIFIER = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})\??")
_GROUP = re.compile(r"\((\?(:|P?<\w+>|[is]+:))?")
_ANCHOR = re.compile(r"\^|\$|\\A|\\z")
_BEGIN, _END = re.compile(r"\^|\\A"), re.compile(r"(\$|\\z)(?=\||$)")
_FLAGS = re.compile(r"\(\?[is]+\)")  # letters have no case here, and "." always means everything
_CODE = re.compile(r"\\(x[0-9a-fA-F]{2}|x\{[0-9a-fA-F]+\}|0[0-7]{0,2}|[1-7][0-7]{1,2})")
_CONTROL = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_NAMED = re.compile(r"\[:(\^?)(\w+):\]")


class _Reader:
    """Reads an expression that RE2 has found well-formed; refuses what it does not know."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> _Part:
        part = self._choice()
        if self.at < len(self.text):  # RE2 reads it otherwise than we do
            raise self._refused(self.text[self.at], _MEND)
        return part

    def _choice(self) -> _Part:
        choices = [self._sequence()]
        while self._take("|"):
            choices.append(self._sequence())
        if len(choices) == 1:
            return choices[0]
        text, spans = "|".join(part.text for part in choices), _NOTHING
        for part in choices:
            spans = _either(spans, part.spans)
        return _Part(f"({text})", spans, sum(p.size for p in choices), _first(p.why for p in choices))

    def _sequence(self) -> _Part:
        parts, spans = [], _EMPTY
        while self._flags() or self._anchor(_BEGIN):
            pass
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._flags() or self._anchor(_END):
                continue
            part = self._repeated(self._atom())
            parts.append(part)
            spans = _then(spans, part.spans)
        return _Part(
            "".join(part.text for part in parts) or "()",
            spans,
            sum(part.size for part in parts),
            _first(part.why for part in parts),
        )

    def _flags(self) -> bool:
        flags = _FLAGS.match(self.text, self.at)
        self.at = flags.end() if flags else self.at
        return bool(flags)

    def _anchor(self, form: re.Pattern[str]) -> bool:
        """Takes an anchor that says what holds anyway; one inside of brackets is not looked into."""
        anchor = form.match(self.text, self.at) if self.depth == 0 else None
        self.at = anchor.end() if anchor else self.at
        return bool(anchor)

    def _repeated(self, part: _Part) -> _Part:
        quantifier = _QUANTIFIER.match(self.text, self.at)
        if not quantifier:
            return part
        self.at = quantifier.end()
        least, most = _counts(quantifier)
        if most == 0:
            return _Part("()", _EMPTY)  # automata-lib takes {0,0} for {0,1}
        endless = most > least and most >= LONGEST_NAME  # a name ends before that
        text = f"{{{least},{'' if endless else most}}}"
        optional = _either(_EMPTY, part.spans) if most > least else _EMPTY  # more often leads nowhere else
        return _Part(
            f"({part.text}){text}",
            _then(_times(part.spans, least), optional),
            part.size * (least + 1 if endless else most),
            part.why if least else "",
        )

    def _atom(self) -> _Part:
        symbol = self.text[self.at]
        if symbol == "(":
            return self._group()
        if symbol == "[":
            return self._symbols(self._class())
        if anchor := _ANCHOR.match(self.text, self.at):
            wrong = f"{self.text!r} has the anchor {anchor[0]!r} in the middle"
            raise BadPatternError(wrong, "leave it out: an expression always matches the whole name")
        if symbol in "*+?" or _QUANTIFIER.match(self.text, self.at):
            raise self._refused(symbol, "put what it repeats in front of it")
        self.at += symbol != "\\"
        return self._symbols(_ALL if symbol == "." else self._escape() if symbol == "\\" else {symbol})

    def _group(self) -> _Part:
        opening = _GROUP.match(self.text, self.at)
        if not opening or self.text.startswith("(?", opening.end() - 1):
            flags = self.text[self.at : self.at + 3]
            raise self._refused(flags, "leave flags out: names have one line and no case")
        self.at, self.depth = opening.end(), self.depth + 1
        if self.depth > DEEPEST:
            raise BadPatternError(f"{self.text!r} has too many brackets in brackets", f"{DEEPEST} may nest")
        part = self._choice()
        self._take(")")
        self.depth -= 1
        return part._replace(text=f"({part.text})")

    def _symbols(self, symbols: Iterable[str]) -> _Part:
        symbols = frozenset(symbols)
        possible = frozenset(symbol.lower() for symbol in symbols) & _ALL
        if not possible:
            odd = f"no name has {min(symbols)!r} in it" if symbols else "a class has nothing that a name has"
            return _Part(IMPOSSIBLE, _NOTHING, 1, odd)
        label = 1 if possible - {"."} else _NEVER
        spans = (_NEVER, label), (1 if "." in possible else _NEVER, label)
        ordered = sorted(possible, key=lambda symbol: (symbol == "-", symbol))  # a last "-" is no range
        return _Part(f"[{''.join(ordered)}]", spans, 1)

    def _class(self) -> frozenset[str]:
        """The symbols of a [class], folded and restricted to names."""
        self._take("[")
        negated = self._take("^")
        found: set[str] = set()
        first = True
        while first or self.text[self.at] != "]":
            found |= self._class_item()
            first = False
        self._take("]")
        folded = frozenset(symbol.lower() for symbol in found)
        return _ALL - folded if negated else frozenset(folded & _ALL or found)

    def _class_item(self) -> frozenset[str]:
        if named := _NAMED.match(self.text, self.at):
            self.at = named.end()
            if named[2] not in _POSIX:
                raise self._refused(named[0], "write the characters themselves")
            return _ALL - _POSIX[named[2]] if named[1] else _POSIX[named[2]]
        low = self._class_symbol()
        after = self.text[self.at + 1 : self.at + 2]
        if len(low) != 1 or self.text[self.at] != "-" or after == "]":
            return low
        self.at += 1
        (first,), (last,) = low, self._class_symbol()
        return frozenset(map(chr, range(ord(first), ord(last) + 1)))

    def _class_symbol(self) -> frozenset[str]:
        if self.text[self.at] == "\\":
            return self._escape()
        self.at += 1
        return frozenset(self.text[self.at - 1])

    def _escape(self) -> frozenset[str]:
        if code := _CODE.match(self.text, self.at):
            digits = code[1].strip("x{}")
            value = int(digits, 16 if code[1].startswith("x") else 8)
            if value > 127:
                raise self._refused(code[0], "names are ASCII: write international ones as xn--...")
            self.at = code.end()
            return frozenset(chr(value))
        letter = self.text[self.at + 1]
        if letter.lower() in _PERL:
            self.at += 2
            return _PERL[letter] if letter in _PERL else _ALL - _PERL[letter.lower()]
        if letter.isalnum() and letter not in _CONTROL:
            raise self._refused(f"\\{letter}", _ESCAPES.get(letter, "write the characters themselves"))
        self.at += 2
        return frozenset(_CONTROL.get(letter, letter))

    def _take(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def _refused(self, what: str, mend: str) -> BadPatternError:
        return BadPatternError(f"{self.text!r} has {what!r} in it, which means nothing for names", mend)


_ESCAPES = {
    **dict.fromkeys("bB", "write what stands on both sides of it"),
    **dict.fromkeys("pP", "write [a-z] or [0-9]: names are ASCII"),
    "C": "write . for any character",
    "Q": "write a backslash before each character that is meant as it stands",
}


def _counts(quantifier: re.Match[str]) -> tuple[int, int]:
    """The least and the most that a quantifier says; without end is LONGEST_NAME, as often as a name can."""
    if quantifier[2] is None:
        return {"*": (0, LONGEST_NAME), "+": (1, LONGEST_NAME), "?": (0, 1)}[quantifier[1]]
    least = int(quantifier[2])
    if quantifier[3] is None:
        return least, least
    return least, int(quantifier[4]) if quantifier[4] else max(least, LONGEST_NAME)


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")
