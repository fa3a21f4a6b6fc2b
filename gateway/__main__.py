"""The command line. Each command's work is in a module of its own, imported when it is asked for."""

# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

REFUSED, WRONG = 1, 2

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

CHECK_EPILOG = """
examples:
  skouter policy check egress.yaml                  every problem at once; exit status 1 if there is one
  skouter policy check -o json deploy/*.yaml
"""

EXPLAIN_EPILOG = """
examples:
  skouter policy explain egress.yaml --workload app=web example.com:443
  skouter policy explain egress.yaml --workload app=web --namespace shop 192.0.2.7:53/udp
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="skouter", description=DESCRIPTION)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_policy(commands)
    status = _add(commands, "status", "what is attached, who is held to what, which names are granted")
    status.set_defaults(do=do_status)
    off = _add(commands, "off", "break-glass: detach everything at once; nothing is filtered any more")
    off.set_defaults(do=do_off)
    uninstall = _add(commands, "uninstall", "detach everything and leave nothing behind in the kernel")
    uninstall.set_defaults(do=do_uninstall)
    completion = commands.add_parser(
        "completion", help='a script for your shell: eval "$(skouter completion bash)"'
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(do=do_completion)
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
    run.set_defaults(do=do_run)


def _add_policy(commands: Any) -> None:
    policy = commands.add_parser("policy", help="check and explain policy documents").add_subparsers(
        dest="what", required=True, metavar="COMMAND"
    )
    check = _add(
        policy, "check", "every problem of the documents: file, object, field and mend", CHECK_EPILOG
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.set_defaults(do=do_check)
    explain = _add(policy, "explain", "which rule allows a destination, or why nothing does", EXPLAIN_EPILOG)
    explain.add_argument("files", nargs="+", type=Path, metavar="FILE")
    explain.add_argument(
        "--workload", default="", metavar="LABELS", help="labels of the workload: app=web,tier=front"
    )
    explain.add_argument("--namespace", default="default", help="its namespace")
    explain.add_argument(
        "destination", metavar="NAME:PORT", help="example.com:443, 192.0.2.7:53/udp, [2001:db8::1]:22"
    )
    explain.set_defaults(do=do_explain)


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: write 60")
    return int(text)


class _Version(argparse.Action):
    """Asks the installation only when it is asked: that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"skouter {version('skouter')}")
        except PackageNotFoundError:
            print("skouter, not installed")
        parser.exit()


# ---- Commands -------------------------------------------------------------------------------------------


def do_run(arguments: argparse.Namespace) -> int:
    import dataclasses

    from gateway import allow, place, policy, resolvers
    from gateway.numbers import Options
    from gateway.records import Egress
    from gateway.run import Request, run
    from routing.own import namespace_cookie, own_addresses

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
        own=tuple(own_addresses()),
        netns=namespace_cookie(),
        trace=True,
        floor=arguments.floor,
        grace=arguments.grace,
    )
    summary = "none" if arguments.quiet else arguments.output
    return run(Request(command, wanted, options, arguments.learn, summary), place.find())


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
    from gateway import allow
    from gateway.explain import explain

    objects, problems = read_files(arguments.files)
    if problems:
        return wrong(*map(str, problems))
    try:
        host, port, protocol = allow.destination(arguments.destination)
    except allow.BadAllowError as error:
        return wrong(str(error))
    verdict = explain(objects, workload_of(arguments), host, port, protocol)
    if arguments.output == "json":
        emit(verdict.as_json())
    else:
        print(f"{'allowed' if verdict.allowed else 'refused'}: {verdict}")
    return 0 if verdict.allowed else REFUSED


def do_status(arguments: argparse.Namespace) -> int:
    from gateway import place, status

    found = status.collect(place.find())
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


# ---- What they share ------------------------------------------------------------------------------------


def read_files(paths: list[Path]) -> tuple[list[Any], list[Any]]:
    """Objects and problems of all files; a file that can't be read is a problem like any other."""
    if not paths:
        return [], []
    from gateway import documents
    from gateway.records import Problem

    objects: list[Any] = []
    problems: list[Any] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            problems.append(Problem(str(path), None, "", "", why.lower(), "name a readable YAML file"))
            continue
        found, wrong_there = documents.read(text, str(path))
        objects += found
        problems += wrong_there
    return objects, problems


def workload_of(arguments: argparse.Namespace) -> Any:
    from gateway.selection import Workload

    labels = {}
    for pair in filter(None, (arguments.workload or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--workload {pair!r}: write labels as KEY=VALUE,KEY=VALUE")
        labels[key.strip()] = value.strip()
    return Workload("command", namespace=arguments.namespace, labels=labels)


def select(egresses: list[Any], arguments: argparse.Namespace) -> list[Any]:
    from gateway.selection import selecting

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
    from gateway.allow import BadAllowError
    from gateway.cgroups import CgroupError

    try:
        return int(arguments.do(arguments))
    except (UsageError, BadAllowError, CgroupError, OSError) as error:
        return wrong(*str(error).splitlines())
    except Exception as error:
        if type(error).__name__ in ("EngineError", "DatapathError", "BadResolverError", "PrivilegeError"):
            return wrong(str(error))
        raise


if __name__ == "__main__":
    sys.exit(main())
