"""The words of the command line: commands, options and their helps; what they do is __main__.py's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

CONFIG, POLICIES = Path("/etc/skouter/agent.yaml"), Path("/etc/skouter/policies")
GATEWAY, ROUTE = Path("/etc/skouter/gateway.yaml"), Path("/etc/skouter/route.yaml")

DESCRIPTION = "Skouter: what may leave this machine, by DNS name, enforced in the kernel."

RUN_EPILOG = """
examples:
  skouter run --allow api.example.com:443 -- curl https://api.example.com/
  skouter run --allow '*.debian.org' --allow 192.0.2.0/24:22 -- ./build.sh
  skouter run --policy egress.yaml -- python3 job.py
  skouter run --audit --learn learned.yaml -- ./build.sh      find out what it needs

  Everything that no --allow and no policy names is refused at once (EPERM). DNS goes to the servers of
  /etc/resolv.conf; the addresses in their answers are allowed before the command can see them.
"""

AGENT_EPILOG = """
examples:
  skouter agent                                     as skouter.service runs it
  skouter agent --policy-dir ./policies --config ./agent.yaml

  Holds what the configuration names (systemd units, cgroups, the host itself) to the policies that select it,
  and follows files and units as they change. A set of files with a problem changes nothing: the last good one
  stays. When the agent ends, what it enforced stays enforced; skouter off opens.

  skouter agent --kubernetes                        on the node of a cluster, as its DaemonSet runs it

  Holds this node's pods to the Egress and ClusterEgress objects of the API server; what no object selects is
  not touched. A new pod reaches nothing until it is known who it is. The files then have what the node itself
  keeps where a policy selects it (deploy/examples/node-bootstrap.yaml).
"""

GATEWAY_EPILOG = """
examples:
  skouter gateway                                   as skouter-gateway.service runs it
  skouter gateway --unbound > unbound.conf          the configuration of the resolver beside it
  skouter gateway --make-key > peer.key             what all gateways have, and nobody else

  Forwards the machines of the configuration's networks whose route leads here, as far as the policies allow
  that select them: by workloadSelector and the labels of their ExternalWorkload, or by sourceCIDRs. When it
  ends, what it enforces stays enforced, and forwarding goes on; skouter uninstall takes all of it away.
"""

WAIT_EPILOG = """
examples:
  ExecStartPre=+skouter wait                        in a unit's drop-in: it never starts without its policy
"""

ROUTE_EPILOG = """
examples:
  skouter route                                     on the Linux router between machines and their gateways
  skouter route --undo

  Asks each gateway every second whether it is ready. Who loses a dead one is led to another, all others keep
  theirs. When this ends, what the kernel was told last stays.
