"""What AWS's own example says of signatures."""

from datetime import UTC, datetime

from gateway.cloud.aws import Credentials, sign

KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
NOON = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
URL = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08"


def test_the_example_of_the_general_reference() -> None:
    signed = sign(URL, "iam", "us-east-1", FORM, b"", KEYS, NOON, method="GET")
    assert signed["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
        "SignedHeaders=content-type;host;x-amz-date, "
        "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    )


def test_a_session_is_signed_too() -> None:
    keys = Credentials(KEYS.key, KEYS.secret, "session")
    signed = sign(URL, "iam", "us-east-1", FORM, b"", keys, NOON, method="GET")
    assert signed["x-amz-security-token"] == "session"
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token," in signed["authorization"]
