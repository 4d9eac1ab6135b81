"""A refresh: the latest row of each entity from the source into the online store, which readers see all at once.

*Full*: rows go under the name of a new version, which nobody reads yet; how far that is, is written beside them chunk
by chunk, so a refresh that was killed goes on where it was. Then one transaction points readers to the new version, and
the versions before it are removed. *Incremental*: where files were only added, the rows of those alone are read, and
those that are newer than what is there go in in one transaction. Whichever it is, the transaction does nothing if
another refresh was faster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import redis
from redis.cluster import RedisCluster

from headrace.api.featureset import FeatureSetSpec, Online, RefreshReport
from headrace.api.meta import rfc3339
from headrace.features.layout import RowLayout, entity_keys
from headrace.features.online import MARK, Keys, OnlineStoreError, State
from headrace.features.source import Latest, latest, snapshot, version_of

log = logging.getLogger(__name__)

CHUNK = 2_000
"""Rows per write."""
MAX_INCREMENT = 20_000
"""Rows of one transaction: some 20 ms of the store's time. More make a full refresh."""
MAX_FILES = 10_000
"""Files of a source that are remembered; of one with more every refresh is full."""
Mode = Literal["Full", "Incremental", "Unchanged"]


class Overtaken(Exception):
    """Another refresh changed the online store meanwhile."""


