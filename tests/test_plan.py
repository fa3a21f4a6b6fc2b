"""Which cgroup is held to which policy: nothing here needs a kernel."""

import pytest

from gateway import settings
from gateway.plan import EXEMPT, Guard, Plan, believable, is_of_interest, plan, select
from gateway.policies import documents

OBJECTS = """
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: web}
spec:
  workloadSelector: {matchLabels: {app: web}}
  rules: [{domains: [example.com]}]
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: all}
spec:
  workloadSelector: {matchLabels: {tier: all}}
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: node}
spec:
  nodeSelector: {matchLabels: {role: build}}
  rules: [{domains: [example.org]}]
"""
WEB = "workloads: [{name: web, labels: {app: web}, units: [nginx.service, 'php*-fpm.service']}]\n"
SLICE = "workloads: [{name: sys, labels: {tier: all}, cgroups: [/system.slice]}]\n"
HOST = "node: {labels: {role: build}}\n"
NGINX, SSH, RESOLVED = ("/system.slice/" + unit for unit in ("nginx.service", "ssh.service", "dns.service"))
TREE = ["/", "/system.slice", NGINX, SSH, RESOLVED, "/system.slice/php8.2-fpm.service"]
RESOLVER = Guard("resolver", RESOLVED, "resolved")
SSHD = Guard("ssh", SSH, "sshd")


def made(
    config: str, cgroups: list[str], *guards: Guard, even: tuple[str, ...] = (), objects: str = OBJECTS
) -> Plan:
    read, problems = settings.read(config, "agent.yaml")
    found, wrong = documents.read(objects, "policy.yaml")
    assert read, problems
    assert not wrong
    return plan(select(found, read), read, cgroups, guards, even)


def held(made: Plan) -> dict[str, str]:
    """Cgroup to workload."""
    return {path: name for name, wanted in made.wanted.items() for path in wanted.cgroups}


def test_units_are_found_by_their_names_below_slices() -> None:
    nested = ["/system.slice/system-web.slice/nginx.service", "/nginx.service"]
    assert set(held(made(WEB, TREE + nested))) == {NGINX, "/system.slice/php8.2-fpm.service", *nested}


@pytest.mark.parametrize(
    "path",
    [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
        "/system.slice/other.service/nginx.service",
        "/machine.slice/box.scope/system.slice/nginx.service",
        "/system.slice/nginx.service/nginx.service/nginx.service",
        "/system.slice/nginx.socket",
        "/system.slice/xnginx.service",
    ],
)
def test_nobody_gets_into_a_workload_by_choosing_a_name_below_a_unit(path: str) -> None:
    assert not held(made(WEB, ["/", path]))


def test_units_of_users_managers_are_named_apart() -> None:
    config = "workloads: [{name: web, labels: {app: web}, userUnits: [job.service]}]\n"
    manager = "/user.slice/user-1000.slice/user@1000.service"
    mine = [f"{manager}/job.service", f"{manager}/app.slice/app-x.slice/job.service"]
    others = [
        "/system.slice/job.service",
        f"{manager}/app.slice/x.service/job.service",
        "/user@1.slice/job.service",
    ]
    assert set(held(made(config, mine + others))) == set(mine)


def test_cgroups_are_found_by_their_paths() -> None:
    config = "workloads: [{name: web, labels: {app: web}, cgroups: ['/batch.slice/*/job-?', /batch.slice]}]\n"
    paths = [
        "/batch.slice",
        "/batch.slice/a/job-1",
        "/batch.slice/job-1",
        "/batch.slice/a/b/job-1",
        "/batch.slice/a",
    ]
    assert set(held(made(config, paths))) == set(paths[:2])


def test_what_no_object_selects_is_absent() -> None:
    assert not made("workloads: [{name: web, labels: {app: other}, units: [nginx.service]}]", TREE).wanted
    assert not made("node: {labels: {role: other}}", TREE).wanted


def test_a_workload_that_does_not_run_yet_has_its_policy_ready() -> None:
    (wanted,) = made(WEB, ["/"]).wanted.values()
    assert not wanted.cgroups
    assert [peer.text for peer, _ in wanted.policy.grants] == ["example.com"]
    assert wanted.objects == ("ClusterEgress web",)


def test_the_host_is_the_root_of_all() -> None:
    found = made(HOST + WEB, TREE)
    assert held(found) == {"/": "host", NGINX: "web", "/system.slice/php8.2-fpm.service": "web"}
    assert found.wanted["host"].objects == ("ClusterEgress node",)


def test_the_first_of_two_workloads_has_the_cgroup_and_it_is_told() -> None:
    config = (
        "workloads: [{name: a, labels: {app: none}, units: [nginx.service]},"
        " {name: b, labels: {app: web}, units: [nginx.service]},"
        " {name: c, labels: {tier: all}, units: ['*.service']}]"
    )
    found = made(config, ["/", NGINX])
    assert held(found) == {NGINX: "b"}  # no object selects a
    assert f"{NGINX} belongs to workload b, which stands before c: name it once" in found.told


def test_objects_that_select_nothing_here_are_told() -> None:
    assert (
        "ClusterEgress node selects nothing on this host: compare its selectors with the labels"
        in made(WEB, TREE).told
    )
    assert not made(HOST + SLICE, TREE[:2], objects=OBJECTS.replace("app: web", "tier: all")).told


# ---- Lifelines --------------------------------------------------------------------------------------------


