"""Holds a workload for a test, by whichever version of Skouter PYTHONPATH names.

hold.py NAME SETTINGS, in the workload's network namespace; SETTINGS is JSON {rules, resolvers, audit,
only_allowed_names, searches}. The first line of output is the workload's cgroup; each line of input is
answered by the counters so far; at the end of input the workload goes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from gateway import place, resolvers
from gateway.commands import admit, dismiss
from gateway.engine import Engine
from gateway.numbers import Options
from gateway.policies import allow, policy
from routing.own import home


def main(name: str, settings: dict[str, Any]) -> None:
    wanted = policy.union([allow.egress(settings["rules"], audit=settings["audit"])])
    wanted = dataclasses.replace(wanted, only_allowed_names=settings["only_allowed_names"])
    options = Options(
        resolvers=tuple(resolvers.parse(text) for text in settings["resolvers"]),
        searches=tuple(settings["searches"]),
        trace=True,
    )
    engine = Engine(place.find())
    held = admit(engine, f"run-{name}", wanted, options, home(), {"command": ["a test"], "pid": 0})
    (cgroup,) = held.cgroups
    print(cgroup, flush=True)
    for _ in sys.stdin:
        print(json.dumps(engine.counters(held.number)), flush=True)
    dismiss(engine, held)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
