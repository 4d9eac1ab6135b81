"""The cache in front of the online store: rows of one version, bounded, and empty whenever it may not be trusted.

Every row in it is of the version `current`. What a refresh changed is dropped when the store says so (`apply`); while
nobody listens to the store (`trust(False)`) nothing is answered from here, so a message that was missed costs speed and
never truth.
"""

from __future__ import annotations

import json
from collections import OrderedDict

from headrace.features.layout import Row


class RowCache:
    """Rows by entity key; the longest unused go first.

    Args:
        max_entities: Rows at most; 0 keeps none.
    """

    def __init__(self, max_entities: int) -> None:
        self.max_entities = max_entities
        self._rows: OrderedDict[bytes, Row | None] = OrderedDict()
        self._trusted = False
        self.current: bytes | None = None
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def trusted(self) -> bool:
        """Whether rows may be answered from here."""
        return self._trusted and self.current is not None

    def trust(self, yes: bool) -> None:
        """Whether somebody listens to what changes from now on."""
        self._trusted = yes
        self.become(None)

    def become(self, current: bytes | None) -> None:
        """Another version is current, or none is known."""
        if current != self.current:
            self.current = current
            self._rows.clear()

    def apply(self, message: bytes) -> None:
        """What a refresh says of its changes."""
        news = json.loads(message)
        current, entities = str(news["current"]).encode(), news["entities"]
        if entities is None or self.current is None or not _follows(self.current, current):
            self.become(current)
            return
        self.current = current
        for name in entities:
            self._rows.pop(name.encode(), None)

    def find(self, names: list[bytes]) -> dict[bytes, Row | None]:
        """Those of the entities that are here."""
        if not self.trusted:
            self.misses += len(names)
            return {}
        rows = self._rows
        found = {}
        for name in names:
            if name in rows:
                found[name] = rows[name]
                rows.move_to_end(name)
        self.hits += len(found)
        self.misses += len(names) - len(found)
        return found

    def put(self, current: bytes, rows: dict[bytes, Row | None]) -> None:
        """Keep rows of a version, unless another is current."""
        if self.max_entities == 0 or not self._trusted:
            return
        if self.current is None:
            self.current = current
        if current != self.current:
            return
        self._rows.update(rows)
        while len(self._rows) > self.max_entities:
            self._rows.popitem(last=False)


def _follows(before: bytes, after: bytes) -> bool:
    """Whether `after` is the next sequence of the same version."""
    version, _, sequence = before.rpartition(b".")
    return after == b"%b.%d" % (version, int(sequence) + 1)
