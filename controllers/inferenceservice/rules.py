"""Why a part, or the whole, is not as the spec wants it: small named predicates, asked in order.

Each returns a Problem when it holds and None when it does not; the first that holds is the condition's reason and
message. So the tuples at the end of each half read as the definition of ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from controllers.inferenceservice.builders import ROUTER
from controllers.inferenceservice.observed import Part
from controllers.inferenceservice.steps import Answers
from controllers.runtime.objects import Manifest
from controllers.runtime.podstate import (
    Problem,
    condition,
    container_statuses,
    is_ready,
    last_line,
    moment,
    name_of,
    restart_problem,
    unschedulable,
    waiting_problem,
)
from controllers.runtime.workload import template_hash
from headrace.api.chain import PREDICTOR

EX_CONFIG = 78
"""Exit code of a process whose configuration or model cannot work (sysexits.h)."""
ROLLING_OUT = "RollingOut"
UNSCHEDULABLE = "Unschedulable"
ROLLOUT_STALLED = "RolloutStalled"
FALLBACK_ANSWERING = "FallbackAnswering"
NOTHING_ANSWERS = "NothingAnswers"
PENDING_REASONS = frozenset(
    {"Creating", ROLLING_OUT, "PredictorNotReady", "RouterNotReady", "CanaryNotReady", "ShadowNotReady"}
)
"""Reasons that pass by themselves; all others need somebody."""
STABLE_AFTER = timedelta(minutes=2)
"""Time that a container must have run since its third restart or later before it is trusted again."""
REPORT_AFTER = timedelta(seconds=30)
"""Time that a ready router has for its first report."""


@dataclass(frozen=True, slots=True)
class PartInput:
    """What the rules of a part look at.

    Attributes:
        part: As observed.
        wanted: Pods that must be ready.
        template: Hash of the pod template that the spec asks for.
        now: The time.
        waits_for: Component whose rolling update comes first; empty for none.
        inside: The spec asks for none, since another part does its work.
    """

    part: Part
    wanted: int
    template: str
    now: datetime
    waits_for: str = ""
    inside: bool = False

    @property
    def current(self) -> list[Manifest]:
        """Pods made as the spec asks."""
        return [pod for pod in self.part.pods if template_hash(pod) == self.template]

    @property
    def rolling(self) -> bool:
        """The spec's template is not yet, or not yet everywhere, what runs."""
        deployment = self.part.deployment
        return (
            deployment is not None
            and not self.inside
            and (
                template_hash(deployment["spec"]["template"]) != self.template
                or len(self.current) < len(self.part.pods)
            )
        )


PartRule = Callable[[PartInput], Problem | None]


def it_does_not_exist(given: PartInput) -> Problem | None:
    """Nothing was made yet."""
    if given.part.deployment is None:
        return Problem("Creating", f"the {given.part.component} Deployment is being created")
    return None


def its_pods_are_refused(given: PartInput) -> Problem | None:
    """The API server does not let the pods be made: a quota, a LimitRange, an admission webhook, Pod Security."""
    found = _deployment_condition(given.part, "ReplicaFailure")
    if found and found["status"] == "True":
        return Problem(
            "PodsRefused",
            f"the cluster refuses {given.part.component} pods: {last_line(found.get('message') or '')}; see the "
            "quotas, limits and admission policies of the namespace",
        )
    return None


def its_process_cannot_work(given: PartInput) -> Problem | None:
    """The process said that its model or its configuration is wrong; its last words say what."""
    for pod in given.current:
        for status in container_statuses(pod):
            for state in ("state", "lastState"):
                ended = (status.get(state) or {}).get("terminated")
                if ended and not status.get("ready") and ended.get("exitCode") == EX_CONFIG:
                    said = last_line(ended.get("message") or "") or f"see kubectl logs --previous {name_of(pod)}"
                    if given.part.component != ROUTER:
                        return Problem(
                            "ModelLoadFailed",
                            f"the model cannot be served: {said}. Correct {given.part.component}.model or write the "
                            "model there; loading is tried again by itself",
                        )
                    return Problem("ConfigurationFailed", f"pod {name_of(pod)} cannot work as configured: {said}")
    return None


