"""Single questions to the API server, asked when somebody wants to know.

The rules this file must obey:

* What can't be answered raises ServerError; the caller decides which answer is the safe one.
* A token of somebody else goes into one request and is kept nowhere.

Source: authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1 SubjectAccessReview.
"""

from __future__ import annotations

from gateway.api_server import Data, Door, ServerError

TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def is_leaving(door: Door, namespace: str, name: str) -> bool:
    """Whether the DaemonSet is gone, or about to be: then its agents let go of their nodes when they end."""
    try:
        found = door.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
    except ServerError as error:
        if error.status == 404:
            return True
        raise
    return "deletionTimestamp" in found["metadata"]


def may_get(door: Door, token: str, path: str) -> bool:
    """Whether the API server knows who has this `token`, and lets them get the non-resource URL `path`."""
    review = _ask(door, TOKENS, "TokenReview", {"token": token}) if token else {}
    if not review.get("authenticated"):
        return False
    user = review.get("user") or {}
    known = {key: user[key] for key in ("uid", "groups", "extra") if key in user}
    spec = {"user": user.get("username"), "nonResourceAttributes": {"path": path, "verb": "get"}, **known}
    return bool(_ask(door, ACCESS, "SubjectAccessReview", spec).get("allowed"))


def _ask(door: Door, path: str, kind: str, spec: Data) -> Data:
    group = path.removeprefix("/apis/").rpartition("/")[0]
    answer = door.send("POST", path, {"apiVersion": group, "kind": kind, "spec": spec})
    status: Data = answer.get("status") or {}
    return status