def test_the_hosts_own_policy_does_not_hold_its_resolver() -> None:
    found = made(HOST, TREE, RESOLVER)
    assert (held(found), found.exempt) == ({"/": "host"}, {RESOLVED})
    assert made(HOST, TREE, RESOLVER, even=("resolver",)).exempt == set()


def test_the_hosts_own_policy_holds_sshd_whose_replies_pass_anyway() -> None:
    found = made(HOST, TREE, SSHD)
    assert (held(found), found.exempt) == ({"/": "host"}, set())


def test_a_host_whose_resolver_lies_in_no_unit_is_not_held() -> None:
    found = made(HOST, TREE, Guard("resolver", "/", "dnsmasq"))
    assert held(found) == {}
    assert (
        "NOT ENFORCED on / (workload host, ClusterEgress node): it is the host's resolver (dnsmasq); "
        "leave it out of the workload, or start the agent with --even resolver"
    ) in found.told
    assert held(made(HOST, TREE, Guard("resolver", "/", "dnsmasq"), even=("resolver",))) == {"/": "host"}


@pytest.mark.parametrize(("guard", "word"), [(RESOLVER, "resolver"), (SSHD, "SSH server")])
def test_a_workload_does_not_hold_a_lifeline(guard: Guard, word: str) -> None:
    config = "workloads: [{name: sys, labels: {tier: all}, units: [ssh.service, dns.service, nginx.service]}]"
    found = made(config, TREE, guard, even={"resolver": ("ssh",), "ssh": ("resolver",)}[guard.kind])
    assert set(held(found)) == {NGINX, SSH, RESOLVED} - {guard.cgroup}
    assert any(
        told.startswith(
            f"NOT ENFORCED on {guard.cgroup} (workload sys, ClusterEgress all): it is the host's {word}"
        )
        and told.endswith(f"or start the agent with --even {guard.kind}")
        for told in found.told
    )
    asked_twice = made(config, TREE, guard, even=("ssh", "resolver"))
    assert set(held(asked_twice)) == {NGINX, SSH, RESOLVED}


@pytest.mark.parametrize("guard", [RESOLVER, SSHD])
def test_a_slice_leaves_out_the_lifeline_in_it(guard: Guard) -> None:
    found = made(SLICE, TREE, guard, even={"resolver": ("ssh",), "ssh": ("resolver",)}[guard.kind])
    assert (held(found), found.exempt) == ({"/system.slice": "sys"}, {guard.cgroup})
    assert any(told.startswith(f"workload sys leaves out {guard.cgroup}: ") for told in found.told)


def test_sshd_left_out_of_a_slice_is_still_the_hosts() -> None:
    found = made(HOST + SLICE, TREE, SSHD)
    assert held(found) == {"/": "host", "/system.slice": "sys", SSH: "host"}
    assert not found.exempt


@pytest.mark.parametrize(
    "unit", ["ssh.service", "ssh@0-22.service", "systemd-resolved.service", "unbound.service"]
)
def test_a_lifeline_that_does_not_run_yet_is_known_by_its_unit(unit: str) -> None:
    config = "workloads: [{name: sys, labels: {tier: all}, units: ['*.service']}]"
    assert not held(made(config, [f"/system.slice/{unit}"]))
    assert made(SLICE, ["/", "/system.slice", f"/system.slice/{unit}"]).exempt == {f"/system.slice/{unit}"}


def test_a_user_can_not_make_a_lifeline_by_its_name() -> None:
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service"
    config = "workloads: [{name: sys, labels: {tier: all}, userUnits: ['*.service'], cgroups: [/user.slice]}]"
    found = made(config, ["/user.slice", path])
    assert set(held(found)) == {"/user.slice", path}
    assert not found.exempt


def test_exempt_units_are_held_by_nothing_above_but_by_a_workload_that_names_them() -> None:
    assert made(HOST + "exempt: ['ng*.service']", TREE).exempt == {NGINX}
    found = made(HOST + WEB + "exempt: ['ng*.service']", TREE)
    assert NGINX in held(found)
    assert not found.exempt


def test_a_held_process_does_not_free_itself_by_listening() -> None:
    assert believable([RESOLVER], {}) == [RESOLVER]
    assert believable([RESOLVER], {RESOLVED: "web"}) == []
    assert believable([RESOLVER], {"/system.slice": "sys", "/": "host"}) == []
    assert believable([RESOLVER], {"/": "host"}) == [RESOLVER]  # else a resolver that starts late is cut off
    assert believable([RESOLVER], {"/system.slice": "sys", RESOLVED: EXEMPT}) == [RESOLVER]
    assert believable([Guard("resolver", "/", "x")], {"/": "host"}) == []


# ---- What is watched --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "watched"),
    [
        ("/", True),
        ("/system.slice", True),
        ("/system.slice/system-web.slice", True),
        ("/system.slice/nginx.service", False),
        ("/user.slice/user-1000.slice/user@1000.service", True),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice", True),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", False),
        ("/user.slice/user-1000.slice/session-3.scope", False),
        ("/pods", True),
        ("/pods/a", True),
        ("/pods/a/job", False),
        ("/others", False),
    ],
)
def test_only_what_may_hold_a_workload_is_watched(path: str, watched: bool) -> None:
    config = "workloads: [{name: a, userUnits: [a.service], cgroups: ['/pods/*/job']}]"
    read, _ = settings.read(config, "agent.yaml")
    assert read
    assert is_of_interest(read, path) == watched


def test_users_managers_are_watched_only_where_a_workload_names_their_units() -> None:
    read, _ = settings.read(WEB, "agent.yaml")
    assert read
    assert not is_of_interest(read, "/user.slice/user-1000.slice/user@1000.service")
