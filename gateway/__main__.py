"""The command line's commands. Each one's work is in a module of its own, imported when it is asked for."""

# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gateway.arguments import CONFIG, parser

REFUSED, WRONG = 1, 2


# ---- Commands -------------------------------------------------------------------------------------------


def do_run(arguments: argparse.Namespace) -> int:
    import dataclasses

    from gateway import place, resolvers
    from gateway.numbers import Options
    from gateway.policies import allow, policy
    from gateway.policies.records import Egress
    from gateway.run import Request, run

    command = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not command:
        return wrong("no command: write skouter run --allow NAME -- COMMAND")
    audit = arguments.audit or (arguments.learn is not None and not arguments.allow and not arguments.policy)
    objects, problems = read_files(arguments.policy)
    if problems:
        return wrong(*map(str, problems))
    egresses = [item for item in objects if isinstance(item, Egress)]
    if arguments.workload is not None:
        egresses = select(egresses, arguments)
    if arguments.allow or not egresses:
        egresses.append(allow.egress(arguments.allow, audit=False))
    wanted = policy.union(egresses)
    assert wanted is not None
    only_allowed = wanted.only_allowed_names or arguments.only_allowed_names
    wanted = dataclasses.replace(wanted, audit=audit or wanted.audit, only_allowed_names=only_allowed)
    trusted = [resolvers.parse(text) for text in arguments.resolver] or resolvers.of_this_host()
    options = Options(
        resolvers=tuple(trusted),
        searches=resolvers.searches_from(resolvers.resolv_conf()),
        trace=True,
        floor=arguments.floor,
        grace=arguments.grace,
    )
    summary = "none" if arguments.quiet else arguments.output
    return run(Request(command, wanted, options, arguments.learn, summary), place.find())


def do_agent(arguments: argparse.Namespace) -> int:
    import os

    from gateway import place
    from gateway.agent import run
    from gateway.request import NodeOf, Request

    node = None
    if arguments.kubernetes:
        name = arguments.node_name or os.environ.get("NODE_NAME", "")
        if not name:
            raise UsageError(
                "--kubernetes: which node is this? Set NODE_NAME to spec.nodeName, or --node-name"
            )
        namespace = os.environ.get("POD_NAMESPACE", "")
        node = NodeOf(name, arguments.kubeconfig, namespace, arguments.startup_taint)
    if arguments.metrics and not arguments.health:
        raise UsageError("--metrics needs --health too: beside that socket lies the key of its certificate")
    if not arguments.config.is_file() and arguments.config != CONFIG:
        raise UsageError(f"--config {arguments.config}: no such file; leave it out for the defaults")
    policies, config = arguments.policy_dir.absolute(), arguments.config.absolute()
    return run(
        Request(
            policies=policies,
            config=config,
            even=frozenset(arguments.even),
            root=arguments.root,
            node=node,
            health=arguments.health,
            metrics=arguments.metrics,
        ),
        place.find(),
    )


def do_gateway(arguments: argparse.Namespace) -> int:
    from gateway import gate, place, settings, unbound
    from gateway.agent import run
    from gateway.request import Mirrored, Request

    if arguments.make_key:
        import secrets

        from gateway.peers.sealing import SECRET, key_text

        print(key_text(secrets.token_bytes(SECRET)), end="")
        return 0
    found, problems = settings.read(arguments.config.read_text(), str(arguments.config), gateway=True)
    if found is None or found.gateway is None:
        return wrong(*map(str, problems))
    if arguments.unbound:
        print(unbound.configuration(found.gateway), end="")
        return 0
    where, config, mirrored = place.find(), arguments.config.absolute(), None
    gate.refuse_first(where, found)
    policies = Path(found.gateway.policies)
    if found.gateway.kubeconfig:
        policies = where.mirror
        service = found.gateway.peers.service if found.gateway.peers else None
        mirrored = Mirrored(Path(found.gateway.kubeconfig), service)
    return run(Request(policies, config, root=arguments.root, gateway=True, mirrored=mirrored), where)


def do_route(arguments: argparse.Namespace) -> int:
    from gateway import place, route, route_settings

    if arguments.undo:
        return _told(arguments, "removed", route.undo(place.find()), "nothing was there")
    found, problems = route_settings.read(arguments.config.read_text(), str(arguments.config))
    return wrong(*map(str, problems)) if found is None else route.run(found, place.find())


def do_wait(arguments: argparse.Namespace) -> int:
    from gateway import place
    from gateway.wait import wait

    if wait(place.find(), arguments.root, arguments.timeout):
        return 0
    print(
        f"skouter: no policy holds this cgroup after {arguments.timeout} s: is skouter.service running, and "
        "does a workload of its configuration name this unit?",
        file=sys.stderr,
    )
    return REFUSED


def do_check(arguments: argparse.Namespace) -> int:
    objects, problems = read_files(arguments.files)
    if arguments.output == "json":
        import dataclasses

        emit(
            {
                "objects": [str(item) for item in objects],
                "problems": [dataclasses.asdict(p) for p in problems],
            }
        )
    else:
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"{_count(len(objects), 'object')}, {_count(len(problems), 'problem')}")
    return REFUSED if problems else 0


