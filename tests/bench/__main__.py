"""`make bench`: every figure as a ratio to a baseline of the same run, written to build/bench.md."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from tests.bench import dns_over_tcp, links, traffic, verdicts

OUT = Path("build") / "bench.md"


def say(text: str) -> None:
    print(f"bench: {text}", flush=True)


def main() -> None:
    rows: list[tuple[str, str, str, str]] = []
    say(f"filling tables: {verdicts.POLICIES} policies, {verdicts.GRANTS} grants")
    with verdicts.laid(()) as bench:
        say("verdicts, cached")
        rows += verdict_rows(verdicts.costs(bench), "cached", "1.6")
        say("traffic")
        for kind, (filtered, again) in traffic.ratios(bench).items():
            aim = "at least 0.97" if kind == "bulk TCP" else ""
            witness = f"A/A {again:.3f}" + ("" if 0.97 <= again <= 1.03 else ": void")
            rows.append((f"{kind}, filtered / unfiltered", f"{filtered:.3f}", witness, aim))
        instructions = verdicts.verified(bench.d)
        say("links")
        found = links.costs(bench)
        alone, empty = found.pop("of AF_PACKET"), found["empty program"]
        rows += verdict_rows(found, "on a link", "4")
        rows.append(
            ("on a link, of AF_PACKET / empty", f"{alone / empty:.1f}", f"{alone:.0f} ns", "reported")
        )
    with verdicts.laid(("-DBENCH",)) as bench:
        say("verdicts, first packets")
        rows += verdict_rows(verdicts.costs(bench), "first packet", "8")
        empty, cold = (verdicts.random_keys(bench, empty) for empty in (True, False))
        rows.append(
            ("first packet, random keys / empty", f"{cold / empty:.1f}", f"{cold:.0f} ns", "reported")
        )
        say("DNS answers")
        for name, ns in verdicts.answers(bench).items():
            rows.append(
                (f"answer of {name}", f"{ns / 1000:.2f} us", "", "at most 1.5 us" if name == "4 A" else "")
            )
        say("patterns")
        for name, (ns, states) in verdicts.walks(bench).items():
            rows.append((f"walk of six expressions, {name}", f"{ns:.0f} ns", f"{states} states", ""))
    say("DNS over TCP")
    for kind, (without, with_it) in dns_over_tcp.added().items():
        row = (f"{with_it - without:.0f} us", f"{with_it:.0f} / {without:.0f} us", "reported")
        rows.append((f"DNS over TCP, added by the proxy, {kind}", *row))
    rows += [(f"verified instructions, {name}", str(count), "", "") for name, count in instructions.items()]
    write(rows)


def verdict_rows(costs: dict[str, float], kind: str, aim: str) -> list[tuple[str, str, str, str]]:
    empty = costs.pop("empty program")
    return [
        (
            f"{kind}, {name} / empty program",
            f"{ns / empty:.2f}",
            f"{ns:.0f} / {empty:.0f} ns",
            f"at most {aim}",
        )
        for name, ns in costs.items()
        if not (kind == "cached" and name == "refused")  # a refusal is judged anew each time
    ]


def write(rows: list[tuple[str, str, str, str]], out: Path = OUT, what: str = "Bench") -> None:
    head = ("what", "figure", "", "aim")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]

    def line(row: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    title = f"# {what}, Linux {platform.release()}, commit {commit.stdout.strip() or 'unknown'}\n"
    text = "\n".join([title, line(head), rule, *map(line, rows), ""])
    out.parent.mkdir(exist_ok=True)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
