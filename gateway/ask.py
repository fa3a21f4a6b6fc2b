"""`python -m gateway.ask SOCKET PATH`: asks the agent of this pod how it is, for kubelet's probes.

Run every few seconds on every node, so it imports next to nothing. What the agent says is printed, for
`kubectl describe pod`; the exit status is 0 where it says 200.
"""

from __future__ import annotations

import socket
import sys

PATIENCE = 9.0  # seconds


def ask(path: str, target: str) -> tuple[int, str]:
    """Status and text of `GET target`; (0, why) where nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(path)
            asking.sendall(f"GET {target} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
            answer = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    except OSError as error:
        return 0, f"the agent does not answer on {path}: {error.strerror or error}\n"
    head, _, body = answer.partition("\r\n\r\n")
    words = head.split(" ", 2)
    return (int(words[1]), body) if len(words) > 1 and words[1].isdigit() else (0, "no answer\n")


if __name__ == "__main__":
    status, text = ask(sys.argv[1], sys.argv[2])
    print(text, end="")
    sys.exit(0 if status == 200 else 1)
