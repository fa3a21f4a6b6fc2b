"""AWS: credentials of the machine's role, secrets of Secrets Manager, routes of a VPC.

Rules this file obeys:

- Signing is pure: the time is given.
- Metadata are asked within a session (IMDSv2), the only way that the machines allow.

Source: AWS General Reference, "Signature Version 4 signing process"; Secrets Manager and EC2 API References.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode, urlsplit

from gateway.cloud.http import CloudError, ask

EC2_VERSION = "2016-11-15"


@dataclass(frozen=True, slots=True)
class Credentials:
    key: str
    secret: str
    token: str | None = None  # of a role


def secret(arn: str) -> str:
    """The text of a secret; `arn` is arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME."""
    region = arn.split(":")[3]
    body = json.dumps({"SecretId": arn}).encode()
    headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": "secretsmanager.GetSecretValue"}
    url = os.environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or _endpoint("secretsmanager", region)
    found = json.loads(_signed(url, "secretsmanager", region, headers, body)).get("SecretString")
    if not isinstance(found, str):
        raise CloudError(f"{arn} is binary: store the text of the file")
    return found


def replace_route(table: str, destination: str, interface: str, region: str) -> None:
    """The route to `destination` (a network of either family) in a table leads to `interface` from now on."""
    family = "DestinationIpv6CidrBlock" if ":" in destination else "DestinationCidrBlock"
    question = {"Action": "ReplaceRoute", "Version": EC2_VERSION, "RouteTableId": table}
    body = urlencode(question | {family: destination, "NetworkInterfaceId": interface}).encode()
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    url = os.environ.get("AWS_ENDPOINT_URL_EC2") or _endpoint("ec2", region)
    _signed(url, "ec2", region, headers, body)


def region() -> str:
    """Where this machine is."""
    return _metadata("placement/region")


def interface() -> str:
    """The id of this machine's first interface."""
    return _metadata(f"network/interfaces/macs/{_metadata('mac')}/interface-id")


def _endpoint(service: str, region: str) -> str:
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{service}.{region}.{domain}/"


def _signed(url: str, service: str, region: str, headers: dict[str, str], body: bytes) -> str:
    now = datetime.now(UTC)
    return ask(url, sign(url, service, region, headers, body, _credentials(), now), method="POST", body=body)


# ---- Metadata --------------------------------------------------------------------------------------------


def _metadata(path: str) -> str:
    server = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    lasting = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}
    session = ask(f"{server}/latest/api/token", lasting, method="PUT")
    return ask(f"{server}/latest/meta-data/{path}", {"x-aws-ec2-metadata-token": session}).strip()


def _credentials() -> Credentials:
    role = _metadata("iam/security-credentials/")
    found = json.loads(_metadata(f"iam/security-credentials/{role}"))
    return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])


# ---- Signature Version 4 -----------------------------------------------------------------------------------


def sign(
    url: str,
    service: str,
    region: str,
    headers: dict[str, str],
    body: bytes,
    credentials: Credentials,
    now: datetime,
    method: str = "POST",
) -> dict[str, str]:
    """The headers with those that prove who asks; names of `headers` are in lower case."""
    split, stamp = urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ")
    signed = headers | {"host": split.netloc, "x-amz-date": stamp}
    if credentials.token:
        signed["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (
            method,
            quote(split.path or "/"),
            split.query,
            *(f"{name}:{signed[name].strip()}" for name in sorted(signed)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    proof = f"Credential={credentials.key}/{scope}, SignedHeaders={names}, Signature={_hmac(key, text).hex()}"
    return signed | {"authorization": f"AWS4-HMAC-SHA256 {proof}"}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
