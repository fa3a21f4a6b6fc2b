"""A secret by its name, whichever cloud has it, and the file that it becomes.

A name says whose it is: arn:PARTITION:secretsmanager:.. is AWS Secrets Manager's,
projects/../secrets/../versions/.. Google Secret Manager's, and https://VAULT/secrets/.. Azure Key Vault's.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

from gateway.cloud import aws
from gateway.cloud.http import CloudError, ask

AWS = re.compile(r"arn:[\w-]+:secretsmanager:[\w-]+:\d+:secret:.+")
GOOGLE = re.compile(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+")
AZURE = re.compile(r"https?://[^/]+/secrets/[^/]+(/[^/]+)?")
AZURE_VERSION, AZURE_METADATA_VERSION = "7.4", "2018-02-01"


def fetch(name: str) -> str:
    """The text of the secret; raises CloudError."""
    for pattern, store in ((AWS, aws.secret), (GOOGLE, _google), (AZURE, _azure)):
        if pattern.fullmatch(name):
            try:
                return store(name)
            except (KeyError, ValueError) as error:
                raise CloudError(f"{name}: the answer is not what was expected ({error!r})") from error
    raise CloudError(f"{name!r} is no secret of Secrets Manager, Secret Manager or Key Vault")


def write(path: Path, text: str) -> None:
    """Replaces the file; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.rename(path)


def _google(name: str) -> str:
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    account = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
    token = json.loads(ask(account, {"Metadata-Flavor": "Google"}))["access_token"]
    server = os.environ.get(
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "https://secretmanager.googleapis.com/"
    )
    answer = json.loads(ask(f"{server}v1/{name}:access", {"Authorization": f"Bearer {token}"}))
    return base64.b64decode(answer["payload"]["data"]).decode()


def _azure(name: str) -> str:
    server = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://169.254.169.254").rstrip("/")
    question = f"api-version={AZURE_METADATA_VERSION}&resource=https%3A%2F%2Fvault.azure.net"
    identity = f"{server}/metadata/identity/oauth2/token?{question}"
    token = json.loads(ask(identity, {"Metadata": "true"}))["access_token"]
    answer = ask(f"{name}?api-version={AZURE_VERSION}", {"Authorization": f"Bearer {token}"})
    return str(json.loads(answer)["value"])
