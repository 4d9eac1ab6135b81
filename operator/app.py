"""Start, lead, work, stop: the life of one operator process.

A process first waits for the Lease; as a standby it holds no caches, only a client, and so is small. Once it leads, the
caches are filled, the workers start, and kopf feeds them the platform's resources. Admission reviews are answered all
the while, by leader and standby alike. It ends in one of three ways:

- SIGTERM or SIGINT: nothing new is begun, the reconciles under way are finished, the Lease is given back, exit code 0.
- The Lease is lost: everything stops where it is, exit code 1. Another process leads already.
- A task that should run for ever failed: likewise, but the Lease is given back, exit code 1.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from admission import AdmissionWebhook
from certificates import Certificates
from feed import ResourceFeed
from health import Health, HealthServer, silent, stalled
from kubernetes.aio.config import ConfigException
from leader import LeaderElection, LeadershipLost
from prometheus_client import CollectorRegistry
from settings import OperatorSettings, WebhookSettings

from controllers.runtime.admission import Reader
from controllers.runtime.client import ApiClient, ApiError, load_connection
from controllers.runtime.controller import Controller, Discovering
from controllers.runtime.manager import Manager
from controllers.runtime.metrics import Metrics
from controllers.runtime.objects import SECRET, Key

logger = logging.getLogger(__name__)

_DISCOVERY_LIMIT = 8.0
"""Seconds for the API server to say what it serves; the Lease, which is not renewed meanwhile, lasts longer."""
_ELECTION_STALL = 60.0
"""Seconds without an attempt at the Lease that fail /livez; an attempt takes 5 s at most and comes every 2 s."""


class Operator:
    """One operator process."""

    def __init__(self, settings: OperatorSettings, controllers: Sequence[Controller[Any, Any]]) -> None:
        self._settings = settings
        self._controllers = controllers
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._health = Health()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Live; returns the exit code."""
        settings = self._settings
        server = HealthServer(self._health, self._registry, settings.host, settings.health_port, settings.metrics_port)
        try:
            await server.start()
            connection = await load_connection(settings.kubeconfig)
        except OSError as error:
            logger.error("cannot listen for health and metrics, set HEADRACE_HEALTH_PORT and _METRICS_PORT: %s", error)
            return 1
        except ConfigException as error:
            logger.error("no cluster to work on, set HEADRACE_KUBECONFIG or run in a pod: %s", error)
            await server.stop()
            return 1
        logger.info("health on port %d, metrics on port %d", server.health_port, server.metrics_port)
        self._handle_signals()
        observe = self._metrics.observe_requests(connection.server)
        # A client of its own, so that no other request holds up the Lease's.
        lease_client = ApiClient(connection, observe=observe, user_agent="headrace-leader-election")
        election = LeaderElection(
            lease_client,
            Key(settings.installation.operator_namespace, settings.lease_name),
            # A container that is started anew in the same pod is another process.
            f"{settings.identity}_{uuid.uuid4().hex[:8]}",
        )
        self._metrics.leader.labels(settings.lease_name).set_function(
            lambda: float(election.leading or not settings.leader_elect)
        )
        guard = election.check if settings.leader_elect else None
        client = ApiClient(connection, observe=observe, before_write=guard, user_agent="headrace-operator")
        secrets = settings.webhook is not None and settings.webhook.check_secrets
        reader = Reader(client, unreadable=() if secrets else (SECRET,))
        serving: asyncio.Task[None] | None = None
        try:
            if settings.webhook is not None:
                webhook = self._webhook(settings.webhook, client, reader, election)
                try:
                    port = await webhook.start(settings.host, settings.webhook.port)
                except OSError as error:
                    logger.error("cannot listen for admission reviews, set HEADRACE_WEBHOOK_PORT: %s", error)
                    return 1
                logger.info("admission webhook on port %d", port)
                serving = asyncio.create_task(webhook.run(), name="webhook")
            if settings.leader_elect and not await self._lead(election):
                return 0
            return await self._work(client, reader, election)
        finally:
            if serving is not None:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
            await client.close()
            await lease_client.close()
            await server.stop()

    def _webhook(
        self, options: WebhookSettings, client: ApiClient, reader: Reader, election: LeaderElection
    ) -> AdmissionWebhook:
        settings = self._settings
        certificates = Certificates(
            client,
            Key(settings.installation.operator_namespace, options.secret),
            options.names,
            configuration=options.configuration,
            leading=lambda: election.leading or not settings.leader_elect,
        )
        self._metrics.certificate_expiry.set_function(
            lambda: certificates.expires.timestamp() if certificates.expires is not None else 0.0
        )
        return AdmissionWebhook(
            client, self._controllers, reader, certificates, self._metrics, started=self._handle_signals
        )

    async def _lead(self, election: LeaderElection) -> bool:
        """Return True once this process leads, False when it is to stop."""

        def unseen() -> dict[str, str]:
            return {} if election.last_contact is not None else {"lease": "the Lease was not seen yet"}

        self._health.alive = lambda: stalled("election", election.last_attempt, _ELECTION_STALL)
        self._health.ready = unseen
        return await self._until_stop(asyncio.create_task(election.acquire(), name="election"))

    async def _work(self, client: ApiClient, reader: Reader, election: LeaderElection) -> int:
        settings = self._settings
        for controller in self._controllers:
            if isinstance(controller, Discovering):
                try:
                    async with asyncio.timeout(_DISCOVERY_LIMIT):
                        await controller.discover(client)
                except (ApiError, TimeoutError) as error:
                    logger.error("stopping: the API server does not say what it serves: %s", error or "no answer")
                    await election.release()
                    return 1
        manager = Manager(client, self._controllers, self._metrics, settings.manager)
        reader.caches = manager.caches
        stores = [manager.store(controller.resource) for controller in self._controllers]
        # kopf takes the signals when it starts; we want them back.
        feed = ResourceFeed(client, stores, started=self._handle_signals)
        self._observe(manager, feed, election)
        tasks = [asyncio.create_task(manager.run(), name="manager")]
        if settings.leader_elect:
            tasks.append(asyncio.create_task(election.keep(), name="lease"))
        feeding = asyncio.create_task(self._feed(manager, feed), name="feed")
        tasks.append(feeding)
        code = 0
        try:
            if not await self._until_stop(*tasks):
                feeding.cancel()
                await asyncio.wait({feeding}, timeout=5)
                await manager.stop()
        except LeadershipLost as error:
            logger.error("stopping: %s", error)
            code = 1
        except Exception:
            logger.exception("stopping: a part of the operator failed")
            code = 1
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)
        await election.release()
        logger.info("stopped")
        return code

    async def _feed(self, manager: Manager, feed: ResourceFeed) -> None:
        await manager.ready.wait()
        await feed.run()

    def _observe(self, manager: Manager, feed: ResourceFeed, election: LeaderElection) -> None:
        def silence() -> Mapping[str, float]:
            # kopf starts only once the caches are filled.
            return {**manager.silence(), **(feed.silence() if manager.ready.is_set() else {})}

        def alive() -> dict[str, str]:
            problems = silent(silence(), self._settings.silence_limit)
            if self._settings.leader_elect:
                problems |= stalled("election", election.last_attempt, _ELECTION_STALL)
            return problems

        for controller in self._controllers:
            kind = controller.resource.info.kind
            self._metrics.kind_served.labels(kind).set_function(partial(_served, feed, kind))
        self._health.alive = alive
        self._health.ready = lambda: {} if manager.ready.is_set() else {"caches": "not filled yet"}

    async def _until_stop(self, *tasks: asyncio.Task[None]) -> bool:
        """Wait for a task's end (True; raises what it raised) or for the signal to stop (False)."""
        stopping = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            return False
        stopping.cancel()
        for task in done:
            task.result()
        return True

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)


def _served(feed: ResourceFeed, kind: str) -> float:
    return float(kind not in feed.unserved())
