"""What gateways tell each other: facts and messages, the seal on them, and the books of a dump."""

from __future__ import annotations

import base64
import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.peers import facts, sealing
from gateway.peers.dumps import CHUNKS, SNAPSHOTS, UNUSED, Intake, Shelf
from gateway.peers.facts import (
    Answer,
    Done,
    Dump,
    DumpRequest,
    Fact,
    Hello,
    MalformedError,
    Message,
    Push,
    Query,
)
from gateway.peers.sealing import (
    DERIVED,
    FORGET,
    SENDERS,
    SKEW,
    WINDOW,
    Keys,
    Opener,
    RefusedError,
    Sealer,
    Window,
)
from gateway.policies import names
from gateway.policies.policy import Policy, union
from gateway.policies.records import Block, Egress, Ports, Rule, Selector

OURS, THEIRS, THIRD = (bytes([n]) * facts.SESSION for n in (1, 2, 3))
KEY, OTHER = (sealing.read_key(sealing.key_text(bytes([n]) * sealing.SECRET)) for n in (7, 8))
NOON = 1_700_000_000.0
DIGESTS = [bytes([n]) * facts.DIGEST for n in (4, 5, 6)]

u64, u32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
address = st.binary(min_size=facts.ADDRESS, max_size=facts.ADDRESS)
digest = st.sampled_from(DIGESTS)
fact = st.builds(Fact, u64, address, st.integers(1, facts.LONGEST))
body = st.binary(max_size=facts.ROOM)
message = st.one_of(
    st.builds(Hello, st.booleans()),
    st.builds(Push, body),
    st.builds(Query, u64, st.lists(st.tuples(digest, address), max_size=facts.ASKED_AT_ONCE).map(tuple)),
    st.builds(Answer, u64, body),
    st.builds(DumpRequest, u64, st.lists(u32, max_size=facts.CHUNKS_AT_ONCE).map(tuple)),
    st.builds(Dump, u64, st.just(3), st.integers(4, 2**32 - 1), st.integers(0, 2**16 - 1), body),
    st.builds(Done, u64),
)


# ---- Policies: the same rules are the same everywhere


A, B = names.parse("a.com"), names.parse("*.b.com")
NET = Block(ip_network("10.0.0.0/8"))
HTTP, HTTPS = Ports("TCP", 80, 80), Ports("TCP", 443, 443)


def policy(*rules: Rule, **fields: bool) -> Policy:
    made = union([Egress("default", "x", pods=Selector(), rules=rules, **fields)])
    assert made is not None
    return made


def test_however_the_rules_are_written_their_digest_is_one() -> None:
    one = policy(Rule((A, B), blocks=(NET,), ports=(HTTP, HTTPS)))
    other = policy(
        Rule((B,), blocks=(NET,), ports=(HTTPS, HTTP)), Rule((A,), ports=(HTTP,)), Rule((A,), ports=(HTTPS,))
    )
    assert facts.digest(one) == facts.digest(other)


def test_policies_that_differ_have_digests_that_differ() -> None:
    different = [
        policy(),
        policy(Rule((A,))),
        policy(Rule((B,))),
        policy(Rule((A, B))),
        policy(Rule(blocks=(NET,))),
        policy(Rule((A,), ports=(HTTP,))),
        policy(Rule((A,), ports=(HTTPS,))),
        policy(Rule((A,)), audit=True),
        policy(Rule((A,)), only_allowed_names=True),
    ]
    assert len({facts.digest(each) for each in different}) == len(different)


def test_a_digest_is_the_same_in_every_version() -> None:
    """Gateways of two versions work side by side while one takes the place of the other."""
    assert facts.digest(policy(Rule((A,), ports=(HTTPS,)))).hex() == "857e7999046f695bff9d10c43946e51b"


# ---- Messages


@given(message, st.sampled_from([OURS, facts.NOBODY]))
def test_a_message_is_read_as_it_was_written_and_fits_a_datagram(said: Message, to: bytes) -> None:
    written = facts.encode(said, to)
    assert facts.decode(written) == (to, said)
    assert len(Sealer(Keys(KEY), OURS).seal(written, NOON)) <= facts.DATAGRAM


