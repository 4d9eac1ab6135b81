"""Admission reviews: what is refused, what is warned of, and that nothing is said about what is not known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from controllers.inferenceservice.controller import InferenceServiceController
from controllers.runtime.admission import Known, Reader, Reference, Verdict, review
from controllers.runtime.cache import CacheSet, WatchCache
from controllers.runtime.client import METADATA, NO_ANSWER, ApiError
from controllers.runtime.objects import CONFIG_MAP, NODE, POD, SECRET, SERVICE, Key, Manifest
from controllers.runtime.settings import Settings
from controllers.trainingjob.controller import TrainingJobController
from tests.unit.trainingjob.worlds import node

JOBS, SERVICES = TrainingJobController(Settings()), InferenceServiceController(Settings())
NAMESPACE = "/api/v1/namespaces/team"


def job(uid: str = "u-new", **spec: Any) -> Manifest:
    kind = {} if "script" in spec else {"classifier": {"dataset": {"builtin": "Digits"}}}
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "team", "uid": uid},
        "spec": {"numWorkers": 2, **kind, **spec},
    }


def service(**spec: Any) -> Manifest:
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "digits", "namespace": "team", "uid": "u-new"},
        "spec": {"predictor": {"model": {"storageUri": "s3://models/digits"}}, **spec},
    }


def tensor(**fields: Any) -> dict[str, Any]:
    outputs = [{"name": "label", "datatype": "INT64", "shape": [1], "data": [-1]} | fields]
    return {"fallback": [{"name": "static", "static": {"outputs": outputs}}]}


class Api:
    """Objects by path; everything else does not exist."""

    def __init__(self, objects: Mapping[str, Manifest] = {}) -> None:
        self.objects = dict(objects)
        self.asked: list[tuple[str, str | None]] = []
        self.error: ApiError | None = None

    async def request(self, method: str, path: str, *, accept: str | None = None, **_: Any) -> Manifest:
        assert method == "GET", "reviews write nothing"
        self.asked.append((path, accept))
        if self.error is not None:
            raise self.error
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.objects[path]

    async def get(self, path: str, params: Any = None) -> Manifest:
        return await self.request("GET", path)

    def reader(self, **options: Any) -> Reader:
        return Reader(self, unreadable=(), **options)  # type: ignore[arg-type]


def nodes(*items: Manifest) -> dict[str, Manifest]:
    return {"/api/v1/nodes": {"metadata": {}, "items": list(items)}}


def held_by(kind: str | None, name: str = "other", uid: str = "u-other", **metadata: Any) -> Manifest:
    owners = [{"apiVersion": "headrace.dev/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": True}]
    return {"metadata": {"namespace": "team", **({"ownerReferences": owners} if kind else {}), **metadata}}


async def judge(
    manifest: Manifest,
    objects: Mapping[str, Manifest] = {},
    before: Manifest | None = None,
) -> Verdict:
    controller = JOBS if manifest["kind"] == "TrainingJob" else SERVICES
    return await review(controller, Api(objects).reader(), manifest, before)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": [3], "data": [1, 2]}, ["has 2 values and shape [3] means 3", "change data or shape"]),
        ({"data": ["one"]}, ["'one' is no INT64", "write whole numbers from -9223372036854775808"]),
        ({"data": [1.5]}, ["1.5 is no INT64"]),
        ({"data": [True]}, ["True is no INT64"]),
        ({"datatype": "UINT8", "data": [256]}, ["256 is no UINT8", "from 0 to 255"]),
        ({"datatype": "INT8", "data": [-129]}, ["-129 is no INT8", "from -128 to 127"]),
        ({"datatype": "BOOL", "data": [1]}, ["1 is no BOOL", "true or false"]),
        ({"datatype": "BYTES", "data": [1]}, ["1 is no BYTES", "text in quotes"]),
        ({"datatype": "FP32", "data": ["0.5"]}, ["'0.5' is no FP32", "write numbers"]),
    ],
)
async def test_a_static_answer_that_does_not_hold_is_refused_by_field(fields: dict[str, Any], words: list[str]) -> None:
    verdict = await judge(service(**tensor(**fields)))
    (refusal,) = verdict.refusals
    assert refusal.startswith("Correct these fields: spec.fallback[0].static.outputs[0]: data of output label")
    for word in words:
        assert word in refusal
    assert "Value error" not in refusal


@pytest.mark.parametrize(
    "fields", [{}, {"datatype": "UINT8", "data": [255]}, {"datatype": "FP64", "data": [1]}, {"shape": [], "data": [0]}]
)
async def test_a_static_answer_that_holds_is_taken(fields: dict[str, Any]) -> None:
    verdict = await judge(service(**tensor(**fields)))
    assert (list(verdict.refusals), list(verdict.warnings)) == ([], [])


async def test_what_the_schema_would_refuse_is_refused_here_too() -> None:
    (refusal,) = (await judge(job(numWorkers=0))).refusals
    assert "spec.numWorkers: " in refusal
    assert "(found 0)" in refusal


SCRIPT: dict[str, Any] = {"script": {"configMap": {"name": "code", "key": "train.py"}}}
GIT: dict[str, Any] = {
    "script": {"git": {"repo": "https://git.example/a.git", "path": "a.py", "secretRef": {"name": "git"}}}
}
S3: dict[str, Any] = {"storage": {"uri": "s3://a/b", "secretRef": {"name": "keys"}}}


@pytest.mark.parametrize(
    ("manifest", "objects", "words"),
    [
        (job(**SCRIPT), {}, ["spec.script.configMap", "'code' does not exist in namespace team", "kubectl create"]),
        (
            job(**SCRIPT),
            {f"{NAMESPACE}/configmaps/code": {"data": {"main.py": ""}}},
            ["spec.script.configMap.key", "no key 'train.py' (it has main.py)"],
        ),
        (job(**SCRIPT), {f"{NAMESPACE}/configmaps/code": {}}, ["no key 'train.py' (it is empty)"]),
        (job(**SCRIPT), {f"{NAMESPACE}/configmaps/code": {"data": {"train.py": ""}}}, None),
        (job(**SCRIPT), {f"{NAMESPACE}/configmaps/code": {"binaryData": {"train.py": ""}}}, None),
        (job(**GIT), {}, ["spec.script.git.secretRef", "Secret 'git' does not exist", "username and password"]),
        (job(**GIT), {f"{NAMESPACE}/secrets/git": {}}, None),
        (job(**S3), {}, ["spec.storage.secretRef", "Secret 'keys'", "AWS_ACCESS_KEY_ID"]),
        (job(gpu={"count": 2}), nodes(), ["spec.gpu", "no node of this cluster offers nvidia.com/gpu"]),
        (job(gpu={"count": 2}), nodes(node("a"), node("b", gpus="1")), ["largest node, b, offers 1", "ask for 1"]),
        (job(gpu={"count": 2}), nodes(node("a"), node("b", gpus="2")), None),
        (
            job(gpu={"product": "A100"}),
            nodes(node("b", gpus="2", labels={"nvidia.com/gpu.product": "H100"})),
            ["spec.gpu.product", "nvidia.com/gpu.product=A100", "nodes have H100"],
        ),
        (
            job(gpu={"product": "H100"}),
            nodes(node("b", gpus="2", labels={"nvidia.com/gpu.product": "H100"})),
            None,
        ),
        (
            service(predictor={"model": {"storageUri": "s3://a/b", "secretRef": {"name": "keys"}}}),
            {},
            ["spec.predictor.model.secretRef", "Secret 'keys'"],
        ),
        (
            service(fallback=[{"name": "s", "model": {"storageUri": "s3://a/b", "secretRef": {"name": "keys"}}}]),
            {},
            ["spec.fallback[0].model.secretRef"],
        ),
        (
            service(
                predictor={"model": {"storageUri": "s3://a/b"}, "resources": {"limits": {"amd.com/gpu": 1, "cpu": 1}}}
            ),
            nodes(node("a")),
            ["spec.predictor.resources.limits", "no node of this cluster offers amd.com/gpu"],
        ),
    ],
)
async def test_what_is_missing_is_a_warning(
    manifest: Manifest, objects: Mapping[str, Manifest], words: list[str] | None
) -> None:
    verdict = await judge(manifest, objects)
    assert not verdict.refusals
    assert len(verdict.warnings) == (words is not None)
    for word in words or ():
        assert word in verdict.warnings[0]


SERVERS: dict[str, Any] = {"topology": {"type": "ParameterServer", "parameterServer": {"servers": 2}}}
CHILD = f"{NAMESPACE}/services/digits-workers"
POLICY = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/digits"


@pytest.mark.parametrize(
    ("manifest", "path", "held", "words"),
    [
        (job(), CHILD, held_by(None), ["metadata.name: Service team/digits-workers exists already", "another name"]),
        (job(), CHILD, held_by("InferenceService"), ["belongs to InferenceService team/other"]),
        (job(), f"{NAMESPACE}/pods/digits-worker-0", held_by(None), ["Pod team/digits-worker-0 exists already"]),
        (service(), POLICY, held_by(None), ["NetworkPolicy team/digits exists already"]),
        (service(), "/apis/apps/v1/namespaces/team/deployments/digits-predictor", held_by("App"), ["belongs to App"]),
        (job(**SERVERS), f"{NAMESPACE}/services/digits-servers", held_by(None), ["Service team/digits-servers exists"]),
        (job(**SERVERS), f"{NAMESPACE}/pods/digits-server-0", held_by(None), ["Pod team/digits-server-0 exists"]),
        (job(**SERVERS), CHILD, held_by(None), None),
        (job(), CHILD, held_by("TrainingJob", "digits", "u-old"), None),  # an earlier one of this name, on its way out
        (job(), CHILD, held_by("TrainingJob", "digits", "u-new"), None),
        (job(), CHILD, held_by(None, deletionTimestamp="2026-01-01T00:00:00Z"), None),
        (job(numWorkers=1), CHILD, held_by(None), None),  # a lone worker has no Service
    ],
)
async def test_a_name_that_is_taken_is_refused_when_the_resource_is_made(
    manifest: Manifest, path: str, held: Manifest, words: list[str] | None
) -> None:
    verdict = await judge(manifest, {path: held})
    assert len(verdict.refusals) == (words is not None)
    for word in words or ():
        assert word in verdict.refusals[0]
    # A resource that exists already says so in its conditions; its owner must be able to change it.
    changed = manifest | {"spec": manifest["spec"] | {"restartPolicy": {"maxRestarts": 1}}}
    if manifest["kind"] == "TrainingJob":
        assert not (await judge(changed, {path: held}, before=manifest)).refusals


async def test_labels_and_finalizers_can_be_changed_whatever_the_spec_is() -> None:
    wrong = service(**tensor(data=[]))
    assert (await judge(wrong)).refusals
    assert await judge(wrong | {"metadata": wrong["metadata"] | {"labels": {"a": "b"}}}, before=wrong) == Verdict()
    going = wrong | {"metadata": wrong["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert await judge(going, before=service()) == Verdict()
    assert (await judge(wrong, before=service())).refusals


@pytest.mark.parametrize(
    "error",
    [
        ApiError(403, "Forbidden", "no"),
        ApiError(503, "ServiceUnavailable", "no"),
        ApiError(NO_ANSWER, "Timeout", "no answer in time"),
        ApiError(404, "", "404 page not found"),  # a proxy's words, or an API that is not served
    ],
)
async def test_nothing_is_said_about_what_cannot_be_read(error: ApiError) -> None:
    api = Api()
    api.error = error
    verdict = await review(JOBS, api.reader(), job(**SCRIPT, **S3, gpu={"count": 2}), None)
    assert api.asked
    assert (list(verdict.refusals), list(verdict.warnings)) == ([], [])


async def test_secrets_are_not_read_unless_that_is_allowed_and_then_their_metadata_alone() -> None:
    api = Api()
    verdict = await review(JOBS, Reader(api), job(**S3), None)  # type: ignore[arg-type]
    assert not verdict.warnings
    assert not [path for path, _ in api.asked if "secrets" in path]
    await review(JOBS, api.reader(), job(**S3), None)
    assert (f"{NAMESPACE}/secrets/keys", METADATA) in api.asked


async def test_a_read_that_hangs_is_given_up() -> None:
    class Slow(Api):
        async def get(self, path: str, params: Any = None) -> Manifest:
            await asyncio.Event().wait()
            raise AssertionError

    reader = Reader(Slow(), seconds=0.05)  # type: ignore[arg-type]
    assert (await reader.read([Reference(NODE)])).all(NODE) is None


async def test_a_hundred_jobs_list_the_nodes_once() -> None:
    now = 0.0
    api = Api(nodes(node("a")))
    reader = api.reader(clock=lambda: now)
    for _ in range(100):
        assert (await review(JOBS, reader, job(gpu={"count": 1}), None)).warnings
    assert [path for path, _ in api.asked].count("/api/v1/nodes") == 1
    now += 60
    api.objects |= nodes(node("a", gpus="8"))
    assert not (await review(JOBS, reader, job(gpu={"count": 1}), None)).warnings


async def test_the_leader_s_cache_of_nodes_answers_once_it_is_filled() -> None:
    api = Api(nodes())
    reader = api.reader()
    cache = WatchCache(api, NODE)  # type: ignore[arg-type]
    reader.caches = CacheSet([cache])
    assert (await reader.read([Reference(NODE)])).all(NODE) == []
    assert api.asked
    api.asked.clear()
    cache.store.put(node("a") | {"metadata": {"name": "a", "uid": "n", "resourceVersion": "5"}})
    cache.synced.set()
    assert len((await reader.read([Reference(NODE)])).all(NODE) or ()) == 1
    # Of what has other people's objects beside ours, the cache knows only ours.
    reader.caches = CacheSet([WatchCache(api, CONFIG_MAP)])  # type: ignore[arg-type]
    assert (await reader.read([Reference(CONFIG_MAP, Key("team", "code"))])).is_missing(CONFIG_MAP, Key("team", "code"))
    assert api.asked == [(f"{NAMESPACE}/configmaps/code", None)]


@pytest.mark.parametrize(
    ("objects", "get", "missing"),
    [({}, None, False), ({Reference(SERVICE, Key("a", "b")): None}, None, True)],
)
def test_unknown_is_not_missing(objects: dict[Reference, Manifest | None], get: Manifest | None, missing: bool) -> None:
    known = Known(objects)
    assert known.get(SERVICE, Key("a", "b")) is get
    assert known.is_missing(SERVICE, Key("a", "b")) == missing
    assert not known.is_missing(POD, Key("a", "b"))
    assert not known.is_missing(SECRET, Key("a", "b"))