class Refresher:
    """One refresh of one FeatureSet.

    Args:
        spec: The FeatureSet's.
        keys: Where its rows lie.
        client: A blocking Redis client.
        report: Told how far it is.
        rows_per_second: Most rows written in a second; 0 for no limit.
    """

    def __init__(
        self,
        spec: FeatureSetSpec,
        keys: Keys,
        client: Any,
        report: Callable[[RefreshReport], None] = lambda report: None,
        *,
        rows_per_second: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        self._spec = spec
        self._keys = keys
        self._client = client
        self._report = report
        self._rows_per_second = rows_per_second
        self._chunk = min(chunk, rows_per_second) if rows_per_second else chunk
        self._layout = RowLayout(spec.transform().kept)
        self._clustered = isinstance(client, RedisCluster)

    def run(self, keep: Collection[str] = ()) -> RefreshReport:
        """Refresh.

        Args:
            keep: Hashes of transforms that are still served; what is there of others is removed.

        Returns:
            The last report.

        Raises:
            Overtaken: Another refresh was faster.
            OnlineStoreError: The rows that were written are not there.
            redis.RedisError: The online store does not answer or has no room.
            StorageError, ConfigurationError, ColumnError: The source cannot be read.
        """
        self._report(RefreshReport(phase="Reading"))
        state = State.read(self._client.get(self._keys.of("state")))
        files = snapshot(self._spec.source.uri)
        version = version_of(files)
        mode: Mode
        if state is not None and state.source_version == version and self._is_whole(state):
            mode = "Unchanged"
        elif (
            (added := self._added(state, files)) is not None
            and state is not None
            and self._increment(state, files, added)
        ):
            mode = "Incremental"
        else:
            self._full(state, files)
            mode = "Full"
        self._remove_others(keep)
        found = State.read(self._client.get(self._keys.of("state")))
        if found is None:
            raise OnlineStoreError(
                "the online store lost what was just written: is it out of memory, or was it flushed?"
            )
        online = Online(
            version=found.current.decode(),
            hash=self._keys.hash,
            source_version=found.source_version,
            entities=found.entities,
            refreshed_at=datetime.fromisoformat(found.refreshed_at),
        )
        done = RefreshReport(phase="Succeeded", mode=mode, done=found.entities, total=found.entities, online=online)
        self._report(done)
        return done

    def _is_whole(self, state: State) -> bool:
        """All its rows are there; what readers see has the mark too."""
        rows = self._keys.rows(state.version)
        marked = bool(self._client.hexists(rows, MARK))
        return bool(self._client.hlen(rows) == state.entities + marked)

    def _added(self, state: State | None, files: dict[str, str]) -> list[str] | None:
        """Files that were added to those of the present version; None where others have changed too."""
        if state is None or not self._spec.refresh.incremental or not state.files or not self._is_whole(state):
            return None
        if any(files.get(path) != token for path, token in state.files.items()):
            return None
        return [path for path in files if path not in state.files]

    def _increment(self, state: State, files: dict[str, str], added: list[str]) -> bool:
        """Put the rows of added files in; False where they are too many for one transaction."""
        found = latest(self._spec, added)
        if len(found) > MAX_INCREMENT:
            return False
        names = entity_keys(found.keys)
        rows_key = self._keys.rows(state.version)
        present = self._client.hmget(rows_key, names) if names else []
        packed = self._layout.pack(found.when, found.kept)
        newer = {
            name: row
            for name, row, before, when in zip(names, packed, present, found.when.tolist(), strict=True)
            if before is None or self._layout.unpack(before)[0] <= when
        }
        fresh = sum(before is None for before in present)
        after = state.model_copy(
            update={
                "sequence": state.sequence + 1,
                "entities": state.entities + fresh,
                "files": files if len(files) <= MAX_FILES else {},
                "source_version": version_of(files),
                "refreshed_at": rfc3339(datetime.now(UTC)),
            }
        )
        self._publish(state, after, newer)
        log.info("rows of added files are in", extra={"fields": {"files": len(added), "rows": len(newer)}})
        return True

    def _full(self, state: State | None, files: dict[str, str]) -> None:
        found = latest(self._spec)
        if found.skipped:
            log.warning("rows without a key or a time were left out", extra={"fields": {"rows": found.skipped}})
        source_version = version_of(files)
        # The same for a refresh that is begun again, and never the name of the version that is read now.
        seen = state.current.decode() if state is not None else ""
        version = hashlib.sha256(f"{source_version} {seen}".encode()).hexdigest()[:12]
        self._write(version, found)
        after = State(
            version=version,
            entities=len(found),
            source_version=source_version,
            files=files if len(files) <= MAX_FILES else {},
            refreshed_at=rfc3339(datetime.now(UTC)),
        )
        if self._client.get(self._keys.of("current")) != (state.current if state is not None else None):
            raise Overtaken("another refresh changed the online store meanwhile; the next one begins with that")
        if not self._is_whole(after):
            self._client.unlink(self._keys.rows(version), self._keys.of(f"progress:{version}"))
            raise OnlineStoreError(
                f"the online store has not all of the {len(found)} rows that were written: it evicts or was flushed; "
                "set its maxmemory-policy to noeviction and give it enough memory"
            )
        self._publish(state, after, {})
        # What was asked for long ago counts less each time.
        popular = self._keys.of("popular")
        self._client.zunionstore(popular, {popular: 0.5})

    def _write(self, version: str, found: Latest) -> None:
        """All rows under the version's name, from where an earlier try ended."""
        names = entity_keys(found.keys)
        total = len(names)
        progress_key = self._keys.of(f"progress:{version}")
        begun = json.loads(self._client.get(progress_key) or "{}")
        done = int(begun.get("done", 0)) if begun.get("total") == total else 0
        if done:
            log.info("going on with a refresh that was begun before", extra={"fields": {"done": done, "total": total}})
        started, first = time.monotonic(), done
        self._report(RefreshReport(phase="Writing", mode="Full", done=done, total=total))
        while done < total:
            stop = min(done + self._chunk, total)
            rows = self._layout.pack(
                found.when[done:stop], {name: _part(column, done, stop) for name, column in found.kept.items()}
            )
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.sadd(self._keys.hashes, self._keys.hash)
                pipeline.sadd(self._keys.of("versions"), version)
                pipeline.hset(self._keys.rows(version), mapping=dict(zip(names[done:stop], rows, strict=True)))
                pipeline.set(progress_key, json.dumps({"done": stop, "total": total}))
                pipeline.execute()
            done = stop
            self._report(RefreshReport(phase="Writing", mode="Full", done=done, total=total))
            if self._rows_per_second and done < total:
                time.sleep(max(0.0, started + (done - first) / self._rows_per_second - time.monotonic()))

    def _publish(self, before: State | None, after: State, rows: dict[bytes, bytes]) -> None:
        """Point readers to what is there now."""
        current = self._keys.of("current")
        changed = [name.decode() for name in rows] if before is not None and before.version == after.version else None
        news = json.dumps({"current": after.current.decode(), "entities": changed})
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.watch(current)
            if pipeline.get(current) != (before.current if before is not None else None):
                raise Overtaken("another refresh changed the online store meanwhile; the next one begins with that")
            pipeline.multi()
            items = list(rows.items())
            for start in range(0, len(items), CHUNK):
                pipeline.hset(self._keys.rows(after.version), mapping=dict(items[start : start + CHUNK]))
            pipeline.sadd(self._keys.hashes, self._keys.hash)
            pipeline.sadd(self._keys.of("versions"), after.version)
            pipeline.set(current, after.current)
            pipeline.hset(self._keys.rows(after.version), MARK, after.current)
            if before is not None and before.version != after.version:
                pipeline.hdel(self._keys.rows(before.version), MARK)
            pipeline.set(self._keys.of("state"), after.model_dump_json())
            pipeline.delete(self._keys.of(f"progress:{after.version}"))
            if not self._clustered:
                pipeline.publish(self._keys.of("changes"), news)
            try:
                pipeline.execute()
            except redis.WatchError as error:
                raise Overtaken("another refresh changed the online store meanwhile") from error
        if self._clustered:
            # A Cluster's transactions are of keys alone. Should this message never be sent, servers notice the version
            # within a second.
            self._client.publish(self._keys.of("changes"), news)

    def _remove_others(self, keep: Collection[str]) -> None:
        """Versions that nobody reads any more, finished or not, and transforms that nobody serves."""
        state = State.read(self._client.get(self._keys.of("state")))
        for member in self._client.smembers(self._keys.of("versions")):
            version = member.decode()
            if state is None or version != state.version:
                self._client.unlink(self._keys.rows(version), self._keys.of(f"progress:{version}"))
                self._client.srem(self._keys.of("versions"), member)
        for member in self._client.smembers(self._keys.hashes):
            hash_ = member.decode()
            if hash_ != self._keys.hash and hash_ not in keep:
                remove(self._client, Keys(self._keys.namespace, self._keys.name, hash_))


def remove(client: Any, keys: Keys) -> None:
    """Remove all that is there of one transform."""
    versions = [member.decode() for member in client.smembers(keys.of("versions"))]
    parts = [keys.of(part) for part in ("current", "state", "versions", "popular")]
    parts += [name for version in versions for name in (keys.rows(version), keys.of(f"progress:{version}"))]
    client.unlink(*parts)
    client.srem(keys.hashes, keys.hash)


def _part(column: Any, start: int, stop: int) -> Any:
    valid: Sequence[bool] | None = None if column.valid is None else column.valid[start:stop]
    return type(column)(column.values[start:stop], valid)
