"""A short run of fuzz.py: from a seed that is always the same, and from one that never is."""

from __future__ import annotations

import secrets

import pytest

from tests.kernel import fuzz, reference_dns
from tests.kernel.bench import Bench

SECONDS = 0.8
OUTCOMES = {
    "answers": {"LEARNED", "nothing", "ANSWER_UNREADABLE"},
    "questions": {"passed", "refused"},
    "heads": {"passed", "refused"},
}


@pytest.mark.parametrize("seed", [1, secrets.randbits(32)], ids=["always the same", "never the same"])
@pytest.mark.parametrize("target", list(fuzz.TARGETS))
def test_the_kernel_believes_what_the_slow_readers_do(bench: Bench, target: str, seed: int) -> None:
    outcomes = fuzz.fuzz(bench, target, SECONDS, seed)
    assert {outcome for outcome, times in outcomes.items() if times >= 5} >= OUTCOMES[target], outcomes


@pytest.mark.parametrize(
    ("target", "module", "name", "value"),
    [
        ("answers", reference_dns, "CNAME", 6),
        ("answers", reference_dns, "NEVER", reference_dns.NEVER[:-1]),
        ("questions", fuzz, "is_example", lambda name: name.lower().endswith("example.com")),
        ("heads", fuzz, "EXTENSIONS", 7),
        ("heads", fuzz, "ALERT", b"\1\1\1\1"),
    ],
    ids=["opaque aliases", "IPv6 multicast", "evilexample.com", "seven extension headers", "padding"],
)
def test_a_kernel_that_reads_otherwise_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, target: str, module: object, name: str, value: object
) -> None:
    """The slow reader is changed in one point: as if the kernel had been."""
    monkeypatch.setattr(module, name, value)
    with pytest.raises(fuzz.FoundError):
        fuzz.fuzz(bench, target, 10 * SECONDS, seed=1)
