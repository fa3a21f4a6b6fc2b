"""No race: the first packet after a DNS answer is never lost, with the agent or without it."""

from __future__ import annotations

import json

import pytest

from tests.network.conftest import MANY, MANY_NETWORK, REFUSED4
from tests.topology import DNS4, wait_for

pytestmark = pytest.mark.quiet
ALLOW = ("--allow", "*.many.test", "--")


@pytest.fixture(scope="module")
def instance(lab):
    """One of its own: the policies of what else ran in the lab stay for minutes, and share the room that
    `*.many.test` needs for its addresses."""
    return lab.another_instance()


def words(program):
    return (program, DNS4, "many.test", MANY, 9, REFUSED4)


def check(told):
    assert told["names"] == MANY
    assert told["denied_tried"] == MANY // 10
    wrong = ("unanswered", "failed", "slow", "retransmitted", "lost_datagrams", "denied_passed")
    assert {key: told[key] for key in wrong} == dict.fromkeys(wrong, 0)
    assert told["slowest"] < 0.5


def test_of_2000_fresh_names_no_first_packet_is_lost(run, programs, instance):
    got = run(*ALLOW, *words(programs("burst")), instance=instance, timeout=60)
    check(json.loads(got.out.splitlines()[-1]))
    learned = {address for address in got.reached() if address.startswith(MANY_NETWORK)}
    assert len(learned) == MANY or got.summary["lost"]


def test_without_a_rule_none_of_them_is_reached(run, programs, instance):
    got = run("--allow", "example.com", "--", *words(programs("burst")), instance=instance, timeout=60)
    told = json.loads(got.out.splitlines()[-1])
    assert (told["failed"], told["lost_datagrams"], told["unanswered"]) == (MANY, MANY, 0)


def test_the_agent_is_killed_amid_2000_fresh_names_and_nothing_is_lost_or_let_through(
    running, programs, instance, tmp_path
):
    report = tmp_path / "report"
    line = f"{' '.join(map(str, words(programs('burst'))))} | tee {report}"
    with running(*ALLOW, "sh", "-c", line, instance=instance) as agent:
        assert agent.stdout.readline() == "half\n"
        agent.kill()
        agent.wait(60)
        assert not report.read_text().endswith("}\n"), "it ended before the agent did"
        wait_for(lambda: report.read_text().endswith("}\n"), "the end of the names", 60)
        check(json.loads(report.read_text().splitlines()[-1]))


def test_what_a_killed_agent_left_goes_on_and_is_tidied_up_by_the_next(run, running, status):
    with running("--allow", "example.com", "--", "sh", "-c", "echo started; exec cat >/dev/null") as agent:
        assert agent.stdout.readline() == "started\n"
        agent.kill()
        agent.wait(60)
        left = [w for w in status()["workloads"] if not w["watched"]]
        assert [(w["enforced"], len(w["processes"])) for w in left] == [(True, 1)]
        run("--", "true")
        assert left[0]["name"] in [w["name"] for w in status()["workloads"]], (
            "it still runs, and is still held"
        )
    cgroup_is_empty = lambda: not [w for w in status()["workloads"] if w["processes"]]  # noqa: E731
    wait_for(cgroup_is_empty, "the end of the command")
    run("--", "true")
    assert status()["workloads"] == []
