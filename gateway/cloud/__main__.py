"""`python -m gateway.cloud secrets` fetches what cloud.yaml names; `.. take-over` goes on for ever."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.cloud import secrets, settings, take_over
from gateway.cloud.http import CloudError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.cloud", description=__doc__)
    parser.add_argument("job", choices=["secrets", "take-over"])
    parser.add_argument("--config", type=Path, default=Path("/etc/skouter/cloud.yaml"))
    arguments = parser.parse_args()
    try:
        found = settings.read(arguments.config)
        if arguments.job == "secrets":
            for path, text in [(path, secrets.fetch(name)) for path, name in found.secrets.items()]:
                secrets.write(path, text)
        else:
            take_over.run(found.gateways, found.port, say)
    except (CloudError, settings.SettingsError, OSError) as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    print(f"skouter: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
