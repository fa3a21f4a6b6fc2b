"""`python -m tests.tools envtest ...`: builds sets of programs that are missing, prints their folders."""

from __future__ import annotations

import argparse
import sys

from tests.tools import build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools", description=__doc__)
    parser.add_argument("sets", nargs="+", choices=build.SETS)
    try:
        for name in parser.parse_args().sets:
            print(build.folder(name))
    except build.ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
