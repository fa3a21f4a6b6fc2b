"""agent.yaml, read: what it means, and how each mistake in it is told."""

import ipaddress

import pytest

from gateway.settings import LinkSettings, Member, Settings, read

WHOLE = """
node: {labels: {role: build}}
workloads:
  - name: web
    units: [nginx.service, "php*-fpm.service"]
    labels: {app: web}
  - name: batch
    cgroups: [/batch.slice/nightly, "/batch.slice/*"]
    userUnits: ["job@*.service"]
resolvers: [192.0.2.53, "192.0.2.54:5353", "[2001:db8::53]:5353"]
exempt: [chrony.service]
floor: 0
grace: 30
"""


def problems(text: str) -> list[str]:
    settings, found = read(text, "agent.yaml")
    assert (settings is None) == bool(found)
    return [str(problem) for problem in found]


def test_all_of_it() -> None:
    settings, found = read(WHOLE, "agent.yaml")
    assert not found
    assert settings == Settings(
        node_labels=(("role", "build"),),
        workloads=(
            Member("web", ("nginx.service", "php*-fpm.service"), labels=(("app", "web"),)),
            Member("batch", (), ("job@*.service",), ("/batch.slice/nightly", "/batch.slice/*")),
        ),
        resolvers=(
            (ipaddress.ip_address("192.0.2.53"), 53),
            (ipaddress.ip_address("192.0.2.54"), 5353),
            (ipaddress.ip_address("2001:db8::53"), 5353),
        ),
        exempt=("chrony.service",),
        floor=0,
        grace=30,
    )


def test_marks_are_two_bits() -> None:
    settings, found = read("link: {mark: 0x2000, mask: 0x3000}", "agent.yaml")
    assert (settings and settings.link, found) == (LinkSettings(0x2000, 0x3000), [])


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_nothing_is_the_defaults(text: str) -> None:
    assert read(text, "agent.yaml") == (Settings(), [])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flor: 60", "agent.yaml:1: flor: is not a field; write floor"),
        ("floor: -1", "agent.yaml:1: floor: -1 is out of range; write 0 or more"),
        ('floor: "60"', "agent.yaml:1: floor: 60 is read as a string; write 60 without quotes"),
        ("floor: true", "agent.yaml:1: floor: true is read as a boolean; write a whole number"),
        (
            "node: {labels: {role: yes}}",
            'agent.yaml:1: node.labels.role: yes is read as a boolean; write "yes" in quotes',
        ),
        (
            "node: {labels: {'a b': c}}",
            "agent.yaml:1: node.labels.a b: 'a b' is not a label's key",
        ),
        (
            "node: {labels: {a: b c}}",
            "agent.yaml:1: node.labels.a: 'b c' is not a label's value; write letters, digits, -, _ and .",
        ),
        ("[]", "agent.yaml:1: is a list; write its fields"),
        (
            "a: [",
            "agent.yaml:2: is not YAML: did not find expected node content; mend the YAML",
        ),
        (
            "floor: 1\n---\ngrace: 1",
            "agent.yaml:1: holds more than one document; leave out the lines that are ---",
        ),
        ("floor: 1\nfloor: 2", "agent.yaml:1: floor: is given twice, again in line 2; leave one of them"),
        (
            "link: {mark: 0x10, mask: 0x10}",
            "agent.yaml:1: link.mask: mark 0x10 in mask 0x10 can't be told from its answers; write two bits",
        ),
        ("link: {mark: 0x40}", "agent.yaml:1: link.mark: mark 0x40 in mask 0x30 can't be told from"),
        ("link: {mark: 0}", "agent.yaml:1: link.mark: 0 is out of range; write 1 or more"),
        ("resolvers: []", "agent.yaml:1: resolvers: is empty; leave it out, or name at least one"),
        (
            "resolvers: [dns.example]",
            "agent.yaml:1: resolvers[0]: 'dns.example' is not an IP address; write 192.0.2.1, 192.0.2.1:5353",
        ),
        (
            "resolvers: [192.0.2.1:0]",
            "agent.yaml:1: resolvers[0]: '192.0.2.1:0' is not an IP address; write 192.0.2.1, 192.0.2.1:5353",
        ),
        (
            "exempt: [chrony]",
            "agent.yaml:1: exempt[0]: 'chrony' does not say what kind of unit it is; write chrony.service",
        ),
        (
            "exempt: [/chrony.service]",
            "agent.yaml:1: exempt[0]: '/chrony.service' is not the name of a unit; write paths under cgroups",
        ),
        (
            "workloads: [{name: web}]",
            "agent.yaml:1: workloads[0].units: is missing, and so are cgroups; add units: [nginx.service]",
        ),
        ("workloads: [{units: [a.service]}]", "agent.yaml:1: workloads[0].name: is missing; add name"),
        (
            "workloads: [{name: We, units: [a.service]}]",
            "agent.yaml:1: workloads[0].name: 'We' is not a name; write lower-case letters, digits and -",
        ),
        (
            "workloads: [{name: host, units: [a.service]}]",
            "agent.yaml:1: workloads[0].name: 'host' is a name of Skouter's own; write another name",
        ),
        (
            "workloads: [{name: run-1, units: [a.service]}]",
            "agent.yaml:1: workloads[0].name: 'run-1' is a name of Skouter's own; write another name",
        ),
        (
            "workloads:\n- {name: a, units: [a.service]}\n- {name: a, units: [b.service]}",
            "agent.yaml:3: workloads[1].name: 'a' is an earlier workload's name too; write another name",
        ),
        (
            "workloads: [{name: a, unit: [a.service], units: []}]",
            "agent.yaml:1: workloads[0].unit: is not a field; write units",
        ),
        (
            "workloads: [{name: a, units: a.service}]",
            "agent.yaml:1: workloads[0].units: a.service is read as a string; write a list: [a.service]",
        ),
        (
            "workloads: [{name: a, cgroups: [/]}]",
            "agent.yaml:1: workloads[0].cgroups[0]: '/' is not the path of a cgroup; write a path below",
        ),
        (
            "workloads: [{name: a, cgroups: [/../b]}]",
            "agent.yaml:1: workloads[0].cgroups[0]: '/../b' is not the path of a cgroup; write a path below",
        ),
        (
            "workloads: [{name: a, cgroups: [a/b/]}]",
            "agent.yaml:1: workloads[0].cgroups[0]: 'a/b/' is not the path of a cgroup; write /a/b",
        ),
    ],
)
def test_each_mistake_is_told_with_its_mend(text: str, told: str) -> None:
    assert [problem for problem in problems(text) if problem.startswith(told)]


def test_all_mistakes_at_once() -> None:
    assert (
        len(problems("floor: x\nexempt: [a, b]\nworkloads: [{name: A}, {name: b, units: [a/b]}]")) == 6
    )  # one each, and two of the last
