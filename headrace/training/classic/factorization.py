"""Matrix factorisation over several workers.

Users and items are split into blocks of about equal work. The ratings of a block's users, and those of its items, are
sent to its worker once. In each half step every worker solves for its block, and the solved factors are gathered, so
that each worker has all of them for the next half step. The factors do not depend on the number of workers, up to the
rounding of sums in another order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import MatrixFactorizationTrainer
from headrace.storage import patiently
from headrace.training.classic import collective, results
from headrace.training.classic.als import (
    Factors,
    Integers,
    Penalty,
    Ratings,
    balanced_blocks,
    implicit_loss,
    penalty_loss,
    solve,
    squared_error,
)
from headrace.training.classic.rows import chosen_for_test
from headrace.training.classic.snapshot import Snapshot
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError, Interrupted
from headrace.training.parquet import ParquetRows
from headrace.training.running import Run, session

MODEL_FILE = "model.safetensors"
REPORT_EVERY = 5
"""Iterations between two reports of the loss."""
LOG_EVERY = 2.0
"""Least seconds between two lines of progress in the log."""
TOP = 10
"""Length of the recommendations that implicit feedback is judged by."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Triples:
    """Some ratings: user, item and rating of each, by their ids or their numbers."""

    users: Integers
    items: Integers
    values: Factors

    def __len__(self) -> int:
        return len(self.values)

    def where(self, chosen: NDArray[np.bool_]) -> Triples:
        """Those that are chosen."""
        return Triples(self.users[chosen], self.items[chosen], self.values[chosen])


def train(
    trainer: MatrixFactorizationTrainer, storage_uri: str | None = None, sink: Callable[[str], None] | None = None
) -> dict[str, float]:
    """See `headrace.training.classic.train`."""
    told = Environment.read()
    known, judged, digest = patiently(lambda: read(trainer, told.rank, told.world_size))
    with session(storage_uri, sink, told) as run:
        started = time.monotonic()
        work = _Work.prepare(run, trainer, known, judged)
        factors = _iterate(run, trainer, work, digest)
        return _finish(run, trainer, work, *factors, time.monotonic() - started)


def read(trainer: MatrixFactorizationTrainer, rank: int, world_size: int) -> tuple[Triples, Triples, str]:
    """A worker's part of the ratings: those to learn from, those to judge by, and the digest of the data set.

    Raises:
        ConfigurationError: a column is missing or of the wrong type.
        StorageError: it cannot be read.
    """
    from pyarrow import types

    rows = ParquetRows.open(trainer.uri, "uri")
    names = {
        "userColumn": trainer.user_column,
        "itemColumn": trainer.item_column,
        "ratingColumn": trainer.rating_column,
    }
    for field, name in names.items():
        if name not in rows.schema.names:
            found = ", ".join(rows.schema.names[:8])
            raise ConfigurationError(field, f"{trainer.uri} has no column {name!r}; it has {found}", "name the column")
        kind = rows.schema.field(name).type
        if not (types.is_integer(kind) or (field == "ratingColumn" and types.is_floating(kind))):
            wanted = "numbers" if field == "ratingColumn" else "integers"
            raise ConfigurationError(field, f"column {name!r} of {trainer.uri} is of type {kind}", f"store {wanted}")
    start, stop = rows.part(rank, world_size)
    table = rows.read(start, stop, list(names.values()))
    for field, name in names.items():
        if nulls := table.column(name).null_count:
            raise ConfigurationError(
                field, f"column {name!r} is null in {nulls} rows of this worker", "drop those rows"
            )
    users, items, ratings = (table.column(name).to_numpy() for name in names.values())
    triples = Triples(users.astype(np.int64), items.astype(np.int64), ratings.astype(np.float32))
    if not np.isfinite(triples.values).all() or (trainer.objective == "Implicit" and (triples.values < 0).any()):
        raise ConfigurationError(
            "ratingColumn",
            f"column {trainer.rating_column!r} has values that are not finite, or negative feedback",
            "drop those rows",
        )
    chosen = chosen_for_test(start, stop, trainer.test_fraction, trainer.seed)
    return triples.where(~chosen), triples.where(chosen), rows.digest()


