"""What Skouter does, to look at: `make demo`.

In namespaces of this machine (tests/topology.py draws them) a pod is held to deploy/examples/egress.yaml,
while a real DNS server changes what it says. Ends with a table; the exit status is 0 if every row of it is as
it should be. Leaves nothing behind, also on Ctrl-C.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.topology import DNS4, DNS6, Lab, LabError, end, wait_for

POLICY = Path("deploy", "examples", "egress.yaml")
CHECKOUT = Path(__file__).parent.parent
FLOOR, GRACE = 2, 1  # seconds; 60 and 60 where nobody needs to wait for them
AT_ONCE = 250  # milliseconds, of which a wget takes some to start
ZONE = {
    "example.com": ("198.51.100.10", "2001:db8:51::10"),
    "httpbin.org": ("198.51.100.20", "2001:db8:51::20"),
    "example.org": ("198.51.100.30", "2001:db8:51::30"),
}
MOVED = ("198.51.100.11", "2001:db8:51::11")
MOVED_AGAIN = ("198.51.100.21", "2001:db8:51::21")
REFUSED = "Operation not permitted"
PICTURE = f"""
      pod ───────── node ───────── world     example.com  {ZONE["example.com"][0]}  {ZONE["example.com"][1]}
   10.1.0.2       forwards        unbound    httpbin.org  {ZONE["httpbin.org"][0]}  {ZONE["httpbin.org"][1]}
    fd01::2                     {DNS4}   example.org  {ZONE["example.org"][0]}  {ZONE["example.org"][1]}
                              {DNS6}
"""
# Does in the pod what is written to its input, and says what came of it.
PROGRAM = """
import json, subprocess, sys, time
for line in sys.stdin:
    start = time.monotonic()
    done = subprocess.run(json.loads(line), capture_output=True, text=True)
    took = 1000 * (time.monotonic() - start)
    print(json.dumps([done.returncode, done.stdout.strip(), done.stderr.strip(), took]), flush=True)