def do_explain(arguments: argparse.Namespace) -> int:
    from gateway.policies import allow
    from gateway.policies.explain import explain

    objects, problems = read_files(arguments.files)
    if problems:
        return wrong(*map(str, problems))
    try:
        host, port, protocol = allow.destination(arguments.destination)
    except allow.BadAllowError as error:
        return wrong(str(error))
    if arguments.source and arguments.workload:
        return wrong("--source is a machine's, --workload a pod's or command's: write one of them")
    workload = (
        machine_of(arguments.source, objects)
        if arguments.source
        else workload_of(arguments, arguments.namespace_labels)
    )
    verdict = explain(objects, workload, host, port, protocol)
    if arguments.output == "json":
        emit(verdict.as_json())
    else:
        print(f"{'allowed' if verdict.allowed else 'refused'}: {verdict}")
    return 0 if verdict.allowed else REFUSED


def do_status(arguments: argparse.Namespace) -> int:
    from gateway import place, status

    found = status.collect(place.find())
    if arguments.pod:
        found = status.only(found, arguments.pod)
    if arguments.output == "json":
        emit(found)
    else:
        print("\n".join(status.lines(found)))
    return 0


def do_off(arguments: argparse.Namespace) -> int:
    from gateway import place, removal

    gone = removal.off(place.find())
    return _told(arguments, "detached", gone, "nothing was attached")


def do_uninstall(arguments: argparse.Namespace) -> int:
    from gateway import place, removal

    gone = removal.uninstall(place.find())
    return _told(arguments, "removed", gone, "nothing was there")


def do_completion(arguments: argparse.Namespace) -> int:
    import argcomplete

    print(argcomplete.shellcode(["skouter"], shell=arguments.shell))
    return 0


COMMANDS = {
    "agent": do_agent,
    "check": do_check,
    "completion": do_completion,
    "explain": do_explain,
    "gateway": do_gateway,
    "off": do_off,
    "route": do_route,
    "run": do_run,
    "status": do_status,
    "uninstall": do_uninstall,
    "wait": do_wait,
}


# ---- What they share ------------------------------------------------------------------------------------


def read_files(paths: list[Path]) -> tuple[list[Any], list[Any]]:
    """Objects and problems of all files, - being standard input; one that can't be read is a problem too."""
    if not paths:
        return [], []
    from gateway.policies import documents
    from gateway.policies.records import Problem

    objects: list[Any] = []
    problems: list[Any] = []
    for path in paths:
        try:
            data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            problems.append(Problem(str(path), None, "", "", why.lower(), "name a readable YAML file"))
            continue
        found, wrong_there = documents.read(text, str(path))
        objects += found
        problems += wrong_there
    return objects, problems


def workload_of(arguments: argparse.Namespace, namespace_labels: str = "") -> Any:
    from gateway.policies.selection import Workload

    return Workload(
        "command",
        namespace=arguments.namespace,
        labels=labels_of("--workload", arguments.workload or ""),
        namespace_labels=labels_of("--namespace-labels", namespace_labels),
    )


def machine_of(source: str, objects: list[Any]) -> Any:
    from gateway.policies.addresses import BadAddressError, parse_address
    from gateway.policies.selection import machine_at

    try:
        return machine_at(objects, parse_address(source))
    except BadAddressError as error:
        raise UsageError(f"--source: {error.wrong}; {error.mend}") from None


def labels_of(option: str, text: str) -> dict[str, str]:
    labels = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{option} {pair!r}: write labels as KEY=VALUE,KEY=VALUE")
        labels[key.strip()] = value.strip()
    return labels


def select(egresses: list[Any], arguments: argparse.Namespace) -> list[Any]:
    from gateway.policies.selection import selecting

    chosen = list(selecting(egresses, workload_of(arguments)))
    if not chosen:
        raise UsageError(
            f"no object selects --workload {arguments.workload!r} in namespace {arguments.namespace}"
        )
    return chosen


class UsageError(Exception):
    """What the caller wrote can't be done; the message says what to write."""


def emit(found: object) -> None:
    import orjson

    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


def wrong(*messages: str) -> int:
    for message in messages:
        print(f"skouter: {message}", file=sys.stderr)
    return WRONG


def _told(arguments: argparse.Namespace, verb: str, gone: list[str], nothing: str) -> int:
    if arguments.output == "json":
        emit({verb: gone})
    else:
        print("\n".join(f"{verb} {what}" for what in gone) or nothing)
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(argv: list[str] | None = None) -> int:
    top = parser()
    if "_ARGCOMPLETE" in __import__("os").environ:
        import argcomplete

        argcomplete.autocomplete(top)
    arguments = top.parse_args(argv)
    return _guarded(arguments)


def _guarded(arguments: argparse.Namespace) -> int:
    """Errors that a person can mend are sentences; everything else is a bug and keeps its traceback."""
    from gateway.cgroups import CgroupError
    from gateway.policies.allow import BadAllowError

    try:
        return int(COMMANDS[arguments.do](arguments))
    except (UsageError, BadAllowError, CgroupError, OSError) as error:
        return wrong(*str(error).splitlines())
    except Exception as error:
        if type(error).__name__ in ("EngineError", "DatapathError", "BadResolverError", "PrivilegeError"):
            return wrong(str(error))
        raise


if __name__ == "__main__":
    sys.exit(main())