@given(st.binary(max_size=300))
def test_anything_is_read_or_refused(data: bytes) -> None:
    with suppress(MalformedError):
        _, said = facts.decode(data)
        facts.unpack(getattr(said, "facts", b""))


def test_a_chunk_behind_the_last_is_refused() -> None:
    for at, chunks in ((1, 1), (0, 0), (5, 4)):
        with pytest.raises(MalformedError):
            facts.decode(facts.encode(Dump(1, at, chunks, 0, b""), OURS))


def test_nobody_may_ask_for_more_than_one_answer_holds() -> None:
    asked = tuple((DIGESTS[0], bytes([n] * 16)) for n in range(20))
    _, said = facts.decode(facts.encode(Query(1, asked), OURS))
    assert isinstance(said, Query)
    assert said.asked == asked[: facts.ASKED_AT_ONCE]
    full = [(digest, Fact(peer, at, 1)) for digest, at in said.asked for peer in range(4)]
    assert len(list(facts.pack(full))) == 1
    _, wanted = facts.decode(facts.encode(DumpRequest(1, tuple(range(100))), OURS))
    assert wanted == DumpRequest(1, tuple(range(facts.CHUNKS_AT_ONCE)))


# ---- Facts


@given(st.lists(st.tuples(digest, fact), max_size=200))
def test_facts_are_packed_into_bodies_that_each_fit_and_can_be_read_alone(
    said: list[tuple[bytes, Fact]],
) -> None:
    packed = list(facts.pack(said))
    assert all(0 < len(each) <= facts.ROOM for each in packed)
    read = [(owner, one) for each in packed for owner, group in facts.unpack(each) for one in group]
    assert read == said


def test_a_group_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ROOM", 1 << 20)
    said = [(DIGESTS[0], Fact(n, bytes(16), 9)) for n in range(600)]
    (packed,) = facts.pack(said)
    assert [len(group) for _, group in facts.unpack(packed)] == [255, 255, 90]


@given(st.lists(st.tuples(digest, fact), min_size=1, max_size=30), st.data())
def test_facts_that_are_cut_off_are_all_refused(said: list[tuple[bytes, Fact]], data: st.DataObject) -> None:
    whole = next(facts.pack(said))
    read = facts.unpack(whole)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with suppress(MalformedError):
        part = facts.unpack(whole[:cut])  # it was cut between two groups
        assert part == read[: len(part)]


def test_what_is_over_by_the_time_it_is_read_is_left_out() -> None:
    said = [(DIGESTS[0], Fact(n, bytes(16), n)) for n in (1, 5, 6, 7)]
    ((_, read),) = facts.unpack(next(facts.pack(said)), age=5)
    assert read == [Fact(6, bytes(16), 1), Fact(7, bytes(16), 2)]


def test_a_fact_is_never_said_to_be_good_for_longer_than_any_answer() -> None:
    ((_, read),) = facts.unpack(next(facts.pack([(DIGESTS[0], Fact(1, bytes(16), 2**62))])))
    assert read[0].seconds == facts.LONGEST


@pytest.mark.parametrize("seed", range(20))
def test_a_fact_that_goes_round_for_ever_ends_when_it_would_have_ended(seed: int) -> None:
    """Between gateways whose clocks differ, over ways that take their time, also by dumps."""
    r = random.Random(seed)
    skews, now = [r.uniform(-10, 10) for _ in range(4)], 0.0
    end = ends = now + 1000.0
    at = 0
    while True:
        to = r.randrange(4)
        waits, takes, dumped = r.uniform(0, 5), r.uniform(0, 3), r.choice([0.0, r.uniform(0, 10)])
        now += waits
        left = math.floor(ends - now)  # as the ledger says it
        now += dumped + takes
        age = max(0, math.ceil(takes + skews[to] - skews[at])) + (int(dumped) + 1 if dumped else 0)
        if left - age <= 0:
            break
        ends, at = now + left - age, to
        assert ends <= end + skews[0] - skews[at] + 0.001  # back where it began that is nothing
    assert now <= end + 20