"""

CHECK_EPILOG = """
examples:
  skouter policy check egress.yaml                  every problem at once; exit status 1 if there is one
  skouter policy check -o json deploy/*.yaml
  kubectl get egresses -A -o yaml | skouter policy check -
"""

EXPLAIN_EPILOG = """
examples:
  skouter policy explain egress.yaml --workload app=web example.com:443
  skouter policy explain egress.yaml --workload app=web --namespace shop 192.0.2.7:53/udp
  skouter policy explain gateway/*.yaml --source 10.20.0.11 example.com:443
"""


FILE = "YAML or JSON, also what kubectl get prints; - reads standard input"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="skouter", description=DESCRIPTION)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_policy(commands)
    _add_agent(commands)
    _add_gateway(commands)
    _add_route(commands)
    status = _add(commands, "status", "what is attached, who is held to what, which names are granted")
    status.add_argument("--pod", metavar="NAMESPACE/NAME", help="only what concerns this pod of this node")
    status.set_defaults(do="status")
    off = _add(commands, "off", "break-glass: detach everything at once; nothing is filtered any more")
    off.set_defaults(do="off")
    uninstall = _add(commands, "uninstall", "detach everything and leave nothing behind in the kernel")
    uninstall.set_defaults(do="uninstall")
    completion = commands.add_parser(
        "completion", help='a script for your shell: eval "$(skouter completion bash)"'
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(do="completion")
    return top


def _add(
    commands: Any, name: str, text: str, epilog: str = "", output: bool = True
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if output:
        made.add_argument("-o", "--output", choices=("human", "json"), default="human")
    return made


def _add_run(commands: Any) -> None:
    run = _add(commands, "run", "run a command that may reach only what you allow", RUN_EPILOG)
    run.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="name, *.name, address or CIDR; 443, 8000-8080 or 53/udp; no port: all",
    )
    run.add_argument(
        "--policy",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="Egress documents; all of them apply, unless --workload picks",
    )
    run.add_argument(
        "--workload", metavar="LABELS", help="labels (app=web,tier=front) that select among the documents"
    )
    run.add_argument("--namespace", default="default", help="the namespace in which they select")
    run.add_argument(
        "--only-allowed-names",
        action="store_true",
        help="refuse DNS questions for every other name too, so that no data leaves in them",
    )
    run.add_argument("--audit", action="store_true", help="refuse nothing, tell what would be refused")
    run.add_argument(
        "--learn",
        type=Path,
        metavar="FILE",
        help="write the policy that would have sufficed; with no policy given, implies --audit",
    )
    run.add_argument(
        "--resolver",
        action="append",
        default=[],
        metavar="ADDRESS[:PORT]",
        help="trust these DNS servers instead of those of /etc/resolv.conf",
    )
    run.add_argument(
        "--floor",
        type=_seconds,
        default=60,
        metavar="SECONDS",
        help="an address is granted for its TTL, but at least this long (60)",
    )
    run.add_argument(
        "--grace", type=_seconds, default=60, metavar="SECONDS", help="and for this long on top (60)"
    )
    run.add_argument("-q", "--quiet", action="store_true", help="no summary")
    run.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, and its arguments"
    )
    run.set_defaults(do="run")


def _add_agent(commands: Any) -> None:
    agent = _add(
        commands, "agent", "a daemon: hold units, cgroups and the host to policies", AGENT_EPILOG, False
    )
    agent.add_argument(
        "--policy-dir", type=Path, default=POLICIES, metavar="DIR", help=f"the policies ({POLICIES})"
    )
    agent.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help=f"workloads and the host's labels ({CONFIG})",
    )
    agent.add_argument(
        "--even",
        action="append",
        choices=("resolver", "ssh"),
        default=[],
        help="let policies hold the host's resolver, or its SSH server, too",
    )
    agent.add_argument(
        "--kubernetes",
        action="store_true",
        help="hold the pods of this node to the policies of its cluster; files then have what the host keeps "
        "where one of them selects it",
    )
    agent.add_argument(
        "--node-name", metavar="NAME", default=None, help="this node in its cluster ($NODE_NAME)"
    )
    agent.add_argument(
        "--kubeconfig", type=Path, metavar="FILE", help="instead of the pod's own service account"
    )
    agent.add_argument(
        "--startup-taint",
        action="store_true",
        help="take the taint egress.skouter/not-ready off the node when its pods are enforced",
    )
    agent.add_argument(
        "--health",
        type=Path,
        metavar="SOCKET",
        help="answer /livez, /readyz and /metrics on this Unix socket",
    )
    agent.add_argument(
        "--metrics",
        type=_address,
        metavar="ADDRESS:PORT",
        help="answer there too, by TLS, to those whom the API server lets get the path",
    )
    wait = _add(commands, "wait", "wait until the cgroup it runs in is held to a policy", WAIT_EPILOG, False)
    wait.add_argument(
        "--timeout", type=_seconds, default=60, metavar="SECONDS", help="and give up after (60)"
    )
    for command in (agent, wait):
        command.add_argument(
            "--root",
            default="/",
            metavar="CGROUP",
            help="look after this cgroup alone, as if it were the host",
        )
        command.set_defaults(do=command.prog.split()[-1])


def _add_gateway(commands: Any) -> None:
    gateway = _add(
        commands, "gateway", "a daemon: forward other machines, held to policies", GATEWAY_EPILOG, False
    )
    gateway.add_argument(
        "--config", type=Path, default=GATEWAY, metavar="FILE", help=f"the configuration ({GATEWAY})"
    )
    gateway.add_argument(
        "--unbound", action="store_true", help="print the configuration of its resolver, and exit"
    )
    gateway.add_argument("--make-key", action="store_true", help="print a new key for peers, and exit")
    gateway.add_argument(
        "--root", default="/", metavar="CGROUP", help="look after this cgroup alone, as if it were the host"
    )
    gateway.set_defaults(do="gateway")


def _add_route(commands: Any) -> None:
    route = _add(
        commands,
        "route",
        "a daemon: on a router, lead machines to those gateways that are alive",
        ROUTE_EPILOG,
    )
    route.add_argument(
        "--config", type=Path, default=ROUTE, metavar="FILE", help=f"machines and gateways ({ROUTE})"
    )
    route.add_argument(
        "--undo", action="store_true", help="take away all that it did to this router, and exit"
    )
    route.set_defaults(do="route")


def _add_policy(commands: Any) -> None:
    policy = commands.add_parser("policy", help="check and explain policy documents").add_subparsers(
        dest="what", required=True, metavar="COMMAND"
    )
    check = _add(
        policy, "check", "every problem of the documents: file, object, field and mend", CHECK_EPILOG
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help=FILE)
    check.set_defaults(do="check")
    explain = _add(policy, "explain", "which rule allows a destination, or why nothing does", EXPLAIN_EPILOG)
    explain.add_argument("files", nargs="+", type=Path, metavar="FILE", help=FILE)
    explain.add_argument(
        "--workload", default="", metavar="LABELS", help="labels of the workload: app=web,tier=front"
    )
    explain.add_argument(
        "--source", metavar="ADDRESS", help="or the machine behind a gateway that has this address"
    )
    explain.add_argument("--namespace", default="default", help="its namespace")
    explain.add_argument(
        "--namespace-labels", default="", metavar="LABELS", help="labels of that, for a namespaceSelector"
    )
    explain.add_argument(
        "destination", metavar="NAME:PORT", help="example.com:443, 192.0.2.7:53/udp, [2001:db8::1]:22"
    )
    explain.set_defaults(do="explain")


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: write 60")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    """The last colon is the one before the port, with brackets around an IPv6 address or without."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no address with a port: write 192.0.2.1:9472")
    return host.strip("[]"), int(port)


class _Version(argparse.Action):
    """Asks the installation only when it is asked: that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"skouter {version('skouter')}")
        except PackageNotFoundError:
            print("skouter, not installed")
        parser.exit()
