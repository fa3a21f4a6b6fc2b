"""Names: what is one, what a wildcard covers, and that the kernel's form of both says the same."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.policies import names
from gateway.policies.names import BadNameError, Pattern

LABELS = st.text("ab-_0", min_size=1, max_size=3).filter(lambda label: not label.isdigit())
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.one_of(NAMES, NAMES.map("*.{}".format), st.just("*"))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("_srv._tcp.example.com", "_srv._tcp.example.com"),
        ("-odd-.example.com", "-odd-.example.com"),
        ("localhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("日本語。\uff4a\uff50", "xn--wgv71a119e.jp"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".com", "a" * 63 + ".com"),
        (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert names.normal(text) == normal
    assert names.parse(text) == Pattern(normal, exact=True)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("**.Example.com.", "*.example.com"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("*.com", "*.com"),
    ],
)
def test_wildcards(text: str, pattern: str) -> None:
    assert names.parse(text) == Pattern(pattern, exact=False)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "write a name such as example.com"),
        (".", "write a name such as example.com"),
        ("a..b", "write a.b"),
        ("example.com..", "write example.com"),
        (".example.com", "write example.com"),
        ("exam ple.com", "write a name such as example.com"),
        ("example.com\n", "write example.com"),
        ("foo*.example.com", "write *.example.com"),
        ("*foo.example.com", "write *.foo.example.com"),
        ("*foo.com", "write *.foo.com"),
        ("a.*.example.com", "write *.example.com"),
        ("*.*.example.com", "write *.example.com"),
        ("**", "write *"),
        ("*.", "write *"),
        ("***.a", "write *.a"),
        ("example.*", "write *"),
        ("https://example.com/path", "write example.com"),
        ("http://user@example.com:8080/", "write example.com, and 8080 under ports"),
        ("example.com:443", "write example.com, and 443 under ports"),
        ("192.0.2.1", "write 192.0.2.1 under ips"),
        ("192.0.2.1.", "write 192.0.2.1 under ips"),
        ("*.192.0.2.1", "write a name such as example.com"),
        ("*.a..b", "write *.a.b"),
        ("2001:db8::1", "write 2001:db8::1 under ips"),
        ("10.0.0.0/8", "write 10.0.0.0/8 under cidrs"),
        ("a" * 64 + ".com", "write a name such as example.com"),
        (".".join(["a" * 50] * 5), "DNS ends at 253"),
        ("*." + ".".join(["a" * 50] * 4) + "." + "a" * 49, "write a shorter name"),
        ("a\u200d.com", "write a name such as example.com"),
        ("\ud800.com", "write a name such as example.com"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_a_mend(text: str, mend: str) -> None:
    with pytest.raises(BadNameError) as caught:
        names.parse(text)
    assert caught.value.mend.startswith(mend)
    assert caught.value.wrong


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("*.example.com", "example.com.evil.org", False),
        ("*", "com", True),
        ("*", "example.com", True),
    ],
)
def test_what_a_pattern_covers(pattern: str, name: str, covered: bool) -> None:
    assert names.matches(names.parse(pattern), name) is covered


def test_the_kernels_form() -> None:
    assert names.suffix_key(names.parse("example.com")) == (96, b"moc.elpmaxe".ljust(254, b"\0"))
    assert names.suffix_key(names.parse("*.example.com")) == (96, b"moc.elpmaxe.".ljust(254, b"\0"))
    assert names.suffix_key(names.parse("*")) == (0, bytes(254))


def test_the_longest_name_fits_the_kernels_key() -> None:
    longest = ".".join(["a" * 63] * 3) + "." + "b" * 61
    assert len(longest) == 253
    assert names.suffix_key(names.parse(longest)) == (254 * 8, longest[::-1].encode() + b"\0")


@given(PATTERNS, NAMES)
@example("*.a", "a")
@example("*.a", "aa")
def test_the_kernels_form_covers_what_labels_say(text: str, name: str) -> None:
    pattern = names.parse(text)
    bits, row = names.suffix_key(pattern)
    looked_up = name[::-1].encode() + b"\0"
    in_kernel = looked_up.startswith(row[: bits // 8])
    wanted, given_labels = text.split("."), name.split(".")
    below = len(given_labels) >= len(wanted) and given_labels[-len(wanted) + 1 :] == wanted[1:]
    by_labels = text == "*" or (below if wanted[0] == "*" else given_labels == wanted)
    assert in_kernel == by_labels == names.matches(pattern, name)


@given(st.text(max_size=60) | st.text("ab.*/:0xn-ß。", max_size=20))
def test_any_text_is_a_name_or_refused_and_normal_forms_stay(text: str) -> None:
    try:
        pattern = names.parse(text)
    except BadNameError:
        return
    assert names.parse(pattern.text) == pattern
    assert pattern.text.isascii()
    assert pattern.text == pattern.text.lower()


@given(st.text("ab.*/:0@- ", max_size=20))
def test_a_mend_that_names_a_name_names_a_good_one(text: str) -> None:
    try:
        names.parse(text)
    except BadNameError as error:
        verb, guess, *rest = error.mend.replace(",", " ").split()
        if verb == "write" and not rest:
            names.parse(guess)