# ---- Seals


def sealed(
    text: bytes = b"hello", *, key: sealing.Key = KEY, session: bytes = THEIRS, wall: float = NOON
) -> bytes:
    return Sealer(Keys(key), session).seal(text, wall)


def refused(opener: Opener, datagram: bytes, wall: float = NOON, now: float = 0.0) -> str:
    with pytest.raises(RefusedError) as error:
        opener.open(datagram, wall, now)
    return str(error.value)


@pytest.fixture
def opener() -> Opener:
    return Opener(Keys(KEY), OURS)


@given(st.binary(max_size=1100), st.floats(-SKEW + 0.01, SKEW - 0.01))
def test_what_was_sealed_is_opened_with_its_age(text: bytes, age: float) -> None:
    opened = Opener(Keys(KEY), OURS).open(sealed(text), NOON + age, 0.0)
    assert (opened.session, opened.message) == (THEIRS, text)
    assert opened.age == pytest.approx(age, abs=0.002)


def test_the_message_can_be_read_by_nobody_else() -> None:
    datagram = sealed(b"a message in plain text")
    assert b"plain" not in datagram
    assert KEY.secret not in datagram
    assert "secret" not in repr(KEY)


def test_under_another_key_nothing_is_opened(opener: Opener) -> None:
    assert refused(opener, sealed(key=OTHER)) == "unknown key"


def test_under_another_key_that_says_it_is_ours_nothing_is_opened(opener: Opener) -> None:
    assert refused(opener, KEY.id + sealed(key=OTHER)[4:]) == "forged"


def test_a_datagram_with_any_bit_changed_is_refused(opener: Opener) -> None:
    whole = sealed()
    for at, bit in itertools.product(range(len(whole)), range(8)):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        assert refused(opener, bytes(changed), now=at) in ("unknown key", "forged")
    assert opener.open(whole, NOON, 0.0).message == b"hello"


def test_a_datagram_that_is_cut_anywhere_is_refused(opener: Opener) -> None:
    whole = sealed(b"hello" * 5)
    for length in range(len(whole)):
        assert refused(opener, whole[:length]) in ("short", "forged")
    assert refused(opener, whole + b"\0") == "forged"


def test_a_datagram_is_opened_once(opener: Opener) -> None:
    whole = sealed()
    assert opener.open(whole, NOON, 0.0)
    assert refused(opener, whole) == "replayed"
    assert refused(opener, whole, now=FORGET / 2) == "replayed"


def test_our_own_datagram_sent_back_is_refused(opener: Opener) -> None:
    assert refused(opener, sealed(session=OURS)) == "reflected"


@pytest.mark.parametrize("age", [SKEW + 0.1, -SKEW - 0.1, 1e6, -1e6])
def test_what_is_too_old_or_of_the_future_is_refused(opener: Opener, age: float) -> None:
    assert refused(opener, sealed(), wall=NOON + age) == "clock"


def test_a_session_is_not_forgotten_while_something_of_it_could_be_fresh(opener: Opener) -> None:
    """Though sessions come and go, so many that there is no room left."""
    victim = sealed(wall=NOON + SKEW)  # whose clock is ahead by as much as may be
    opener.open(victim, NOON, 0.0)
    for second in range(int(2 * SKEW) + 2):
        for n in range(10):
            session = second.to_bytes(8, "big") + n.to_bytes(8, "big")
            with suppress(RefusedError):  # there is no room
                opener.open(sealed(session=session, wall=NOON + second), NOON + second, second)
        assert refused(opener, victim, NOON + second, second) in ("replayed", "clock")
    assert len(opener._senders) <= SENDERS


def test_sessions_of_long_ago_make_room(opener: Opener) -> None:
    for n in range(SENDERS):
        opener.open(sealed(session=n.to_bytes(16, "big")), NOON, n / DERIVED)
    later = SENDERS / DERIVED + FORGET + 1
    assert opener.open(sealed(session=THIRD, wall=NOON + later), NOON + later, later)
    assert len(opener._senders) == 1


