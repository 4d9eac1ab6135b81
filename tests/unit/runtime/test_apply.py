"""Writes: what is sent, what is not, and what a refusal means."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.runtime.apply import REAPPLY_AFTER, Applier, Gone, desired, typed_error
from controllers.runtime.cache import CacheSet
from controllers.runtime.client import NO_ANSWER, ApiError
from controllers.runtime.errors import ReconcileError, RetryError, TerminalError, WaitError
from controllers.runtime.objects import CONFIG_MAP, POD, SECRET, Key, Manifest
from controllers.runtime.plan import Annotate, Apply

OWNER: Manifest = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "digits", "namespace": "ml", "uid": "u-1"},
}


class Api:
    """Answers writes as an API server that keeps what it gets; `error` is raised instead."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.error: ApiError | None = None

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        self.sent.append((method, path))
        self.bodies.append(body)
        if self.error is not None:
            raise self.error
        return dict(body)


class Fixture:
    """An applier with its API and a clock that stands still."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = 0.0
        self.applier = Applier(self.api, CacheSet(), clock=lambda: self.now)  # type: ignore[arg-type]


SHARED = Apply(SECRET, {"metadata": {"name": "headrace-storage"}, "data": {"a": "MQ=="}}, owned=False)
SECRET_PATH = "/api/v1/namespaces/ml/secrets/headrace-storage"


async def test_what_cannot_be_read_is_written_once_and_again_when_it_changes_or_after_an_hour() -> None:
    fixture = Fixture()
    assert await fixture.applier.apply(OWNER, [SHARED]) == 1
    assert await fixture.applier.apply(OWNER, [SHARED]) == 0
    other = Apply(SECRET, {"metadata": {"name": "headrace-storage"}, "data": {"a": "Mg=="}}, owned=False)
    assert await fixture.applier.apply(OWNER, [other]) == 1
    fixture.now += REAPPLY_AFTER
    assert await fixture.applier.apply(OWNER, [other]) == 1
    assert fixture.api.sent == [("PATCH", SECRET_PATH)] * 3


async def test_a_namespace_that_is_made_again_gets_its_secret_again() -> None:
    fixture = Fixture()
    await fixture.applier.apply(OWNER, [SHARED])
    fixture.applier.forget("TrainingJob", Key("ml", "digits"), last=False)
    assert await fixture.applier.apply(OWNER, [SHARED]) == 0
    fixture.applier.forget("TrainingJob", Key("ml", "digits"), last=True)
    assert await fixture.applier.apply(OWNER, [SHARED]) == 1


async def test_a_write_that_failed_is_not_remembered_as_done() -> None:
    fixture = Fixture()
    fixture.api.error = ApiError(500, "InternalError", "no")
    with pytest.raises(RetryError):
        await fixture.applier.apply(OWNER, [SHARED])
    fixture.api.error = None
    assert await fixture.applier.apply(OWNER, [SHARED]) == 1


TOLD = Annotate(POD, Key("ml", "router"), "u-9", {"headrace.dev/traffic": "{}", "old": None})


async def test_an_annotation_is_patched_on_the_object_with_this_uid_and_one_that_has_gone_is_no_error() -> None:
    fixture = Fixture()
    fixture.api.error = ApiError(404, "NotFound", 'pods "router" not found')
    assert await fixture.applier.annotate(OWNER, [TOLD]) == 1
    fixture.api.error = ApiError(409, "Conflict", "Precondition failed: UID in precondition: u-9, UID in object: u-10")
    assert await fixture.applier.annotate(OWNER, [TOLD]) == 1
    fixture.api.error = ApiError(500, "InternalError", "no")
    with pytest.raises(RetryError):
        await fixture.applier.annotate(OWNER, [TOLD])
    assert fixture.api.sent == [("PATCH", "/api/v1/namespaces/ml/pods/router")] * 3
    assert fixture.api.bodies[0] == {
        "metadata": {"uid": "u-9", "annotations": {"headrace.dev/traffic": "{}", "old": None}}
    }


async def test_a_namespace_on_its_way_out_ends_the_reconcile_quietly() -> None:
    fixture = Fixture()
    # As kube-apiserver's NamespaceLifecycle admission answers.
    details = {"causes": [{"reason": "NamespaceTerminating", "message": "...", "field": "metadata.namespace"}]}
    fixture.api.error = ApiError(403, "Forbidden", "unable to create new content in namespace ml", details)
    with pytest.raises(Gone):
        await fixture.applier.apply(OWNER, [SHARED])


def test_builders_need_not_say_namespace_owner_or_labels() -> None:
    manifest, digest = desired(OWNER, Apply(CONFIG_MAP, {"metadata": {"name": "x"}, "data": {"a": "1"}}))
    assert manifest["metadata"] == {
        "name": "x",
        "namespace": "ml",
        "labels": {"app.kubernetes.io/managed-by": "headrace"},
        "annotations": {"headrace.dev/applied": digest},
        "ownerReferences": [
            {
                "apiVersion": "headrace.dev/v1alpha1",
                "kind": "TrainingJob",
                "name": "digits",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    assert (manifest["apiVersion"], manifest["kind"]) == ("v1", "ConfigMap")


def test_the_hash_follows_the_content_and_not_the_order_of_keys() -> None:
    def digest(data: dict[str, str]) -> str:
        return desired(OWNER, Apply(CONFIG_MAP, {"metadata": {"name": "x"}, "data": data}))[1]

    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})
    assert digest({"a": "1"}) != digest({"a": "2"})


@pytest.mark.parametrize(
    ("status", "reason", "message", "kind", "condition", "remedy"),
    [
        (NO_ANSWER, "Timeout", "no answer in time", RetryError, "ApiRequestFailed", "will be tried again"),
        (409, "Conflict", "please apply your changes to the latest version", RetryError, "ApiRequestFailed", "again"),
        (429, "TooManyRequests", "slow down", RetryError, "ApiRequestFailed", "will be tried again"),
        (503, "ServiceUnavailable", "starting", RetryError, "ApiRequestFailed", "will be tried again"),
        (422, "Invalid", "spec.tolerations[0].operator: Invalid", TerminalError, "InvalidObject", "correct the field"),
        (400, "BadRequest", "unknown field", TerminalError, "InvalidObject", "correct the field"),
        (403, "Forbidden", 'pods "a" is forbidden: exceeded quota: q', WaitError, "QuotaExceeded", "raise the quota"),
        (
            403,
            "Forbidden",
            'pods "a" is forbidden: failed quota: q: must specify limits.cpu for: worker',
            WaitError,
            "QuotaNeedsResources",
            "set it in resources.requests or resources.limits",
        ),
        (
            403,
            "Forbidden",
            'violates PodSecurity "restricted"',
            TerminalError,
            "PodSecurityViolation",
            "change the pod",
        ),
        (403, "Forbidden", "cannot patch resource", WaitError, "Forbidden", "install the chart of this release again"),
    ],
)
def test_a_refusal_becomes_a_typed_error_with_object_and_remedy(
    status: int, reason: str, message: str, kind: type[ReconcileError], condition: str, remedy: str
) -> None:
    error = typed_error(ApiError(status, reason, message), "Pod ml/digits-worker-0 of TrainingJob ml/digits")
    assert type(error) is kind or issubclass(type(error), kind)
    assert error.reason == condition
    assert "Pod ml/digits-worker-0" in error.message
    assert message in error.message
    assert remedy in error.message


def test_a_quota_without_room_is_named_with_what_is_missing() -> None:
    """The words are those of the ResourceQuota admission plugin."""
    asked = "requested: cpu=500m,pods=1, used: cpu=2,pods=5, limited: cpu=2,pods=9"
    refused = ApiError(403, "Forbidden", f'pods "a" is forbidden: exceeded quota: q, {asked}')
    said = typed_error(refused, "Pod ml/a").message
    assert "ResourceQuota q: cpu is short of 0.5 (asks for 500m, 2 of 2 are used); raise the quota" in said
