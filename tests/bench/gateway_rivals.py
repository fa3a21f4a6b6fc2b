"""What else filters machines by name, on the same gateway: dnsmasq that fills a set of nftables, and squid.

Each is set up as its manual says, with nothing that would slow it down: no log, no disk cache.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.gateway.lab import CLIENTS, DNS4, Gateway
from tests.topology import wait_for

HTTPS = 444
SET = f"""
table inet rival {{
  set four {{ type ipv4_addr;LASTS }}
  set six {{ type ipv6_addr;LASTS }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related accept
    ip saddr {CLIENTS[0]} ip daddr @four tcp dport {{ 80, {HTTPS}, 5201, 5202 }} accept
    ip6 saddr {CLIENTS[1]} ip6 daddr @six tcp dport {{ 80, {HTTPS}, 5201, 5202 }} accept
    reject with icmpx admin-prohibited
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {CLIENTS[0]} oifname outside masquerade
    ip6 saddr {CLIENTS[1]} oifname outside masquerade
  }}
}}
"""
INTERCEPT = f"""
table inet rival {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip saddr {CLIENTS[0]} tcp dport {HTTPS} redirect to :3129
  }}
}}
"""
# The name is read from the client's hello (SslPeekAndSplice of squid's manual); nothing is decrypted.
SQUID = """
http_port 3128
https_port 3129 intercept ssl-bump tls-cert={folder}/ca.pem generate-host-certificates=off
acl clients src {clients}
acl names ssl::server_name .example.com
acl domains dstdomain .example.com
acl first at_step SslBump1
ssl_bump peek first
ssl_bump splice names
ssl_bump terminate all
acl CONNECT method CONNECT
http_access allow CONNECT clients
http_access allow clients domains
http_access deny all
dns_nameservers {resolver}
access_log none
cache_log {folder}/squid.log
cache deny all
pid_filename {folder}/squid.pid
coredump_dir {folder}
sslcrtd_program /usr/lib/squid/security_file_certgen -s {folder}/certificates -M 4MB
sslcrtd_children 1
shutdown_lifetime 0 seconds
max_filedescriptors 4096
"""


def _forwards(gateway: Gateway, table: str) -> None:
    gateway.here.checked("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    gateway.here.checked("nft", "-f", "-", input=table)


def dnsmasq(gateway: Gateway, lasts: int | None = None) -> subprocess.Popen[str]:
    """`lasts`: after how many seconds an address leaves the set; None: it stays for ever."""
    timeout = f" flags timeout; timeout {lasts}s;" if lasts else ""
    _forwards(gateway, SET.replace("LASTS", timeout))
    process = gateway.here.start(
        *("dnsmasq", "-k", "-C", "/dev/null", "-R", f"--server={DNS4}", "-u", "root", "-x", ""),
        *("--cache-size=10000", "--bind-interfaces", f"--listen-address={gateway.inside4}"),
        "--nftset=/example.com/4#inet#rival#four,6#inet#rival#six",
        stderr=subprocess.DEVNULL,
    )
    _wait_for_port(gateway, 53)
    return process


def squid(gateway: Gateway) -> subprocess.Popen[str]:
    _forwards(gateway, INTERCEPT)
    folder = gateway.folder
    certificate(folder / "ca.pem")
    make = ("/usr/lib/squid/security_file_certgen", "-c", "-s", folder / "certificates", "-M", "4MB")
    subprocess.run(make, check=True, capture_output=True)
    (folder / "squid.conf").write_text(SQUID.format(folder=folder, clients=CLIENTS[0], resolver=DNS4))
    subprocess.run(["chown", "-R", "proxy", folder], check=True)
    # As that user from the start: who changes later is no longer killed with its parent (prctl(2)).
    user = ("setpriv", "--reuid", "proxy", "--regid", "proxy", "--clear-groups", "--pdeathsig", "KILL", "--")
    words = ("squid", "-N", "-f", folder / "squid.conf")
    process = gateway.here.start(*user, *words, stderr=subprocess.DEVNULL)
    _wait_for_port(gateway, 3128)
    return process


def certificate(path: Path) -> None:
    """A key and a certificate of its own in one file."""
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    files = ("-keyout", path, "-out", f"{path}.crt", "-subj", "/CN=bench.example.com")
    subprocess.run(["openssl", *words, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())


def _wait_for_port(gateway: Gateway, port: int) -> None:
    words = ("bash", "-c", f"</dev/tcp/{gateway.inside4}/{port}")
    wait_for(lambda: gateway.here.run(*words).returncode == 0, f"port {port} of {gateway.name}")
