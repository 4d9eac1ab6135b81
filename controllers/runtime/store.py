"""The objects of one type as they were last seen, small in memory and never older than our own writes.

An object is kept as the bytes of its JSON, without `managedFields` (often half of it) and without kubectl's copy of
what was applied. A parsed pod costs about five times its JSON and gives the garbage collector some hundred containers
to walk through; parsing one again when a reconcile reads it costs some ten microseconds. So ten thousand pods are
some tens of megabytes and no pauses. Types of which a reconcile reads every object (nodes) are kept parsed.

`put` takes an object from any source (a list, a watch, the answer to our own write) and keeps the newest by
resourceVersion, which the API server lets clients of one type compare as numbers. Since the answers to our writes go
in too, a reconcile reads its own writes however late the watch is: no child is made twice, no attempt is counted
twice, and the echo of our write on the watch is no news and wakes nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from controllers.runtime.objects import INSTANCE, OWNER_KIND, OWNER_UID, Key, Manifest, ObjectType, key_of
from headrace.api.schema import GROUP, VERSION

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Owner(NamedTuple):
    """Whom an object belongs to; see `owner_of`."""

    api_version: str
    kind: str
    key: Key
    uid: str


Listener = Callable[[Key, "Owner | None"], None]
"""Called with the key and the controlling owner of an object that came, changed or went."""


@dataclass(slots=True)
class _Entry:
    version: int
    uid: str
    owner: Owner | None
    data: bytes | Manifest
    settled: str = ""  # digest of what we applied, while this version is known to carry it

    def manifest(self) -> Manifest:
        return orjson.loads(self.data) if isinstance(self.data, bytes) else self.data


class Listing:
    """A list of all objects that is under way, page by page; `finish` drops what it did not contain."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: set[Key] = set()

    def put(self, manifest: Manifest) -> None:
        """One object of the list."""
        self._seen.add(key_of(manifest))
        self._store.put(manifest)

    def finish(self, version: int) -> None:
        """The list is complete and shows the state at resourceVersion `version`."""
        self._store.seen = version
        self._store.drop_missing(self._seen, version)


