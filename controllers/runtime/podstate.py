"""What a pod says about itself: ready or not, and if not, why and what to do about it.

Pure readers of one Pod manifest. The reasons are the kubelet's and the scheduler's states translated into words that
name the remedy; the original message is kept inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple

from controllers.runtime.objects import Manifest


class Problem(NamedTuple):
    """Why something does not go on.

    Attributes:
        reason: CamelCase, searchable.
        message: For a person: which object, what was found, what to do. Free of times and counters, so that it stays
            the same while nothing changes.
    """

    reason: str
    message: str


def name_of(pod: Manifest) -> str:
    """Name of the pod."""
    name: str = pod["metadata"]["name"]
    return name


def phase(pod: Manifest) -> str:
    """Pending, Running, Succeeded, Failed or Unknown; a pod without status is Pending."""
    value: str = pod.get("status", {}).get("phase") or "Pending"
    return value


def condition(pod: Manifest, type_: str) -> Manifest | None:
    """One condition of the pod (or of a node)."""
    for item in pod.get("status", {}).get("conditions") or ():
        if item["type"] == type_:
            found: Manifest = item
            return found
    return None


def has_condition(pod: Manifest, type_: str, status: str = "True") -> bool:
    """Whether the condition is there with this status."""
    found = condition(pod, type_)
    return found is not None and found["status"] == status


def is_ready(pod: Manifest) -> bool:
    """Running with every container ready, and not on its way out."""
    return phase(pod) == "Running" and not is_terminating(pod) and has_condition(pod, "Ready")


def is_terminating(pod: Manifest) -> bool:
    """Deleted and not yet gone."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_finished(pod: Manifest) -> bool:
    """All containers ended for good."""
    return phase(pod) in ("Succeeded", "Failed")


def node_of(pod: Manifest) -> str:
    """Name of the pod's node; empty before it is scheduled."""
    return pod.get("spec", {}).get("nodeName") or ""


def moment(text: str | None) -> datetime | None:
    """A metav1.Time or MicroTime as a datetime."""
    return datetime.fromisoformat(text) if text else None


def container_statuses(pod: Manifest) -> Iterator[Manifest]:
    """Statuses of init containers, then of containers."""
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def last_line(text: str, limit: int = 400) -> str:
    """The last line that says something, cut to a length that fits a condition."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def unschedulable(pod: Manifest) -> str | None:
    """The scheduler's own words when it found no node for the pod, else None."""
    found = condition(pod, "PodScheduled")
    if found is None or found["status"] != "False" or found.get("reason") == "SchedulingGated":
        return None
    return found.get("message") or "no message"


def waiting_problem(pod: Manifest) -> Problem | None:
    """Why a scheduled pod's containers do not start, or None while nothing is wrong.

    Looks at the waiting states of the kubelet: image pulls, missing Secrets and ConfigMaps, invalid container settings,
    containers that crash again and again.
    """
    for status in container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting")
        if not waiting:
            continue
        read = _WAITING.get(waiting.get("reason") or "")
        if read is not None:
            return read(name_of(pod), status, waiting.get("message") or "")
    return None


_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImage\w+: )?')


def restart_problem(pod: Manifest) -> Problem | None:
    """Why a container that is not ready was started again and again, also while it runs between two crashes."""
    for status in container_statuses(pod):
        ended = (status.get("lastState") or {}).get("terminated")
        if ended and not status.get("ready") and status.get("restartCount", 0) >= _AGAIN_AND_AGAIN:
            return _crash(name_of(pod), status, "")
    return None


_AGAIN_AND_AGAIN = 2
"""Restarts that are more than bad luck."""


def _image(pod: str, status: Manifest, message: str) -> Problem:
    # The kubelet alternates between the error and its back-off; without the prefix both say the same.
    return Problem(
        "ImagePullFailed",
        f"pod {pod}: image {status.get('image')!r} of container {status['name']} cannot be pulled"
        f"{_quoted(_BACK_OFF.sub('', message))}; check the name and the tag, that the nodes reach the registry, and "
        "for a private registry set imagePullSecrets",
    )


def _image_name(pod: str, status: Manifest, message: str) -> Problem:
    return Problem(
        "InvalidImageName",
        f"pod {pod}: {status.get('image')!r} is no image name{_quoted(message)}; write it as registry/repository:tag",
    )


_MISSING_OBJECT = re.compile(r'\b(secret|configmap) "([^"]+)" not found', re.IGNORECASE)
_MISSING_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)")


def lacks_secret(pod: Manifest, secret: str) -> bool:
    """Whether a container of the pod cannot be made because there is no Secret of this name."""
    waiting = [(status.get("state") or {}).get("waiting") or {} for status in container_statuses(pod)]
    found = [match for item in waiting if (match := _MISSING_OBJECT.search(item.get("message") or ""))]
    return any((match[1].lower(), match[2]) == ("secret", secret) for match in found)


def _config(pod: str, status: Manifest, message: str) -> Problem:
    if match := _MISSING_OBJECT.search(message):
        kind = "Secret" if match[1].lower() == "secret" else "ConfigMap"
        return Problem(
            f"Missing{kind}",
            f"pod {pod} needs {kind} {match[2]!r}, which does not exist in its namespace; create it and the pod starts "
            "by itself",
        )
    if match := _MISSING_KEY.search(message):
        return Problem(
            f"Missing{match[2]}Key",
            f"pod {pod} needs key {match[1]!r} of {match[2]} {match[3]}, which has no such key; add it and the pod "
            "starts by itself",
        )
    if "non-root" in message or "runAsNonRoot" in message:
        return Problem(
            "ImageRunsAsRoot",
            f"pod {pod}: image {status.get('image')!r} wants to run as root, which the restricted Pod Security "
            "Standard forbids; build it with a numeric USER",
        )
    return Problem("ContainerConfigInvalid", f"pod {pod}: container {status['name']} cannot be made{_quoted(message)}")


def _start(pod: str, status: Manifest, message: str) -> Problem:
    return Problem(
        "ContainerStartFailed",
        f"pod {pod}: container {status['name']} cannot start{_quoted(message)}; check command and image",
    )


def _crash(pod: str, status: Manifest, message: str) -> Problem:
    ended = (status.get("lastState") or {}).get("terminated") or {}
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        return Problem(
            "OutOfMemory",
            f"pod {pod}: container {status['name']} was killed for exceeding its memory limit and is started again "
            "with growing pauses; raise resources.limits.memory",
        )
    said = last_line(ended.get("message") or "")
    how = f"ended with exit code {code}" if code is not None else "ended"
    return Problem(
        "CrashLoopBackOff",
        f"pod {pod}: container {status['name']} {how}{_quoted(said)} and is started again with growing pauses; see "
        f"kubectl logs --previous {pod}",
    )


def _quoted(text: str) -> str:
    text = last_line(text)
    return f" ({text})" if text else ""


_WAITING: dict[str, Callable[[str, Manifest, str], Problem]] = {
    "ErrImagePull": _image,
    "ImagePullBackOff": _image,
    "ErrImageNeverPull": _image,
    "RegistryUnavailable": _image,
    "ImageInspectError": _image,
    "InvalidImageName": _image_name,
    "CreateContainerConfigError": _config,
    "CreateContainerError": _start,
    "RunContainerError": _start,
    "PreStartHookError": _start,
    "PostStartHookError": _start,
    "CrashLoopBackOff": _crash,
}