def its_containers_do_not_start(given: PartInput) -> Problem | None:
    """Images, Secrets, commands, crashes."""
    return _first(given, waiting_problem)


def its_containers_crash(given: PartInput) -> Problem | None:
    """Between two crashes a container runs; it is not well because of that."""
    return _first(given, restart_problem)


def its_containers_crashed_lately(given: PartInput) -> Problem | None:
    """A container that is ready now and has a row of crashes behind it must first run for a while."""
    for pod in given.current:
        for status in container_statuses(pod):
            if (until := _trusted_from(status)) is not None and given.now < until:
                return Problem(
                    "CrashLoopBackOff",
                    f"pod {name_of(pod)}: container {status['name']} was started again several times and is ready only "
                    f"since a short while; see kubectl logs --previous {name_of(pod)}",
                )
    return None


def its_pods_find_no_node(given: PartInput) -> Problem | None:
    """The scheduler has no place, and pods are missing for it."""
    if given.part.ready >= given.wanted and not given.rolling:
        return None
    for pod in given.current:
        if (message := unschedulable(pod)) is not None:
            return Problem(
                UNSCHEDULABLE,
                f"pod {name_of(pod)} finds no node: {last_line(message)}; add nodes, or lower "
                f"{given.part.component}.resources or loosen nodeSelector, affinity and tolerations",
            )
    return None


def its_rollout_has_stalled(given: PartInput) -> Problem | None:
    """No progress for longer than any start may take."""
    found = _deployment_condition(given.part, "Progressing")
    if found and found["status"] == "False" and found.get("reason") == "ProgressDeadlineExceeded":
        return Problem(
            ROLLOUT_STALLED,
            f"the rolling update of the {given.part.component} makes no progress: new pods do not become ready; "
            f"{_names(given)}see kubectl describe pod and kubectl logs, or put the spec back",
        )
    return None


def it_is_rolling_out(given: PartInput) -> Problem | None:
    """Pods of the template before are still there."""
    if not given.rolling or given.part.ready == 0:
        return None
    if given.waits_for:
        return Problem(
            ROLLING_OUT,
            f"the rolling update of the {given.part.component} begins when that of the {given.waits_for} is complete; "
            "the pods before it go on answering",
        )
    updated = sum(map(is_ready, given.current))
    return Problem(
        ROLLING_OUT,
        f"{updated} of {given.wanted} {given.part.component} pods are updated and ready; the pods before them answer "
        "until then",
    )


def its_pods_are_missing(given: PartInput) -> Problem | None:
    """Fewer are ready than the spec asks for."""
    ready = given.part.ready
    if ready < given.wanted:
        return Problem(
            f"{given.part.component.capitalize()}NotReady",
            f"{ready} of {given.wanted} {given.part.component} pods are ready{_waiting_for(given)}",
        )
    return None


PART_RULES: tuple[PartRule, ...] = (
    it_does_not_exist,
    its_pods_are_refused,
    its_process_cannot_work,
    its_containers_do_not_start,
    its_containers_crash,
    its_containers_crashed_lately,
    its_pods_find_no_node,
    its_rollout_has_stalled,
    it_is_rolling_out,
    its_pods_are_missing,
)


def part_problem(given: PartInput) -> Problem | None:
    """Why the part is not ready; None when it is."""
    if given.inside:
        return None
    return next((found for rule in PART_RULES if (found := rule(given)) is not None), None)


def trusted_again(given: PartInput) -> timedelta | None:
    """Time until `its_containers_crashed_lately` no longer holds; None when it does not hold now."""
    times = [
        until - given.now
        for pod in given.current
        for status in container_statuses(pod)
        if (until := _trusted_from(status)) is not None and until > given.now
    ]
    return max(times, default=None)


@dataclass(frozen=True, slots=True)
class WholeInput:
    """What the rules of the whole look at.

    Attributes:
        router: Why the routers are not ready, or None.
        predictor: Why the predictors are not ready, or None.
        ready_routers: Routers that answer.
        answers: What the routers report, merged.
        url: The service's address.
        silent_for: Time since the last router became ready, where none of them has reported yet.
    """

    router: Problem | None
    predictor: Problem | None
    ready_routers: int
    answers: Answers
    url: str
    silent_for: timedelta | None


WholeRule = Callable[[WholeInput], Problem | None]