class ObjectStore:
    """The newest known state of the objects of one type, by key and by controlling owner."""

    def __init__(self, type_: ObjectType, *, parsed: bool = False) -> None:
        """
        Args:
            type_: The type of all objects.
            parsed: Keep objects parsed: for types with few objects that are read all at once.
        """
        self.type = type_
        self._parsed = parsed
        self._entries: dict[Key, _Entry] = {}
        # By namespace and uid: labels can name any uid, but an owner has nothing outside its own namespace.
        self._owned: dict[tuple[str, str], set[Key]] = {}
        self._gone: set[str] = set()  # uids that we deleted, until the watch has caught up
        self._listeners: list[Listener] = []
        self.seen: float = 0
        """The resourceVersion up to which the store's source has told it everything; infinite for a source that does
        not say, and then only it brings new objects."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._entries))

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called for every object that comes, changes or goes."""
        self._listeners.append(listener)

    def get(self, key: Key) -> Manifest | None:
        """The object, or None."""
        entry = self._entries.get(key)
        return None if entry is None else entry.manifest()

    def owned(self, namespace: str, owner_uid: str) -> Sequence[Manifest]:
        """Objects in this namespace whose owner has this uid, by name; see `owner_of`."""
        return [self._entries[key].manifest() for key in sorted(self._owned.get((namespace, owner_uid), ()))]

    def all(self) -> Sequence[Manifest]:
        """Every object."""
        return [entry.manifest() for entry in self._entries.values()]

    def has_owned(self, namespace: str, owner_uid: str) -> bool:
        """Whether `owned` has any."""
        return (namespace, owner_uid) in self._owned

    def version(self, key: Key) -> int:
        """The object's resourceVersion, without parsing it; 0 for none."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.version

    def uid(self, key: Key) -> str | None:
        """The object's uid, without parsing it."""
        entry = self._entries.get(key)
        return None if entry is None else entry.uid

    def owner(self, key: Key) -> Owner | None:
        """The object's controlling owner, without parsing it."""
        entry = self._entries.get(key)
        return None if entry is None else entry.owner

    def settled(self, key: Key) -> str:
        """Digest of what is known to be applied to the stored version of the object; empty when unknown."""
        entry = self._entries.get(key)
        return "" if entry is None else entry.settled

    def settle(self, key: Key, digest: str) -> None:
        """Remember that the stored version carries what has this digest; forgotten with the next version."""
        if (entry := self._entries.get(key)) is not None:
            entry.settled = digest

    def record(self, manifest: Manifest, digest: str = "") -> None:
        """Take in the answer to our own write of what has this digest.

        An object that the store does not have is new only if the source has not got past its version yet; otherwise the
        answer is late, and the object was deleted meanwhile.
        """
        metadata = manifest["metadata"]
        key = key_of(manifest)
        version = int(metadata["resourceVersion"])
        if self.uid(key) != metadata["uid"] and version <= self.seen:
            return
        self.put(manifest)
        entry = self._entries.get(key)
        if entry is not None and entry.version == version:
            entry.settled = digest

    def put(self, manifest: Manifest) -> bool:
        """Keep the object unless what is there is as new; returns whether that changed anything."""
        metadata = manifest["metadata"]
        key = Key(metadata.get("namespace") or "", metadata["name"])
        uid = metadata["uid"]
        version = int(metadata["resourceVersion"])
        before = self._entries.get(key)
        if uid in self._gone or (before is not None and before.version >= version):
            return False
        owner = owner_of(manifest)
        entry = _Entry(version, uid, owner, self._compact(manifest))
        if before is not None:
            self._unindex(key, before)
        self._entries[key] = entry
        if owner is not None:
            self._owned.setdefault((key.namespace, owner.uid), set()).add(key)
        if before is not None and before.owner is not None and before.owner != owner:
            self._tell(key, before.owner)
        self._tell(key, owner)
        return True

    def deleted(self, manifest: Manifest) -> None:
        """The watch says that the object is gone."""
        metadata = manifest["metadata"]
        self._gone.discard(metadata["uid"])
        self._remove(key_of(manifest), metadata["uid"])

    def delete_requested(self, key: Key, uid: str) -> None:
        """We deleted the object and it went at once: older news of it that are still on their way are ignored."""
        if self._remove(key, uid):
            self._gone.add(uid)

    def list(self) -> Listing:
        """Begin to take over a list of all objects."""
        return Listing(self)

    def drop_missing(self, present: set[Key], version: int) -> None:
        """Remove objects that a list as of `version` does not contain; those known to be newer stay."""
        self._gone.clear()
        for key, entry in tuple(self._entries.items()):
            if key not in present and entry.version <= version:
                self._remove(key, entry.uid)

    def _remove(self, key: Key, uid: str) -> bool:
        entry = self._entries.get(key)
        if entry is None or entry.uid != uid:
            return False
        del self._entries[key]
        self._unindex(key, entry)
        self._tell(key, entry.owner)
        return True

    def _unindex(self, key: Key, entry: _Entry) -> None:
        if entry.owner is None:
            return
        owner = (key.namespace, entry.owner.uid)
        keys = self._owned[owner]
        keys.discard(key)
        if not keys:
            del self._owned[owner]

    def _tell(self, key: Key, owner: Owner | None) -> None:
        for listener in self._listeners:
            listener(key, owner)

    def _compact(self, manifest: Manifest) -> bytes | Manifest:
        metadata: dict[str, Any] = {k: v for k, v in manifest["metadata"].items() if k != "managedFields"}
        annotations = metadata.get("annotations")
        if annotations and _LAST_APPLIED in annotations:
            metadata["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
        slim = {**manifest, "metadata": metadata}
        return slim if self._parsed else orjson.dumps(slim)


def owner_of(manifest: Manifest) -> Owner | None:
    """Whom the object belongs to, always in its own namespace.

    That is what the labels of `OWNER_UID` say where they are set (pods of a Deployment, whose controlling owner is a
    ReplicaSet), else the owner reference with `controller: true`.
    """
    metadata = manifest["metadata"]
    namespace = metadata.get("namespace") or ""
    labels = metadata.get("labels") or {}
    if (uid := labels.get(OWNER_UID)) and (kind := labels.get(OWNER_KIND)) and (name := labels.get(INSTANCE)):
        return Owner(f"{GROUP}/{VERSION}", kind, Key(namespace, name), uid)
    return controlling_owner(manifest)


def controlling_owner(manifest: Manifest) -> Owner | None:
    """The owner reference with `controller: true`; owners are in the object's namespace."""
    metadata = manifest["metadata"]
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            key = Key(metadata.get("namespace") or "", reference["name"])
            return Owner(reference["apiVersion"], reference["kind"], key, reference["uid"])
    return None
