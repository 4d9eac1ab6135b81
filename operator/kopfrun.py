"""One run of kopf: what the platform's use of it has in common, whatever the handlers.

kopf's annotations, finalizers, per-object daemons, Event posting and scanning stay off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import kopf

from controllers.runtime.client import METADATA_LIST, ApiClient, ApiError, collection_path
from controllers.runtime.objects import ObjectType

logger = logging.getLogger(__name__)


def quiet_settings() -> kopf.OperatorSettings:
    """kopf's settings with all of its own bookkeeping off."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    return settings


async def why_unserved(client: ApiClient, type_: ObjectType) -> str | None:
    """Why kopf would not find a kind, or None. It looks for the kinds once, when it starts."""
    try:
        # kopf takes the kinds from the discovery document, which may lag behind what is served.
        offered = await client.get(f"/apis/{type_.api_version}")
        if type_.plural not in {resource["name"] for resource in offered["resources"]}:
            return f"{type_.api_version} has no {type_.plural}; is the CRD installed?"
        await client.get(collection_path(type_), {"limit": "1"}, accept=METADATA_LIST)
    except ApiError as error:
        return f"{error}; is the CRD installed?" if error.status == 404 else str(error)
    return None


async def run_kopf(
    registry: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    *,
    server: str,
    session: aiohttp.ClientSession,
    started: Callable[[], None],
    until: Coroutine[Any, Any, None] | None = None,
) -> bool:
    """Run kopf until one of its tasks ends, which none should.

    Args:
        registry: The handlers.
        settings: From `quiet_settings`.
        server: URL of the API server.
        session: Carries TLS and credentials; closed at the end.
        started: Called when kopf's signal handlers are in place, to take the signals back.
        until: Ends the run, in good order, when it returns.

    Returns:
        Whether `until` ended it.
    """
    kopf_logger = logging.getLogger("kopf")
    kopf_logger.setLevel(logging.WARNING)  # at INFO it logs every event that it hands over

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=server, aiohttp_session=session)

    ending = asyncio.create_task(until if until is not None else _never(), name="until")
    tasks: list[asyncio.Task[Any]] = [ending]
    try:
        # `spawn_tasks` and not `operator`: the latter, when it ends, cancels every task of the loop, ours too.
        tasks += await kopf.spawn_tasks(registry=registry, settings=settings, standalone=True, clusterwide=True)
        started()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.warning("%s ended: %r", task.get_name(), error)
        return ending in done and not ending.cancelled() and ending.exception() is None
    finally:
        kopf_logger.setLevel(logging.ERROR)  # it warns that there was no time for a farewell
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await session.close()
            kopf_logger.setLevel(logging.WARNING)


async def _never() -> None:
    await asyncio.Event().wait()
