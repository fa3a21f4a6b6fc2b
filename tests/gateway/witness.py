"""Counts outside what should never come there: packets from gateways whose source is a private address.

Runs in the outside's namespace; "ready" is printed first, then for each line of input what there was since
the last: {"packets": how many, "first": the first as hexadecimal}. The kernel sorts out the others, so that
none is missed in a gigabyte.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys

ETH_P_ALL, PACKET_OUTGOING, SO_ATTACH_FILTER = 3, 4, 26  # packet(7), socket(7)
LOAD_BYTE, LOAD_WORD, SHIFT, MASK, EQUAL, RETURN = 0x30, 0x20, 0x74, 0x54, 0x15, 0x06  # linux/bpf_common.h

# 10/8 or fc00::/7, by the source of the IP header that a SOCK_DGRAM packet socket's frames begin with.
PRIVATE = [
    (LOAD_BYTE, 0, 0, 0),
    (SHIFT, 0, 0, 4),
    (EQUAL, 0, 3, 4),
    (LOAD_BYTE, 0, 0, 12),
    (EQUAL, 6, 0, 10),
    (RETURN, 0, 0, 0),
    (EQUAL, 0, 3, 6),
    (LOAD_BYTE, 0, 0, 8),
    (MASK, 0, 0, 0xFE),
    (EQUAL, 1, 0, 0xFC),
    (RETURN, 0, 0, 0),
    (RETURN, 0, 0, 0xFFFF),
]


def private_only() -> socket.socket:
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    code = b"".join(struct.pack("HBBI", *line) for line in PRIVATE)
    kept = ctypes.create_string_buffer(code)
    frames.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", len(PRIVATE), ctypes.addressof(kept))
    )
    frames.bind(("gates", ETH_P_ALL))
    return frames


def main() -> None:
    frames = private_only()
    frames.setblocking(False)
    print("ready", flush=True)
    for _ in sys.stdin:
        count, first = 0, ""
        while True:
            try:
                packet, (_, _, direction, *_) = frames.recvfrom(65536)
            except BlockingIOError:
                break
            if direction != PACKET_OUTGOING:
                count, first = count + 1, first or packet.hex()
        print(json.dumps({"packets": count, "first": first}), flush=True)


if __name__ == "__main__":
    main()