"""


@dataclass(frozen=True)
class Row:
    """One thing that was tried."""

    tried: str
    expected: str
    seen: str
    milliseconds: float | None = None
    limit: float | None = None

    @property
    def is_good(self) -> bool:
        in_time = self.limit is None or (self.milliseconds or 0) < self.limit
        return self.seen == self.expected and in_time


class Demo:
    """The scenes, one after another."""

    def __init__(self, lab: Lab, held: ExitStack, start: float) -> None:
        self.lab, self.held, self.start = lab, held, start
        self.rows: list[Row] = []
        self.program, self.download = lab.folder / "in-the-pod.py", lab.folder / "download"
        self.program.write_text(PROGRAM)
        self.download.touch()
        self.download.chmod(0o666)  # under sudo the command is not root

    def play(self) -> None:
        for name, addresses in ZONE.items():
            self.lab.dns.set(name, *addresses, ttl=1)
        self.say("without Skouter the pod reaches everything")
        self.wget(self.unfiltered, "example.org", 4, ZONE["example.org"][0], before="unfiltered: ")
        self.say(f"skouter run --policy {POLICY} -- ...   (the first start compiles for some seconds)")
        self.pod = self.begin()
        self.allowed_and_refused()
        self.moving()
        self.agentless()
        self.off()

    def allowed_and_refused(self) -> None:
        self.say("allowed names are reached, all else is refused at once")
        for name in ("example.com", "httpbin.org", "example.org"):
            for family, address in zip((4, 6), ZONE[name], strict=True):
                self.wget(self.inside, name, family, REFUSED if name == "example.org" else address)
        self.wget(self.inside, "example.com:8080", 4, REFUSED)
        self.wget(self.inside, ZONE["example.org"][0], 4, REFUSED)

    def moving(self) -> None:
        self.say("a download from example.com runs, and the name moves to another site")
        url = "http://example.com/endless"
        self.inside("sh", "-c", f"curl -4sN -o {self.download} {url} >/dev/null 2>&1 &")
        wait_for(lambda: self.size() > 0, "the download")
        self.lab.dns.set("example.com", *MOVED, ttl=1)
        for family, address in zip((4, 6), MOVED, strict=True):
            self.wget(self.inside, "example.com", family, address, before="moved: ")
        self.say("what skouter status sees:")
        for line in subprocess.run(
            self.lab.skouter("status"), capture_output=True, text=True
        ).stdout.splitlines():
            print(f"           │ {line if len(line) < 100 else line[:99] + '…'}")
        self.say("the old address closes when its grant ends, but not for the download")
        old = ZONE["example.com"][0]
        began = time.monotonic()
        wait_for(lambda: self.inside(*words_of(old, 4))[0] != 0, "the end of the grant", FLOOR + GRACE + 5)
        lasted = time.monotonic() - began
        self.wget(self.inside, old, 4, REFUSED, before=f"{lasted:.0f} s later: ")
        before = self.size()
        wait_for(lambda: self.size() > before, "the download goes on")
        self.add(Row("the download goes on", "it does", "it does"))

    def agentless(self) -> None:
        self.say("kill -9 skouter: the kernel goes on alone, for new addresses too")
        self.pod.kill()
        self.pod.wait()
        self.lab.dns.set("httpbin.org", *MOVED_AGAIN, ttl=1)
        for family, address in zip((4, 6), MOVED_AGAIN, strict=True):
            self.wget(self.inside, "httpbin.org", family, address, before="agent dead: ")
        self.wget(self.inside, "example.org", 4, REFUSED, before="agent dead: ")

    def off(self) -> None:
        self.say("skouter off: the break-glass")
        subprocess.run(self.lab.skouter("off"), check=True, capture_output=True)
        self.wget(self.inside, "example.org", 4, ZONE["example.org"][0], before="off: ")

    # ---- Doing ------------------------------------------------------------------------------------------

    def begin(self) -> subprocess.Popen[str]:
        words = ("run", "-q", "--policy", CHECKOUT / POLICY, "--floor", FLOOR, "--grace", GRACE)
        process = subprocess.Popen(
            self.lab.skouter(*words, "--", "/usr/bin/python3", self.program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo alone
        )
        self.held.callback(end, process)
        return process

    def inside(self, *argv: str) -> tuple[int, str, str, float]:
        """Status, output, errors and milliseconds of a command in the pod that is held to the policy."""
        assert self.pod.stdin is not None
        assert self.pod.stdout is not None
        self.pod.stdin.write(json.dumps(argv) + "\n")
        self.pod.stdin.flush()
        line = self.pod.stdout.readline()
        if not line:
            raise LabError("skouter run ended: what it said is above")
        status, out, said, took = json.loads(line)
        return status, out, said, took

    def unfiltered(self, *argv: str) -> tuple[int, str, str, float]:
        start = time.monotonic()
        done = self.lab.pod.run(*argv)
        return done.returncode, done.stdout.strip(), done.stderr.strip(), 1000 * (time.monotonic() - start)

    def wget(self, how: Callable[..., Any], name: str, family: int, expected: str, before: str = "") -> None:
        status, out, said, took = how(*words_of(name, family))
        why = re.search(r"failed: (.+?)\.?$", said, re.MULTILINE)
        seen = out if status == 0 else why[1] if why else said or f"status {status}"
        limit = AT_ONCE if expected == REFUSED else None
        self.add(Row(f"{before}wget -{family} http://{name}/", expected, seen, took, limit))

    def size(self) -> int:
        return self.download.stat().st_size

    # ---- Telling ----------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s   {text}", flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"           {mark(row)} {row.tried}   {row.seen}", flush=True)


def words_of(name: str, family: int) -> tuple[str, ...]:
    return ("wget", f"-{family}", "-nv", "-O-", "-t1", "-T5", f"http://{name}/")


def mark(row: Row) -> str:
    return painted("✓", 32) if row.is_good else painted("✗", 31)


def painted(text: str, colour: int) -> str:
    return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() else text


def table(rows: list[Row]) -> list[str]:
    titles = ("tried", "expected", "seen", "ms")
    cells = [
        (row.tried, row.expected, row.seen, f"{row.milliseconds:.0f}" if row.milliseconds else "")
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]

    def line(cell: tuple[str, ...]) -> str:
        left = (text.ljust(width) for text, width in zip(cell[:3], widths, strict=False))
        return f"{'   '.join(left)}   {cell[3].rjust(widths[3])}"

    rule = "─" * (sum(widths) + 9)
    body = [f"  {mark(row)} {line(cell)}" for row, cell in zip(rows, cells, strict=True)]
    return [f"    {line(titles)}", f"    {rule}", *body, f"    {rule}"]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    print(PICTURE)
    print("   0.0 s   three machines are made of namespaces", flush=True)
    try:
        with Lab() as lab, ExitStack() as held:
            demo = Demo(lab, held, start)
            demo.play()
    except KeyboardInterrupt:
        print("\n  stopped, and everything is removed")
        return 130
    except (LabError, TimeoutError) as error:
        print(f"\n  {error}", file=sys.stderr)
        return 2
    wrong = sum(not row.is_good for row in demo.rows)
    print("", *table(demo.rows), sep="\n")
    said = f"{wrong} of {len(demo.rows)} rows are not as expected" if wrong else "all as expected"
    print(f"\n    {said}, in {time.monotonic() - demo.start:.0f} s; everything is removed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
