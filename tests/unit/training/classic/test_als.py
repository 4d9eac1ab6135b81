"""Half steps of alternating least squares against the textbook's formula and against the library `implicit`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares, calculate_loss, least_squares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from headrace.training.classic.als import (
    Penalty,
    Ratings,
    balanced_blocks,
    implicit_loss,
    penalty_loss,
    solve,
    squared_error,
)


def matrix(users: int = 60, items: int = 40, share: float = 0.15, seed: int = 0) -> csr_matrix:
    """Feedback of some users on some items, 1 to 5; user 7 gave none, user 8 on every item."""
    random = np.random.default_rng(seed)
    table = random.integers(1, 6, (users, items)) * (random.random((users, items)) < share)
    table[7] = 0
    table[8] = 1 + np.arange(items) % 5
    return csr_matrix(table.astype(np.float32))


def ratings(table: csr_matrix) -> Ratings:
    triples = table.tocoo()
    random = np.random.default_rng(1).permutation(len(triples.data))
    rows, columns = (numbers.astype(np.int64)[random] for numbers in (triples.row, triples.col))
    return Ratings.of(rows, columns, triples.data[random], table.shape[0])


FACTORS = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)


@pytest.mark.parametrize("by_count", [True, False])
def test_explicit_feedback_solves_each_users_normal_equations(by_count: bool) -> None:
    table = matrix()
    found = solve(ratings(table), FACTORS, Penalty(0.1, by_count))
    for user in range(60):
        chosen = table[user].indices
        if not len(chosen):
            assert not found[user].any()
            continue
        y = FACTORS[chosen].astype(np.float64)
        penalty = 0.1 * (len(chosen) if by_count else 1)
        expected = np.linalg.solve(y.T @ y + penalty * np.eye(6), y.T @ table[user].data)
        np.testing.assert_allclose(found[user], expected, rtol=2e-3, atol=2e-3)


def test_implicit_feedback_is_what_the_library_implicit_solves() -> None:
    table = matrix()
    alpha = 2.0
    # The library takes the confidence itself: 1 + alpha r (Hu, Koren and Volinsky 2008, equation 4).
    confidence = table.copy()
    confidence.data = 1 + alpha * confidence.data
    expected = np.zeros((60, 6), np.float32)
    least_squares(confidence, expected, FACTORS.copy(), 0.3, num_threads=1)
    found = solve(ratings(table), FACTORS, Penalty(0.3, by_count=False, alpha=alpha))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_loss_of_implicit_feedback_is_the_librarys() -> None:
    table = matrix()
    known, penalty = ratings(table), Penalty(0.3, by_count=False, alpha=2.0)
    users = solve(known, FACTORS, penalty)
    confidence = table.copy()
    confidence.data = 1 + 2.0 * confidence.data
    expected = calculate_loss(confidence, users, FACTORS, 0.3, num_threads=1)
    found = implicit_loss(known, users, FACTORS, FACTORS.T @ FACTORS, 2.0)
    found += penalty_loss(known, users, penalty) + penalty_loss(ratings(table.T.tocsr()), FACTORS, penalty)
    # The library divides by the sum of confidences over all pairs.
    assert found / (confidence.sum() + 60 * 40 - table.nnz) == pytest.approx(expected, rel=1e-4)


def test_a_whole_run_ends_where_the_library_ends() -> None:
    table = matrix(200, 100, 0.1)
    by_user, by_item = ratings(table), ratings(table.T.tocsr())
    penalty = Penalty(0.1, by_count=False, alpha=1.0)
    items = np.random.default_rng(3).standard_normal((100, 8)).astype(np.float32) * 0.1
    for _ in range(30):
        users = solve(by_user, items, penalty)
        items = solve(by_item, users, penalty)
    found = implicit_loss(by_user, users, items, items.T @ items, 1.0)
    confidence = table.copy()
    confidence.data = 1 + confidence.data
    model = AlternatingLeastSquares(8, regularization=0.1, iterations=30, use_cg=False, num_threads=1, random_state=4)
    with threadpool_limits(1, "blas"):
        model.fit(confidence, show_progress=False)
    theirs = implicit_loss(
        by_user, model.user_factors, model.item_factors, model.item_factors.T @ model.item_factors, 1.0
    )
    # Other first factors lead to other, equally good ones.
    assert found == pytest.approx(theirs, rel=0.01)


def test_squared_error_counts_each_rating_once() -> None:
    table = matrix()
    users = np.random.default_rng(5).standard_normal((60, 6)).astype(np.float32)
    dense = (users @ FACTORS.T)[table.toarray() > 0]
    expected = np.square(table.toarray()[table.toarray() > 0] - dense).sum()
    assert squared_error(ratings(table), users, FACTORS) == pytest.approx(expected, rel=1e-5)


def test_rows_of_all_lengths_in_small_batches_are_solved_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ratings(matrix(300, 40, 0.5))
    whole = solve(known, FACTORS, Penalty(0.1))
    monkeypatch.setattr("headrace.training.classic.als.BATCH", 1)
    np.testing.assert_allclose(solve(known, FACTORS, Penalty(0.1)), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3, 10])
def test_blocks_are_whole_and_of_about_equal_work(workers: int) -> None:
    counts = np.random.default_rng(6).zipf(1.5, 5000).clip(max=2000)
    blocks = balanced_blocks(counts, workers, 10)
    assert (blocks[0], blocks[-1], len(blocks)) == (0, 5000, workers + 1)
    work = [(counts[a:b] + 10 / 3).sum() for a, b in itertools.pairwise(blocks)]
    assert max(work) < 1.5 * min(work)


def test_more_workers_than_rows_leave_some_without() -> None:
    blocks = balanced_blocks(np.array([3, 1]), 5, 4)
    assert blocks[0] == 0
    assert blocks[-1] == 2
    assert (np.diff(blocks) >= 0).all()
