"""The condition Accepted: what it says, and who may write it."""

from dataclasses import replace

from gateway.kubernetes import conditions
from gateway.kubernetes.api_objects import Condition, Item
from gateway.policies.records import Egress, Problem

NOW = "2026-01-01T00:00:00Z"
ITEM = Item(Egress("shop", "web"), uid="u", version="7", generation=3)
PROBLEM = Problem("cluster", None, "Egress shop/web", "spec.rules[0]", "names no peer", "add domains")


def test_a_sound_object_is_accepted() -> None:
    assert conditions.condition(ITEM) == Condition(
        True, "Accepted", "every rule is in force wherever the object selects", 3
    )


def test_problems_are_told_with_their_mend() -> None:
    told = conditions.condition(replace(ITEM, problems=(PROBLEM,)))
    assert (told.status, told.reason) == (False, "RulesIgnored")
    assert told.message == (
        "these grant nothing, the others are in force; spec.rules[0]: names no peer (add domains)"
    )


def test_what_only_the_compiler_finds_has_its_own_reason() -> None:
    assert conditions.condition(ITEM, [PROBLEM], "TooManyPatterns").reason == "TooManyPatterns"
    assert conditions.condition(replace(ITEM, problems=(PROBLEM,)), [PROBLEM], "X").reason == "RulesIgnored"


def test_what_can_not_be_read_says_what_is_in_force_instead() -> None:
    stale = conditions.condition(replace(ITEM, problems=(PROBLEM,), stale=True))
    assert (stale.reason, stale.message.split(";")[0]) == (
        "Invalid",
        "the last version that could be read stays in force",
    )
    nothing = conditions.condition(replace(ITEM, object=None, problems=(PROBLEM,)))
    assert nothing.message.split(";")[0] == "nothing of it is in force"


def test_a_message_is_never_too_long() -> None:
    many = tuple(replace(PROBLEM, wrong="x" * 1000) for _ in range(50))
    message = conditions.condition(replace(ITEM, problems=many)).message
    assert len(message) == conditions.LONGEST
    few = conditions.condition(replace(ITEM, problems=(PROBLEM,) * 12)).message
    assert few.endswith("; and 2 more")


def test_it_stands_where_it_says_the_same_of_the_same_spec() -> None:
    wanted = conditions.condition(ITEM)
    assert not conditions.stands(ITEM, wanted)
    assert conditions.stands(replace(ITEM, condition=replace(wanted, since=NOW)), wanted)
    assert not conditions.stands(replace(ITEM, condition=replace(wanted, generation=2)), wanted)
    assert not conditions.stands(replace(ITEM, condition=replace(wanted, message="other")), wanted)


def test_never_over_that_of_a_newer_spec() -> None:
    wanted = conditions.condition(ITEM)
    older, newer = (replace(ITEM, condition=replace(wanted, generation=g)) for g in (2, 4))
    assert conditions.may_write(ITEM, wanted)
    assert conditions.may_write(older, wanted)
    assert not conditions.may_write(newer, wanted)
    assert not conditions.may_write(replace(ITEM, generation=4), wanted)


def test_the_time_is_that_of_the_last_change_of_status() -> None:
    wanted = conditions.condition(ITEM)

    def since(have: Condition | None) -> object:
        item = replace(ITEM, condition=have)
        made = conditions.body("Egress", "web", "shop", item, wanted, NOW)
        assert made["metadata"] == {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"}
        (entry,) = made["status"]["conditions"]
        return entry["lastTransitionTime"]

    earlier = "2025-01-01T00:00:00Z"
    assert since(None) == NOW
    assert since(Condition(True, "Accepted", "as before", 2, earlier)) == earlier
    assert since(Condition(False, "Invalid", "no more", 2, earlier)) == NOW
