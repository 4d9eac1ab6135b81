"""When the schedule of a FeatureSet is due."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from headrace.api.featureset import Refresh


def next_time(refresh: Refresh, after: datetime) -> datetime | None:
    """The first moment of the schedule after one; None without a schedule, or where it never comes.

    Raises:
        ValueError: The schedule or the time zone is none; names the field and what would be right.
    """
    if not refresh.schedule:
        return None
    try:
        zone = ZoneInfo(refresh.time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(
            f"spec.refresh.timeZone: {refresh.time_zone!r} is no IANA time zone: write one such as Europe/Berlin"
        ) from error
    try:
        found = next(CronSim(refresh.schedule, after.astimezone(zone)), None)
    except CronSimError as error:
        raise ValueError(
            f"spec.refresh.schedule: {refresh.schedule!r} is no cron schedule ({error}): write five fields such as "
            "'0 3 * * *' or '*/15 * * * *'"
        ) from error
    return None if found is None else found.astimezone(UTC)
