"""A store that restarts costs time, not the run; what waiting cannot mend is known at once."""

from __future__ import annotations

import pytest

from headrace.storage import AccessDenied, StorageError, Unreachable, patiently


class Store:
    def __init__(self, *errors: StorageError) -> None:
        self.errors = list(errors)
        self.tries = 0

    def read(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes by sleeping alone; the list holds the pauses."""
    pauses: list[float] = []
    monkeypatch.setattr("headrace.storage.patience.time.sleep", pauses.append)
    monkeypatch.setattr("headrace.storage.patience.time.monotonic", lambda: sum(pauses))
    return pauses


def test_it_waits_for_a_store_that_comes_back(clock: list[float]) -> None:
    store = Store(*[Unreachable("s3://b/x", "no answer")] * 6)
    assert patiently(store.read) == "content"
    assert clock == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]


def test_patience_ends(clock: list[float]) -> None:
    store = Store(*[Unreachable("s3://b/x", "no answer")] * 1000)
    with pytest.raises(Unreachable):
        patiently(store.read, seconds=60)
    assert sum(clock) == pytest.approx(60)


def test_a_refusal_is_final(clock: list[float]) -> None:
    store = Store(AccessDenied("s3://b/x", "refused"))
    with pytest.raises(AccessDenied):
        patiently(store.read)
    assert (store.tries, clock) == (1, [])
