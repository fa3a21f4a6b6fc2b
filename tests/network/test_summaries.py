"""What `skouter run` tells of its command: to people, as JSON, and as a policy that suffices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import ODD, SKOUTER

SITE4, SITE6 = ZONE["example.com"]
EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "egress.yaml"

CURL_BOTH = ("sh", "-c", "curl -4sSf -m5 http://example.com/ && curl -4sSf -m5 http://example.org/")


def test_audit_refuses_nothing_and_tells_what_it_would_have_refused(run):
    got = run("--audit", "--allow", "example.com", "--", *CURL_BOTH)
    assert (got.status, got.out.split()) == (0, [SITE4, REFUSED4])
    assert got.refusals() == {REFUSED4: "NOT_ALLOWED"}
    human = run("-o", "human", "--audit", "--allow", "example.com", "--", *CURL_BOTH)
    assert f"skouter: would be refused  example.org ({REFUSED4}) TCP 80 by curl" in human.said


def test_the_summary_as_JSON(run):
    got = run("--allow", "example.com", "--", *CURL_BOTH)
    row = {"protocol": "TCP", "port": 80, "process": "curl", "count": 1}
    assert got.summary == {
        "reached": [{"name": "example.com", "address": SITE4, **row}],
        "refused": [{"name": "example.org", "address": REFUSED4, **row, "reason": "NOT_ALLOWED"}],
        "lost": 0,
    }


def test_the_summary_for_people(run):
    got = run("-o", "human", "--allow", "example.com", "--", *CURL_BOTH)
    assert f"skouter: reached  example.com ({SITE4}) TCP 80 by curl\n" in got.said
    assert (
        f"skouter: refused  example.org ({REFUSED4}) TCP 80 by curl: no rule allows this address\n"
        in got.said
    )


def test_quiet_says_nothing_at_all(run):
    got = run("-q", "--", "sh", "-c", "echo out; echo err >&2")
    assert (got.out, got.said) == ("out\n", "err\n")


def test_what_was_learned_suffices_for_the_same_command_and_for_nothing_else(run, tmp_path):
    learned = tmp_path / "learned.yaml"
    code = f"""
        families = socket.AF_INET, socket.AF_INET6
        tell([connect(resolve(n, f)) for n in ("example.com", "www.example.com") for f in families])
        tell([datagram(resolve("example.net")), connect({REFUSED4!r}, 8080)])
    """
    everything = ['["connected", "connected", "connected", "connected"]', '["echo", "connected"]']
    first = run("--learn", learned, "--", *python(code))
    assert first.out.splitlines() == everything
    document = yaml.safe_load(learned.read_text())
    assert document["kind"] == "Egress"
    second = run("--policy", learned, "--", *python(code))
    assert second.out.splitlines() == everything
    assert second.summary["refused"] == []
    others = (
        f"tell([connect(a) for a in ({REFUSED4!r}, resolve('example.net'), resolve('four.example.com'))])"
    )
    assert run("--policy", learned, "--", *python(others)).told == ["EPERM"] * 3
    assert (
        subprocess.run([SKOUTER, "policy", "check", learned], capture_output=True, check=False).returncode
        == 0
    )


def test_learning_under_a_policy_enforces_it_and_tells_what_was_missing(run, tmp_path):
    learned = tmp_path / "learned.yaml"
    got = run("--learn", learned, "--allow", "example.com", "--", *CURL_BOTH)
    assert got.status == 7
    rules = yaml.safe_load(learned.read_text())["spec"]["rules"]
    assert rules == [{"domains": ["example.com", "example.org"], "ports": [{"port": 80, "protocol": "TCP"}]}]


def test_the_example_policy_holds_for_the_workload_that_its_labels_select(run):
    policy = ("--policy", EXAMPLE, "--workload", "app=web", "--")
    assert run(*policy, "curl", "-4sSf", "http://example.com/").status == 0
    assert run(*policy, "curl", "-4sSf", "http://example.com:8080/").refusals() == {SITE4: "PORT_NOT_ALLOWED"}


# ---- What a workload writes into it ---------------------------------------------------------------------

FORGED = "x\nskouter: reached  everything\x1b[2J"


def is_harmless(text):
    lines = text.split("\n")
    return all(line.isprintable() and not line.startswith("skouter: reached") for line in lines)


def test_ATTACK_arguments_that_forge_lines_of_status(lab, running):
    with running("--", "sh", "-c", "echo started; read x", FORGED) as process:
        process.stdout.readline()
        seen = subprocess.run(lab.skouter("status"), capture_output=True, text=True, check=True).stdout
    assert is_harmless(seen)


def test_ATTACK_a_process_name_that_forges_lines_of_the_summary(run):
    """comm, which any process may set: 15 bytes (PR_SET_NAME, prctl(2))."""
    code = f"ctypes.CDLL(None).prctl(15, b'x\\n\\x1b[2J'); connect({REFUSED4!r})"
    assert is_harmless(run("-o", "human", "--", *python(code)).said)


def test_ATTACK_a_name_that_forges_lines_of_the_summary(run):
    """A label of a question may hold any byte."""
    code = f"""
        question = DNSRecord.question("www.silly.test")
        packed = question.pack().replace(b"silly", b"x\\n\\x1b[m")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(2)
        sock.sendto(packed, ({ODD!r}, 53))
        tell(len(sock.recv(500)))
        connect("198.51.100.54")
    """
    got = run("-o", "human", "--resolver", ODD, "--", *python(code))
    assert "198.51.100.54" in got.said
    assert is_harmless(got.said)