def test_made_up_sessions_cost_so_many_keys_a_second_and_known_ones_go_on(opener: Opener) -> None:
    known = Sealer(Keys(KEY), THEIRS)
    opener.open(known.seal(b"", NOON), NOON, 0.0)
    reasons = [
        refused(opener, KEY.id + n.to_bytes(16, "big") + bytes(60), now=5.0) for n in range(2 * DERIVED)
    ]
    assert reasons == ["forged"] * DERIVED + ["too many sessions"] * DERIVED
    assert opener.open(known.seal(b"still", NOON), NOON, 5.0).message == b"still"
    assert opener.open(sealed(session=THIRD), NOON, 6.0)


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=300))
def test_the_window_is_a_set_of_what_was_there(counters: list[int]) -> None:
    window, there = Window(), set[int]()
    for counter in counters:
        top = max(there, default=0)
        assert window.is_new(counter) == (counter not in there and counter > top - WINDOW)
        if window.is_new(counter):
            window.mark(counter)
            there.add(counter)
    assert window.seen < 1 << WINDOW


def test_datagrams_may_overtake_each_other(opener: Opener) -> None:
    sealer, r = Sealer(Keys(KEY), THEIRS), random.Random(1)
    made = [sealer.seal(bytes([n]), NOON) for n in range(200)]
    r.shuffle(made)
    assert {opener.open(each, NOON, 0.0).message for each in made} == {bytes([n]) for n in range(200)}


def test_no_nonce_is_used_twice_also_after_a_restart() -> None:
    """Two processes that begin alike but for their sessions: nothing of what they send is alike."""
    made = [Sealer(Keys(KEY), session).seal(b"the same", NOON) for session in (OURS, THEIRS)]
    assert made[0][28:] != made[1][28:]
    sealer = Sealer(Keys(KEY), OURS)
    again = [sealer.seal(b"the same", NOON) for _ in range(3)]
    sealer.use(Keys(OTHER, KEY))
    sealer.use(Keys(KEY, OTHER))
    again += [sealer.seal(b"the same", NOON)]
    assert len({each[20:28] for each in again}) == 4


def test_no_nonce_is_used_twice_by_two_threads() -> None:
    sealer = Sealer(Keys(KEY), OURS)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: [sealer.seal(b"", NOON)[20:28] for _ in range(2000)], range(4)))
    assert len({each for part in made for each in part}) == 8000


def test_keys_are_changed_host_by_host_without_a_gap() -> None:
    """At each step, in any order of the two hosts, both open what the other seals."""
    steps = [Keys(KEY), Keys(KEY, OTHER), Keys(OTHER, KEY), Keys(OTHER)]
    for order in (("a", "b"), ("b", "a")):
        at = {host: (Sealer(steps[0], s), Opener(steps[0], s)) for host, s in (("a", OURS), ("b", THEIRS))}
        for keys, host in itertools.product(steps, order):
            for part in at[host]:
                part.use(keys)
            for one, other in (("a", "b"), ("b", "a")):
                assert at[other][1].open(at[one][0].seal(b"", NOON), NOON, 0.0)


def test_a_key_that_was_taken_away_opens_nothing_any_more(opener: Opener) -> None:
    sealer = Sealer(Keys(KEY), THEIRS)
    opener.open(sealer.seal(b"", NOON), NOON, 0.0)
    opener.use(Keys(OTHER))
    assert refused(opener, sealer.seal(b"", NOON)) == "unknown key"


def test_what_was_opened_under_one_key_counts_under_both(opener: Opener) -> None:
    opener.use(Keys(KEY, OTHER))
    sealer = Sealer(Keys(KEY), THEIRS)
    first = sealer.seal(b"", NOON)
    opener.open(first, NOON, 0.0)
    opener.use(Keys(OTHER, KEY))
    assert refused(opener, first) == "replayed"


