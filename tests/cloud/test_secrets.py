"""Secrets come from each cloud into files that only their owner reads, and are never told."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cloud import secrets
from gateway.cloud.http import CloudError
from tests.cloud.clouds import Answer, Question, aws, serving

KEY = "b64b64b64b64b64b64b64b64b64b64b64b64b64b64b6="
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:peer-AbCdEf"


def on_aws(question: Question) -> Answer | None:
    if question.method != "POST":
        return aws(question)
    signed = question.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    if not signed or question.headers["x-amz-security-token"] != "role-session":
        return 403, "who are you?"
    if question.headers["x-amz-target"] != "secretsmanager.GetSecretValue":
        return 400, "what?"
    if json.loads(question.body) != {"SecretId": ARN}:
        return 400, "ResourceNotFoundException"
    return 200, json.dumps({"SecretString": KEY})


def on_google(question: Question) -> Answer | None:
    if question.path.endswith("/service-accounts/default/token"):
        good = question.headers.get("metadata-flavor") == "Google"
        return (200, '{"access_token": "google-token"}') if good else (403, "flavor")
    if question.headers.get("authorization") != "Bearer google-token":
        return 401, "who are you?"
    if question.path == "/v1/projects/example/secrets/peer/versions/latest:access":
        return 200, json.dumps({"payload": {"data": base64.b64encode(KEY.encode()).decode()}})
    return None


def on_azure(question: Question) -> Answer | None:
    if question.path.startswith("/metadata/identity/oauth2/token?"):
        good = question.headers.get("metadata") == "true"
        return (200, '{"access_token": "azure-token"}') if good else (400, "metadata header")
    if question.headers.get("authorization") != "Bearer azure-token":
        return 401, "who are you?"
    return (200, json.dumps({"value": KEY})) if question.path == "/secrets/peer?api-version=7.4" else None


@pytest.mark.parametrize(
    ("answers", "name", "variables"),
    [
        (on_aws, ARN, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{}", "AWS_ENDPOINT_URL_SECRETS_MANAGER": "{}/"}),
        (
            on_google,
            "projects/example/secrets/peer/versions/latest",
            {"GCE_METADATA_HOST": "{host}", "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": "{}/"},
        ),
        (on_azure, "{}/secrets/peer", {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "{}"}),
    ],
    ids=["aws", "google", "azure"],
)
def test_a_secret_becomes_a_file(
    answers: Callable[[Question], Answer | None], name: str, variables: dict[str, str], tmp_path: Path
) -> None:
    with serving(answers) as cloud:
        host = cloud.url.removeprefix("http://")
        env = {key: value.format(cloud.url, host=host) for key, value in variables.items()}
        file, config = tmp_path / "run" / "peer.key", tmp_path / "cloud.yaml"
        config.write_text(json.dumps({"secrets": {str(file): name.format(cloud.url)}}))
        words = [sys.executable, "-m", "gateway.cloud", "secrets", "--config", str(config)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd=_root())
    assert done.returncode == 0, done.stderr
    assert file.read_text() == KEY
    assert file.stat().st_mode & 0o777 == 0o600
    assert KEY not in done.stdout + done.stderr


def test_nothing_is_written_where_one_secret_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(on_aws) as cloud:
        files = {str(tmp_path / "a"): ARN, str(tmp_path / "b"): ARN.replace("peer", "other")}
        config = tmp_path / "cloud.yaml"
        config.write_text(json.dumps({"secrets": files}))
        env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": cloud.url, "AWS_ENDPOINT_URL_SECRETS_MANAGER": cloud.url}
        words = [sys.executable, "-m", "gateway.cloud", "secrets", "--config", str(config)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd=_root())
    assert done.returncode == 1
    assert "says 400: ResourceNotFoundException" in done.stderr
    assert "unspoken" not in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_redirection_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: (302, "elsewhere")) as cloud:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.url)
        with pytest.raises(CloudError, match="says 302"):
            secrets.fetch(f"{cloud.url}/secrets/peer")
        assert len(cloud.asked) == 1


@pytest.mark.parametrize("name", ["peer-key", "arn:aws:s3:::bucket", "/etc/passwd", "file:///etc/passwd"])
def test_what_is_no_secret_is_refused(name: str) -> None:
    with pytest.raises(CloudError, match="is no secret of"):
        secrets.fetch(name)


def test_an_answer_of_another_kind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: (200, "<html>")) as cloud:
        monkeypatch.setenv("GCE_METADATA_HOST", cloud.url.removeprefix("http://"))
        with pytest.raises(CloudError, match="not what was expected"):
            secrets.fetch("projects/example/secrets/peer/versions/latest")


def _root() -> Path:
    return Path(__file__).parent.parent.parent