def no_router_is_ready(given: WholeInput) -> Problem | None:
    """Nobody listens at the address."""
    if given.ready_routers:
        return None
    found = given.router or Problem("RouterNotReady", "no router pod is ready")
    return Problem(found.reason, f"nothing answers at {given.url}: {found.message}")


def no_step_answers(given: WholeInput) -> Problem | None:
    """Routers listen and have nobody to ask."""
    if given.answers.nothing:
        return Problem(
            NOTHING_ANSWERS,
            f"no step of the chain can answer{given.answers.why_not()}; a static response at the end of fallback "
            "always can",
        )
    return None


def the_predictor_has_failed(given: WholeInput) -> Problem | None:
    """Somebody must do something about the primary."""
    return given.predictor if given.predictor and given.predictor.reason not in PENDING_REASONS else None


def the_router_has_failed(given: WholeInput) -> Problem | None:
    """Somebody must do something about the pods in front."""
    return given.router if given.router and given.router.reason not in PENDING_REASONS else None


def a_fallback_answers(given: WholeInput) -> Problem | None:
    """The primary does not answer, or not every router."""
    answering = given.answers.answering
    if not answering or answering == PREDICTOR:
        return None
    because = f"; {given.predictor.message}" if given.predictor else ""
    return Problem(
        FALLBACK_ANSWERING, f"step {answering} answers instead of the primary{given.answers.why_not()}{because}"
    )


def the_predictor_is_not_ready(given: WholeInput) -> Problem | None:
    """The primary starts, or is being updated."""
    return given.predictor


def the_router_is_not_ready(given: WholeInput) -> Problem | None:
    """The pods in front start, or are being updated."""
    return given.router


def the_routers_have_not_reported(given: WholeInput) -> Problem | None:
    """Whether the primary answers is for the routers to say; for a moment, that is waited for."""
    if given.silent_for is not None and given.silent_for < REPORT_AFTER:
        return Problem("RouterNotReady", "the routers are ready and have not said yet which step answers")
    return None


AVAILABLE_RULES: tuple[WholeRule, ...] = (no_router_is_ready, no_step_answers)
READY_RULES: tuple[WholeRule, ...] = (
    the_predictor_has_failed,
    the_router_has_failed,
    no_step_answers,
    a_fallback_answers,
    the_predictor_is_not_ready,
    the_router_is_not_ready,
    the_routers_have_not_reported,
)


def unavailable(given: WholeInput) -> Problem | None:
    """Why nothing answers at the address; None when something does."""
    return next((found for rule in AVAILABLE_RULES if (found := rule(given)) is not None), None)


def not_ready(given: WholeInput) -> Problem | None:
    """Why the primary does not answer as the spec wants it; None when it does."""
    return next((found for rule in READY_RULES if (found := rule(given)) is not None), None)


def silent_for(part: Part, now: datetime) -> timedelta:
    """Time since the last of the part's ready pods became ready."""
    since = [
        moment((condition(pod, "Ready") or {}).get("lastTransitionTime")) or now for pod in part.pods if is_ready(pod)
    ]
    return now - max(since, default=now)


def _first(given: PartInput, read: Callable[[Manifest], Problem | None]) -> Problem | None:
    return next((found for pod in given.current if (found := read(pod)) is not None), None)


def _deployment_condition(part: Part, type_: str) -> Manifest | None:
    return condition(part.deployment, type_) if part.deployment else None


def _trusted_from(status: Manifest) -> datetime | None:
    """When a container with a row of crashes behind it will have run long enough; None without such a row."""
    started = moment(((status.get("state") or {}).get("running") or {}).get("startedAt"))
    ended = (status.get("lastState") or {}).get("terminated")
    if started is None or not ended or ended.get("exitCode") == 0 or status.get("restartCount", 0) < 3:
        return None
    return started + STABLE_AFTER


def _waiting_for(given: PartInput) -> str:
    names = [name_of(pod) for pod in given.part.pods if not is_ready(pod)][:3]
    return f"; waiting for {', '.join(names)}" if names else ""


def _names(given: PartInput) -> str:
    names = [name_of(pod) for pod in given.current if not is_ready(pod)][:3]
    return f"({', '.join(names)}) " if names else ""
