"""The plan of a FeatureSet: its children, the next refresh, its status, and what is worth an Event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from controllers.featureset import builders
from controllers.featureset.events import transitions
from controllers.featureset.observed import CHILDREN, Observed, server_report
from controllers.featureset.refreshing import ENDED, Refreshing, refreshing
from controllers.featureset.rules import Given, fresh, not_ready, servers_problem
from controllers.runtime.conditions import Wanted, conditions
from controllers.runtime.errors import TerminalError
from controllers.runtime.namespace import ONLINE_STORE_SECRET, STORAGE_SECRET, namespace_objects
from controllers.runtime.objects import BATCH_JOB, CONFIG_MAP, SERVICE, key_of
from controllers.runtime.plan import Apply, Delete, Plan
from controllers.runtime.podstate import is_ready, is_terminating, lacks_secret
from controllers.runtime.settings import Settings
from controllers.runtime.workload import pod_template, server, template_hash
from headrace.api import FeatureSet
from headrace.api.featureset import RefreshStatus, Transform
from headrace.api.meta import rfc3339

LOOK_FOR_SECRET = timedelta(seconds=10)
"""Pause before the next look while pods say that a shared Secret is gone: nothing tells that it came."""


def plan(feature_set: FeatureSet, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about the FeatureSet.

    Raises:
        TerminalError: The schedule is none, or there is no online store.
    """
    if feature_set.metadata.deletion_timestamp is not None:
        return Plan()  # the children go with it
    if builders.uses_default_store(feature_set) and not settings.online_store_uri:
        raise TerminalError(
            "NoOnlineStore",
            "spec.onlineStore.secretRef is not set and the installation has no online store: name a Secret with the "
            "key HEADRACE_ONLINE_STORE_URI, or install the chart with redis.enabled=true or onlineStore.uri",
        )
    transform = feature_set.spec.transform()
    config = builders.config_map(feature_set)
    workload = builders.server(feature_set, settings, config["metadata"]["name"])
    template = template_hash(pod_template(workload))
    current = [pod for pod in observed.servers if template_hash(pod) == template]
    reports = [report for pod in current if (report := server_report(pod)) is not None]
    try:
        refresh = refreshing(feature_set, transform.hash, observed, reports, now)
    except ValueError as error:
        raise TerminalError("InvalidSchedule", str(error)) from error
    given = Given(feature_set, transform.hash, observed, current, tuple(reports), refresh, workload.replicas)
    wanted = [
        Apply(CONFIG_MAP, config),
        Apply(SERVICE, builders.service(feature_set)),
        *server(workload),
    ]
    if refresh.begin:
        wanted.append(
            Apply(BATCH_JOB, _job(feature_set, settings, config["metadata"]["name"], refresh.status, transform))
        )
    status = _status(feature_set, settings, transform, given, now)
    lost = {
        secret
        for secret in (STORAGE_SECRET, ONLINE_STORE_SECRET)
        for pod in (*observed.servers, *(pod for pods in observed.refreshers.values() for pod in pods))
        if lacks_secret(pod, secret)
    }
    waits = [item for item in (refresh.wait, LOOK_FOR_SECRET if lost else None) if item is not None]
    return Plan(
        applies=(*_namespace(feature_set, settings, lost), *wanted),
        deletes=_unwanted(feature_set, observed, wanted, refresh, template),
        status=status,
        events=transitions(feature_set.status, status),
        requeue_after=min(waits, default=None),
        labels={"refresh": status["refresh"]["summary"]},
    )


def _namespace(feature_set: FeatureSet, settings: Settings, lost: set[str]) -> tuple[Apply, ...]:
    spec = feature_set.spec
    return namespace_objects(
        feature_set.metadata.namespace,
        settings,
        account=None in (spec.server.service_account_name, spec.refresh.pod.service_account_name),
        storage=builders.uses_default_storage(feature_set),
        online_store=builders.uses_default_store(feature_set),
        lost=bool(lost),
    )


def _job(
    feature_set: FeatureSet, settings: Settings, config: str, refresh: RefreshStatus, transform: Transform
) -> dict[str, Any]:
    # Servers of the transform before answer until those of this one are ready.
    served = feature_set.status.online.hash if feature_set.status else ""
    keep = {served} - {"", transform.hash}
    return builders.refresh_job(feature_set, settings, config, refresh.number, refresh.trigger, keep)


def _unwanted(
    feature_set: FeatureSet, observed: Observed, wanted: Iterable[Apply], refresh: Refreshing, template: str
) -> tuple[Delete, ...]:
    """Children of before that nothing asks for any more."""
    names = {(item.type, item.manifest["metadata"]["name"]) for item in wanted}
    deployed = observed.deployment is not None and template_hash(observed.deployment["spec"]["template"]) == template
    settled = deployed and all(template_hash(pod) == template for pod in observed.servers)
    # A revision before, or a refresh, may still start with its own ConfigMap.
    keep_configs = not settled or refresh.status.phase not in ENDED
    old = tuple(
        Delete(type_, key_of(child), child["metadata"]["uid"])
        for type_ in CHILDREN
        for child in observed.children.get(type_, ())
        if (type_, child["metadata"]["name"]) not in names
        and not is_terminating(child)
        and not (keep_configs and type_ == CONFIG_MAP)
    )
    jobs = tuple(
        Delete(BATCH_JOB, key_of(job), job["metadata"]["uid"])
        for number, job in observed.jobs.items()
        if number < refresh.status.number
    )
    return (*old, *jobs)


def _status(
    feature_set: FeatureSet, settings: Settings, transform: Transform, given: Given, now: datetime
) -> dict[str, Any]:
    ready, total = sum(map(is_ready, given.observed.servers)), given.replicas
    refresh = given.refresh.status
    online = given.refresh.online.manifest()
    wanted = [
        not_ready(given, builders.url(feature_set, settings)),
        fresh(given),
        _condition("ServersReady", servers_problem(given)),
    ]
    status: dict[str, Any] = {
        "observedGeneration": feature_set.metadata.generation,
        "url": builders.url(feature_set, settings),
        "hash": transform.hash,
        "features": [
            {"name": item.name, "hash": item.hash, "computed": "OnRequest" if item.on_request else "OnRefresh"}
            for item in transform.features
        ],
        "online": online,
        "refresh": refresh.model_copy(update={"summary": summary(refresh)}).manifest(),
        "servers": {"ready": ready, "total": total, "summary": f"{ready}/{total}"},
        "conditions": conditions(
            wanted, feature_set.status.conditions if feature_set.status else (), feature_set.metadata.generation, now
        ),
    }
    if given.refresh.next is not None:
        status["nextRefresh"] = rfc3339(given.refresh.next)
    for part in (status["online"], status["refresh"]):
        for name in ("refreshedAt", "startedAt", "finishedAt"):
            if part.get(name):
                part[name] = rfc3339(datetime.fromisoformat(part[name]))
    return status


def summary(refresh: RefreshStatus) -> str:
    """For kubectl get: what it does, and how far it is."""
    if refresh.phase == "Writing" and refresh.total:
        return f"Writing {100 * refresh.done // refresh.total}%"
    return f"{refresh.phase} ({refresh.mode})" if refresh.phase == "Succeeded" and refresh.mode else refresh.phase


def _condition(type_: str, problem: Any) -> Wanted:
    if problem is None:
        return Wanted(type_, True, "PodsReady", "all server pods asked for are ready")
    return Wanted(type_, False, problem.reason, problem.message)


__all__: Sequence[str] = ("plan", "summary")
