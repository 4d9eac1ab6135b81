"""The admission webhook: every replica answers the API server's question whether a resource may be created or changed.

kopf does the protocol: it is run a second time, with admission handlers only, beside the feed that only the leader
has. The HTTPS server that it is given is ours, since kopf's own restarts with each new certificate and would count
nothing. Handlers are thin; what is said is `controllers.runtime.admission`'s and the kinds'.

Nothing here ever stands in the way of an apply: the chart's failurePolicy is Ignore, a review that fails by a bug is
logged, counted and answered yes, and what the reconcile finds is said in the resource's conditions as ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import kopf
import orjson
from aiohttp import web
from certificates import Certificates
from kopfrun import quiet_settings, run_kopf, why_unserved

from controllers.runtime.admission import Reader, Verdict, review
from controllers.runtime.backoff import Backoff
from controllers.runtime.client import ApiClient
from controllers.runtime.controller import Controller
from controllers.runtime.metrics import Metrics
from controllers.runtime.objects import Manifest, ObjectType

logger = logging.getLogger(__name__)

HANDLER: Final = "review"
STARTING_SECONDS: Final = 2.0
"""Time for which a review waits for kopf to be up."""
REFUSED: Final = 422
"""Status of a refusal: the request was understood, and the resource is not right (metav1.StatusReasonInvalid)."""
_LARGEST: Final = 16 * 2**20
"""Bytes of an AdmissionReview, which has the resource twice; a resource is 1.5 MiB at most."""


class _Quiet(logging.Filter):
    """kopf logs a refusal as the handler's failure; it is the resource's, and we log it ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        return f"Webhook {HANDLER!r} failed permanently" not in record.getMessage()


class AdmissionWebhook:
    """Answers admission reviews over HTTPS."""

    def __init__(
        self,
        client: ApiClient,
        controllers: Sequence[Controller[Any, Any]],
        reader: Reader,
        certificates: Certificates,
        metrics: Metrics,
        *,
        started: Callable[[], None],
    ) -> None:
        """
        Args:
            client: The API server.
            controllers: Every kind.
            reader: What reviews look at.
            certificates: TLS context of the server.
            metrics: Counts reviews.
            started: Called each time that kopf has started, when its signal handlers are in place.
        """
        self._client = client
        self._controllers = {_type(controller).plural: controller for controller in controllers}
        self._reader = reader
        self._certificates = certificates
        self._metrics = metrics
        self._started = started
        self._fn: kopf.WebhookFn | None = None
        self._up = asyncio.Event()
        self._unserved: set[str] = set()
        self._came = asyncio.Event()
        self._runner: web.AppRunner | None = None
        logging.getLogger("kopf.objects").addFilter(_Quiet())

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: The port is taken.
        """
        application = web.Application(client_max_size=_LARGEST)
        application.add_routes([web.post("/{path:.*}", self._answer)])
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=5)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._certificates.context).start()
        address: tuple[str, int] = self._runner.addresses[0]
        return address[1]

    async def run(self) -> None:
        """Answer until cancelled."""
        looking = asyncio.create_task(self._certificates.run(), name="webhook certificates")
        backoff = Backoff(base=1.0, cap=30.0)
        failures = 0
        try:
            while True:
                began = time.monotonic()
                try:
                    if await self._run():
                        logger.info("another kind is served now, starting kopf's admission again with it")
                        continue
                except Exception:
                    logger.exception("kopf's admission failed")
                failures = 1 if time.monotonic() - began > 60 else failures + 1
                delay = backoff.delay(failures)
                logger.warning("kopf's admission ended, starting it again in %.1f s", delay)
                await asyncio.sleep(delay)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            if self._runner is not None:
                await self._runner.cleanup()

    async def _run(self) -> bool:
        """Run kopf until one of its tasks ends (False), or a kind is reviewed that was not served before (True)."""
        self._came.clear()
        registry = kopf.OperatorRegistry()
        for plural, controller in self._controllers.items():
            if await why_unserved(self._client, _type(controller)) is None:
                self._unserved.discard(plural)
            else:
                self._unserved.add(plural)
            self._register(registry, controller)
        settings = quiet_settings()
        settings.admission.server = self._serve
        return await run_kopf(
            registry,
            settings,
            server=self._client.server,
            session=self._client.session(lambda *_: None),
            started=self._started,
            until=self._wait_came(),
        )

    async def _wait_came(self) -> None:
        await self._came.wait()

    def _register(self, registry: kopf.OperatorRegistry, controller: Controller[Any, Any]) -> None:
        type_ = _type(controller)
        group, _, version = type_.api_version.rpartition("/")

        @kopf.on.validate(
            group=group,
            version=version,
            plural=type_.plural,
            id=HANDLER,
            operations=["CREATE", "UPDATE"],
            registry=registry,
        )
        async def handle(*, body: kopf.Body, old: kopf.Body | None = None, warnings: list[str], **_: Any) -> None:
            verdict = await self._review(controller, dict(body), None if old is None else dict(old))
            warnings.extend(verdict.warnings)
            if verdict.refusals:
                raise kopf.AdmissionError("; ".join(verdict.refusals), code=REFUSED)

    async def _serve(self, fn: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Kopf's server: it hands over the function that answers, and is told nothing of use to it."""
        self._fn = fn
        self._up.set()
        try:
            yield kopf.WebhookClientConfig()
            await asyncio.Event().wait()
        finally:
            self._up.clear()
            self._fn = None

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            question = orjson.loads(await request.read())
            plural = question["request"]["resource"]["resource"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise web.HTTPBadRequest(reason="this is no AdmissionReview") from error
        if plural in self._unserved:
            self._came.set()  # it is served by now; kopf learns of it by starting again
        if plural in self._unserved or plural not in self._controllers:
            return _json(_yes(question))
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                await self._up.wait()
        except TimeoutError as error:
            raise web.HTTPServiceUnavailable(reason="the webhook is starting") from error
        assert self._fn is not None
        return _json(await self._fn(question))

    async def _review(self, controller: Controller[Any, Any], manifest: Manifest, before: Manifest | None) -> Verdict:
        kind = controller.resource.info.kind
        metadata = manifest.get("metadata") or {}
        name = f"{metadata.get('namespace')}/{metadata.get('name')}"
        began = time.monotonic()
        result = "failed"
        try:
            verdict = await review(controller, self._reader, manifest, before)
            result = "refused" if verdict.refusals else "warned" if verdict.warnings else "allowed"
            if verdict.refusals or verdict.warnings:
                logger.info("%s %s is %s: %s", kind, name, result, [*verdict.refusals, *verdict.warnings])
            return verdict
        except Exception:
            logger.exception("the review of %s %s failed; it is let in", kind, name)
            return Verdict()
        finally:
            self._metrics.reviews.labels(kind, result).inc()
            self._metrics.review_time.labels(kind).observe(time.monotonic() - began)


def _type(controller: Controller[Any, Any]) -> ObjectType:
    info = controller.resource.info
    return ObjectType(info.api_version, info.kind, info.plural, managed_only=False)


def _json(body: Any) -> web.Response:
    response = web.Response(body=orjson.dumps(body), content_type="application/json")
    # A connection per review: the Service then spreads them, and none waits for a replica whose node has stopped.
    response.force_close()
    return response


def _yes(question: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": question.get("apiVersion", "admission.k8s.io/v1"),
        "kind": "AdmissionReview",
        "response": {"uid": question["request"].get("uid", ""), "allowed": True},
    }
