"""Single questions to the API server, asked when somebody wants to know.

The rules this file must obey:

* What can't be answered raises ServerError; the caller decides which answer is the safe one.
* A token of somebody else goes into one request and is kept nowhere.

Source: authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1 SubjectAccessReview.
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.kubernetes.api_server import Data, Door

DAEMONSET = "skouter"
TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def daemonsets(namespace: str) -> str:
    """The path of their list."""
    return f"/apis/apps/v1/namespaces/{namespace}/daemonsets"


def is_leaving(door: Door, namespace: str) -> bool:
    """Whether the agents' DaemonSet is gone, or about to be: then they let go of their nodes when they end.

    Of a namespace that is deleted the pods may go first, and the DaemonSet only when they are gone.
    """
    asked = (daemonsets(namespace), DAEMONSET), ("/api/v1/namespaces", namespace)
    return any(_is_going(door.get(path, fieldSelector=f"metadata.name={name}")) for path, name in asked)


def _is_going(found: Data) -> bool:
    """Of the list of one object."""
    items: Collection[Data] = found.get("items") or ()
    return not items or any(is_deleted(each) for each in items)


def is_deleted(data: Data) -> bool:
    """Whether somebody deleted an object that is still there."""
    return "deletionTimestamp" in data["metadata"]


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