@dataclass(frozen=True, slots=True)
class _Work:
    """What one worker works on. Users and items are known by their place in the sorted ids.

    Attributes:
        user_ids: Of all users that are learned from.
        item_ids: Likewise.
        user_blocks: Where each worker's users begin.
        item_blocks: Likewise.
        by_user: Ratings of this worker's users.
        by_item: Ratings of this worker's items.
        test: Test ratings of this worker's users, for users and items that are learned from.
        cold: Test ratings of others, over all workers.
        rows: Ratings that are learned from, over all workers.
    """

    user_ids: Integers
    item_ids: Integers
    user_blocks: Integers
    item_blocks: Integers
    by_user: Ratings
    by_item: Ratings
    test: Triples
    cold: int
    rows: int

    @classmethod
    def prepare(cls, run: Run, trainer: MatrixFactorizationTrainer, known: Triples, judged: Triples) -> _Work:
        user_ids = np.unique(collective.concatenate(run, np.unique(known.users)))
        item_ids = np.unique(collective.concatenate(run, np.unique(known.items)))
        if not len(user_ids):
            raise ConfigurationError("uri", f"{trainer.uri} has no rows to learn from", "lower testFraction")
        users, items = np.searchsorted(user_ids, known.users), np.searchsorted(item_ids, known.items)
        counts = [
            collective.add(run, np.bincount(numbers, minlength=len(ids)).astype(np.int64))
            for numbers, ids in ((users, user_ids), (items, item_ids))
        ]
        user_blocks, item_blocks = (balanced_blocks(count, run.world_size, trainer.factors) for count in counts)
        by_user = _routed(run, users, Triples(users, items, known.values), user_blocks)
        by_item = _routed(run, items, Triples(users, items, known.values), item_blocks)
        warm = np.isin(judged.users, user_ids) & np.isin(judged.items, item_ids)
        test = judged.where(warm)
        places = np.searchsorted(user_ids, test.users)
        test = _routed(run, places, Triples(places, np.searchsorted(item_ids, test.items), test.values), user_blocks)
        first_user, first_item = int(user_blocks[run.rank]), int(item_blocks[run.rank])
        own_users = int(user_blocks[run.rank + 1]) - first_user
        own_items = int(item_blocks[run.rank + 1]) - first_item
        return cls(
            user_ids,
            item_ids,
            user_blocks,
            item_blocks,
            Ratings.of(by_user.users - first_user, by_user.items, by_user.values, own_users),
            Ratings.of(by_item.items - first_item, by_item.users, by_item.values, own_items),
            Triples(test.users - first_user, test.items, test.values),
            int(collective.add(run, np.array([np.count_nonzero(~warm)], np.int64))[0]),
            int(counts[0].sum()),
        )


def _routed(run: Run, keys: Integers, triples: Triples, blocks: Integers) -> Triples:
    """The triples whose key is in this worker's block, from all workers, in an order that all runs share."""
    owner = np.searchsorted(blocks, keys, side="right") - 1
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=run.world_size)
    users, items, values = (
        collective.exchange(run, column[order], sizes) for column in (triples.users, triples.items, triples.values)
    )
    return Triples(users, items, values)


def _penalty(trainer: MatrixFactorizationTrainer) -> Penalty:
    alpha = (trainer.alpha or 1.0) if trainer.objective == "Implicit" else None
    return Penalty(trainer.regularization, trainer.regularize_by_count, alpha)


def first_factors(count: int, factors: int, seed: int) -> Factors:
    """Where the items begin: normal numbers, each item's factors of length about 1."""
    numbers = np.random.default_rng(seed).standard_normal((count, factors), np.float32)
    return numbers / np.float32(np.sqrt(factors))


def _iterate(run: Run, trainer: MatrixFactorizationTrainer, work: _Work, digest: str) -> tuple[Factors, Factors]:
    """Factors of all users and all items, the same on every worker."""
    penalty = _penalty(trainer)
    users = np.zeros((len(work.user_ids), trainer.factors), np.float32)
    items = first_factors(len(work.item_ids), trainer.factors, trainer.seed)
    snapshot = Snapshot(users=users, items=items)
    settings = trainer.model_dump(mode="json", exclude={"uri", "iterations"})
    mark = hashlib.sha256(json.dumps([settings, digest], sort_keys=True).encode()).hexdigest()
    state = run.checkpoints.restore({"factors": snapshot}, mark)
    users, items = snapshot.arrays["users"], snapshot.arrays["items"]
    done = started_at = reported = int(state["step"]) if state else 0
    last_log = time.monotonic()
    run.report(step=done, steps=trainer.iterations)
    while done < trainer.iterations:
        users = collective.concatenate(run, solve(work.by_user, items, penalty, _gram(run, items, penalty)))
        items = collective.concatenate(run, solve(work.by_item, users, penalty, _gram(run, users, penalty)))
        done += 1
        last = done >= trainer.iterations
        if last or done - reported >= REPORT_EVERY:
            loss = objective(run, trainer, work, users, items)
            run.report(
                step=done, steps=trainer.iterations, loss=loss, samples=len(work.by_user.values) * (done - reported)
            )
            reported = done
            if run.rank == 0 and (last or time.monotonic() - last_log >= LOG_EVERY):
                last_log = time.monotonic()
                logger.info("iteration %d of %d, loss %.6g", done, trainer.iterations, loss)
        else:
            run.report(step=done)
        if run.checkpoints.due() or (last and done > started_at):
            run.checkpoints.save(done, {"factors": Snapshot(users=users, items=items)})
        if run.must_stop and not last:
            raise Interrupted
    return users, items