def test_a_key_file_is_read_as_it_is_made() -> None:
    secret = bytes(range(40))
    text = sealing.key_text(secret)
    assert text.count("\n") == 1
    assert sealing.read_key(text).secret == secret
    assert sealing.read_key(f"  {text}\n").id == sealing.read_key(text).id != KEY.id


@pytest.mark.parametrize("text", ["", "not base64!", base64.b64encode(bytes(31)).decode(), "ü" * 50])
def test_a_key_file_that_is_no_key_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(ValueError, match="--make-key"):
        sealing.read_key(text)


# ---- Dumps


def exchange(shelf: Shelf, intake: Intake, r: random.Random, lost: float) -> int:
    """How many requests it took; requests and chunks are lost, repeated and come in any order."""
    for requests in range(1, 1000):
        if intake.is_whole:
            return requests
        wanted = intake.wanted()
        assert len(wanted) <= facts.CHUNKS_AT_ONCE
        snapshot = shelf.find(intake.snapshot, 0.0, 0.0)
        assert snapshot
        pieces = [piece for at in wanted if (piece := snapshot.piece(at, 0.0))] * 2
        r.shuffle(pieces)
        for piece in pieces:
            if r.random() >= lost:
                intake.take(piece)
    raise AssertionError("it came to no end")


@pytest.mark.parametrize("lost", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 500])
def test_a_dump_comes_to_its_end_whatever_is_lost(count: int, lost: float) -> None:
    shelf, intake = Shelf(), Intake()
    shelf.put(5, 0.0, [bytes([n & 255]) for n in range(count)], 0.0)
    exchange(shelf, intake, random.Random(count), lost)
    assert (intake.snapshot, intake.taken, intake.chunks) == (5, max(1, count), max(1, count))
    assert not intake.lacks(range(1000))


def test_pieces_of_another_dump_are_none_of_this_one() -> None:
    intake = Intake()
    intake.take(Dump(5, 0, 2, 0, b""))
    assert not intake.fits(Dump(6, 1, 2, 0, b""))
    intake.take(Dump(6, 1, 2, 0, b""))
    assert (intake.taken, intake.is_whole, intake.wanted()) == (1, False, (1,))


def test_a_dump_that_claims_to_be_endless_is_not_begun() -> None:
    intake = Intake()
    assert not intake.fits(Dump(5, 0, CHUNKS + 1, 0, b""))
    intake.take(Dump(5, 0, CHUNKS + 1, 0, b""))
    assert intake == Intake()


def test_who_was_told_of_news_before_it_was_begun_gets_the_snapshot_of_another() -> None:
    shelf = Shelf()
    kept = shelf.put(5, 1.0, [b"x"], 2.0)
    assert shelf.find(0, 0.9, 2.0) is kept
    assert shelf.find(0, 1.1, 2.0) is None
    assert shelf.find(5, 1.1, 2.0) is kept
    assert shelf.find(6, 0.9, 2.0) is None


def test_a_snapshot_says_how_old_it_is() -> None:
    snapshot = Shelf().put(5, 1.0, [b"x"], 3.0)
    assert snapshot.piece(0, 4.5) == Dump(5, 0, 1, 4, b"x")
    assert snapshot.piece(1, 4.5) is None


def test_snapshots_are_few_and_go_when_nobody_asks() -> None:
    shelf = Shelf()
    for n in range(1, SNAPSHOTS + 2):
        shelf.put(n, 0.0, [b"x"], n)
        shelf.find(1, 0.0, n)
    assert [bool(shelf.find(n, 0.0, 6.0)) for n in range(1, SNAPSHOTS + 2)] == [True, False, True, True, True]
    shelf.tidy(6.0 + UNUSED + 1)
    assert not any(shelf.find(n, 0.0, 6.0 + UNUSED + 1) for n in range(1, SNAPSHOTS + 2))


def test_a_snapshot_has_a_largest_size() -> None:
    assert len(Shelf().put(1, 0.0, [b""] * (CHUNKS + 9), 0.0).chunks) == CHUNKS
