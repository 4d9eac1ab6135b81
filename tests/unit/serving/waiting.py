"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def until(true: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 10.0) -> None:
    """Return when `true` says so.

    Raises:
        AssertionError: it did not within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = true()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None