def _gram(run: Run, factors: Factors, penalty: Penalty) -> Factors | None:
    """`factors' factors`, each worker with its share of the rows; None where it is not needed."""
    if penalty.alpha is None:
        return None
    share = np.array_split(factors, run.world_size)[run.rank]
    gram: Factors = collective.add(run, share.T @ share)
    return gram


def objective(run: Run, trainer: MatrixFactorizationTrainer, work: _Work, users: Factors, items: Factors) -> float:
    """What is minimised, per rating that is learned from; every worker must call it."""
    penalty = _penalty(trainer)
    first_user, end_user = work.user_blocks[run.rank], work.user_blocks[run.rank + 1]
    first_item, end_item = work.item_blocks[run.rank], work.item_blocks[run.rank + 1]
    own = users[first_user:end_user]
    if penalty.alpha is None:
        loss = squared_error(work.by_user, own, items)
    else:
        loss = implicit_loss(work.by_user, own, items, items.T @ items, penalty.alpha)
    loss += penalty_loss(work.by_user, own, penalty) + penalty_loss(work.by_item, items[first_item:end_item], penalty)
    return float(collective.add(run, np.array([loss]))[0]) / work.rows


def _finish(
    run: Run, trainer: MatrixFactorizationTrainer, work: _Work, users: Factors, items: Factors, seconds: float
) -> dict[str, float]:
    from safetensors.numpy import save

    own = users[work.user_blocks[run.rank] : work.user_blocks[run.rank + 1]]
    if trainer.objective == "Explicit":
        predictions = np.einsum("if,if->i", own[work.test.users], items[work.test.items])
        metrics = results.regression_metrics(run, work.test.values, predictions)
    else:
        metrics = _ranking_metrics(run, work, own, items)
    if run.rank != 0:
        return {}
    tensors: dict[str, Any] = {
        "user_ids": work.user_ids,
        "item_ids": work.item_ids,
        "user_factors": np.ascontiguousarray(users),
        "item_factors": np.ascontiguousarray(items),
    }
    facts = {
        "ratings": work.rows,
        "users": len(work.user_ids),
        "items": len(work.item_ids),
        "testRatingsOfUnknownUsersOrItems": work.cold,
        "seconds": round(seconds, 3),
    }
    results.publish(run, trainer, {MODEL_FILE: save(tensors)}, metrics, facts)
    return metrics


def _ranking_metrics(run: Run, work: _Work, own: Factors, items: Factors) -> dict[str, float]:
    """Of the first TOP items that a user does not know yet, against the user's test items: precision, recall and NDCG
    with binary relevance (Järvelin and Kekäläinen 2002), averaged over users with test items."""
    relevant = Ratings.of(work.test.users, work.test.items, work.test.values, len(own))
    sums = np.zeros(4)
    top = min(TOP, len(items))
    discounts = 1 / np.log2(np.arange(top) + 2)
    judged = np.flatnonzero(relevant.counts)
    for chunk in np.array_split(judged, max(1, len(judged) * len(items) // (8 << 20))):
        scores = own[chunk] @ items.T
        hits = np.zeros_like(scores, bool)
        for line, user in enumerate(chunk):
            scores[line, work.by_user.columns[work.by_user.starts[user] : work.by_user.starts[user + 1]]] = -np.inf
            hits[line, relevant.columns[relevant.starts[user] : relevant.starts[user + 1]]] = True
        best = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        lines = np.arange(len(chunk))[:, None]
        best = best[lines, np.argsort(-scores[lines, best], axis=1)]
        found = hits[lines, best]
        wanted = relevant.counts[chunk]
        ideal = np.cumsum(discounts)[np.minimum(wanted, top) - 1]
        sums += [
            len(chunk),
            found.sum() / top,
            (found.sum(axis=1) / wanted).sum(),
            ((found * discounts).sum(axis=1) / ideal).sum(),
        ]
    users, precision, recall, gain = collective.add(run, sums)
    if not users:
        return {}
    names = (f"precisionAt{TOP}", f"recallAt{TOP}", f"ndcgAt{TOP}")
    return {name: float(value / users) for name, value in zip(names, (precision, recall, gain), strict=True)}
