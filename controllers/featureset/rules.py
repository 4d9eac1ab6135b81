"""Why a FeatureSet is not as its spec wants it: small named predicates, asked in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controllers.featureset.observed import Observed
from controllers.featureset.refreshing import ENDED, Refreshing
from controllers.runtime.conditions import Wanted
from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    Problem,
    condition,
    is_ready,
    last_line,
    name_of,
    restart_problem,
    unschedulable,
    waiting_problem,
)
from headrace.api import FeatureSet
from headrace.api.featureset import ServerReport


@dataclass(frozen=True, slots=True)
class Given:
    """What the rules look at.

    Attributes:
        feature_set: The resource.
        hash: Of its transform now.
        observed: Children and pods.
        current: Server pods made as the spec asks.
        reports: What those say.
        refresh: The state of refreshes.
        replicas: Server pods asked for.
    """

    feature_set: FeatureSet
    hash: str
    observed: Observed
    current: Sequence[Manifest]
    reports: Sequence[ServerReport]
    refresh: Refreshing
    replicas: int

    @property
    def loaded(self) -> bool:
        """The online store has rows of this transform, as far as refreshes say."""
        return self.refresh.online.hash == self.hash and bool(self.refresh.online.version)


Rule = Callable[[Given], Problem | None]


def the_servers_are_refused(given: Given) -> Problem | None:
    """The API server does not let the pods be made: a quota, an admission webhook, Pod Security."""
    found = condition(given.observed.deployment, "ReplicaFailure") if given.observed.deployment else None
    if found and found["status"] == "True":
        return Problem(
            "PodsRefused",
            f"the cluster refuses server pods: {last_line(found.get('message') or '')}; see the quotas, limits and "
            "admission policies of the namespace",
        )
    return None


def the_servers_do_not_start(given: Given) -> Problem | None:
    """Images, Secrets, crashes, nodes."""
    for pod in given.current:
        if (problem := waiting_problem(pod) or restart_problem(pod)) is not None:
            return problem
        if (message := unschedulable(pod)) is not None:
            return Problem(
                "Unschedulable",
                f"pod {name_of(pod)} finds no node: {last_line(message)}; add nodes, or lower spec.server.resources or "
                "loosen its nodeSelector, affinity and tolerations",
            )
    return None


def the_servers_have_nothing_to_serve(given: Given) -> Problem | None:
    """They wait for the first version."""
    if given.loaded or any(map(is_ready, given.current)):
        return None
    return Problem("Loading", "the servers wait for the first rows of this transform")


def servers_are_missing(given: Given) -> Problem | None:
    """Fewer are ready than the spec asks for."""
    ready = sum(map(is_ready, given.current))
    if ready >= given.replicas:
        return None
    return Problem("ServersNotReady", f"{ready} of {given.replicas} server pods are ready")


SERVER_RULES: tuple[Rule, ...] = (
    the_servers_are_refused,
    the_servers_do_not_start,
    the_servers_have_nothing_to_serve,
    servers_are_missing,
)


def servers_problem(given: Given) -> Problem | None:
    """Why the servers are not ready; None when they are."""
    return next((found for rule in SERVER_RULES if (found := rule(given)) is not None), None)


def nothing_is_loaded(given: Given) -> Problem | None:
    """There are no rows of this transform."""
    if given.loaded:
        return None
    refresh = given.refresh
    before = refresh.online.version
    meanwhile = "; servers of the transform before go on answering" if before else ""
    if refresh.problem is not None:
        return Problem(refresh.problem.reason, f"refresh {refresh.status.number}: {refresh.problem.message}{meanwhile}")
    return Problem("Loading", f"refresh {refresh.status.number} loads the online store{meanwhile}")


def the_store_does_not_answer(given: Given) -> Problem | None:
    """Servers cannot read."""
    for report in given.reports:
        if report.problem and not report.version:
            return Problem("OnlineStoreEmpty" if report.empty else "OnlineStoreUnreachable", report.problem)
    return None


READY_RULES: tuple[Rule, ...] = (nothing_is_loaded, the_store_does_not_answer, servers_problem)


def not_ready(given: Given, url: str) -> Wanted:
    """The condition Ready."""
    problem = next((found for rule in READY_RULES if (found := rule(given)) is not None), None)
    if problem is not None:
        return Wanted("Ready", False, problem.reason, problem.message)
    return Wanted("Ready", True, "Serving", f"features are served at {url}")


def fresh(given: Given) -> Wanted:
    """The condition Fresh: whether the last refresh went well."""
    status, problem = given.refresh.status, given.refresh.problem
    if status.phase not in ENDED:
        if problem is not None:
            return Wanted("Fresh", False, problem.reason, problem.message)
        # What was fresh before stays so while the next refresh runs.
        before = given.feature_set.status
        earlier = next((item for item in before.conditions if item.type == "Fresh"), None) if before else None
        if earlier is not None and earlier.status == "True" and given.loaded:
            return Wanted("Fresh", True, "Refreshed", "the online store has what the last refresh loaded")
        return Wanted("Fresh", False, "Refreshing", f"refresh {status.number} ({status.trigger}) is under way")
    if status.phase == "Failed":
        return Wanted("Fresh", False, "RefreshFailed", f"refresh {status.number} failed: {status.message}")
    return Wanted("Fresh", True, "Refreshed", "the online store has what the last refresh loaded")
