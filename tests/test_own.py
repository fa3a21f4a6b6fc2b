"""The addresses of a network namespace, from what the kernel shows of them."""

import subprocess

from routing.own import own_addresses, parse

FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.1.0.0
        /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.1.0.0/24 2 0 2
        |-- 10.1.0.2
           /32 host LOCAL
        |-- 10.1.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fd010000000000000000000000000002 02 40 00 80     eth0
"""


def test_loopback_broadcast_and_networks_are_left_out() -> None:
    assert [str(a) for a in parse(FIB_TRIE, IF_INET6)] == ["10.1.0.2", "fd01::2"]


def test_a_namespace_without_addresses_has_none() -> None:
    assert parse("", "") == []


def test_it_finds_what_ip_finds() -> None:
    shown = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[3].split("/")[0] for line in shown.splitlines() if line.split()[1] != "lo"}
    assert {str(a) for a in own_addresses()} == wanted
