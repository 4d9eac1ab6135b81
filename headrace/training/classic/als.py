"""Alternating least squares: the numbers of one half step, in batches that BLAS and LAPACK work on.

For each user u with ratings r of the items I(u), explicit feedback solves (Zhou, Wilkinson, Schreiber and Pan 2008)

    (sum over I(u) of y y' + penalty I) x = sum over I(u) of r y

and implicit feedback, with confidence c = 1 + alpha r (Hu, Koren and Volinsky 2008)

    (Y'Y + sum over I(u) of (c - 1) y y' + penalty I) x = sum over I(u) of c y

where the penalty is the regularization, times |I(u)| where it grows with the count. Items are solved likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BATCH = 32 << 20
"""Bytes of the gathered factors of one batch."""
GROWTH = 1.2
"""Rows are padded to the next length of a series that grows by this, so that few batches serve all lengths."""

Factors = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings by row (compressed sparse rows): rows are users and columns items, or the other way round.

    Attributes:
        starts: Where each row's ratings begin, shape (rows + 1,).
        columns: Shape (ratings,).
        values: Shape (ratings,).
    """

    starts: Integers
    columns: Integers
    values: Factors

    @classmethod
    def of(cls, rows: Integers, columns: Integers, values: Factors, count: int) -> Ratings:
        """From triples in any order, for rows numbered 0 to count - 1."""
        order = np.lexsort((columns, rows))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
        return cls(starts, columns[order], values[order].astype(np.float32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Integers:
        """Ratings of each row."""
        counts: Integers = np.diff(self.starts)
        return counts


@dataclass(frozen=True, slots=True)
class Penalty:
    """How factors are kept small, and how feedback is weighed.

    Attributes:
        regularization: L2 penalty.
        by_count: It grows with the number of ratings.
        alpha: Weight of implicit feedback; None for explicit.
    """

    regularization: float
    by_count: bool = True
    alpha: float | None = None

    def of(self, counts: Integers) -> Factors:
        """Of rows with so many ratings; a row without any has the least penalty of one."""
        if not self.by_count:
            return np.full(len(counts), self.regularization, np.float32)
        return (self.regularization * np.maximum(counts, 1)).astype(np.float32)


def solve(ratings: Ratings, others: Factors, penalty: Penalty, gram: Factors | None = None) -> Factors:
    """The factors of all rows of `ratings`, given those of the columns.

    Args:
        ratings: Rows to solve for.
        others: Factors of the columns, shape (columns, factors).
        penalty: See Penalty.
        gram: `others' others`, shape (factors, factors), for implicit feedback; computed where None.

    Returns:
        Shape (rows, factors); zero where a row has no ratings.

    Raises:
        numpy.linalg.LinAlgError: a system has no solution.
    """
    size = others.shape[1]
    result = np.zeros((len(ratings), size), np.float32)
    # What a short row is padded with: a column whose factors are zero adds nothing.
    padded = np.vstack([others, np.zeros((1, size), np.float32)])
    if penalty.alpha is not None and gram is None:
        gram = others.T @ others
    penalties = penalty.of(ratings.counts)
    diagonal = np.arange(size)
    for rows, columns, values in _batches(ratings, len(others), size):
        gathered = padded[columns]
        if penalty.alpha is None:
            systems = np.matmul(gathered.transpose(0, 2, 1), gathered)
            sides = np.matmul(values[:, None, :], gathered)[:, 0]
        else:
            weights = penalty.alpha * values
            systems = np.matmul((gathered * weights[:, :, None]).transpose(0, 2, 1), gathered) + gram
            # Padding has confidence 1, and zero factors.
            sides = np.matmul((1 + weights)[:, None, :], gathered)[:, 0]
        systems[:, diagonal, diagonal] += penalties[rows, None]
        result[rows] = np.linalg.solve(systems, sides[:, :, None])[:, :, 0]
    return result


def squared_error(ratings: Ratings, rows: Factors, columns: Factors) -> float:
    """Sum over the ratings of (r - x'y)^2, shapes (rows, factors) and (columns, factors)."""
    total = 0.0
    for predicted, values, _ in _predictions(ratings, rows, columns):
        total += float(np.square(values - predicted, dtype=np.float64).sum())
    return total


def implicit_loss(ratings: Ratings, rows: Factors, columns: Factors, gram: Factors, alpha: float) -> float:
    """Sum over all pairs of c (p - x'y)^2, p being 1 where there is feedback; without the penalty.

    A pair without feedback adds (x'y)^2, and the sum of those over all columns is x' Y'Y x.
    """
    total = float(np.einsum("uf,fg,ug->", rows, gram, rows, dtype=np.float64, optimize=True))
    for predicted, values, _ in _predictions(ratings, rows, columns):
        scores = predicted.astype(np.float64)
        total += float(((1 + alpha * values) * np.square(1 - scores) - np.square(scores)).sum())
    return total


def penalty_loss(ratings: Ratings, rows: Factors, penalty: Penalty) -> float:
    """The penalty of the rows' factors."""
    return float((penalty.of(ratings.counts) * np.square(rows, dtype=np.float64).sum(axis=1)).sum())


def balanced_blocks(counts: Integers, workers: int, factors: int) -> Integers:
    """Where each worker's rows begin, and the end: contiguous rows of about equal work, shape (workers + 1,).

    A rating costs factors^2 and a system factors^3 / 3.
    """
    work = np.concatenate([[0], np.cumsum(counts + factors / 3)])
    starts = np.searchsorted(work, work[-1] * np.arange(workers + 1) / workers)
    starts[-1] = len(counts)
    begins: Integers = starts.astype(np.int64)
    return begins


def _batches(ratings: Ratings, padding: int, size: int) -> Iterator[tuple[Integers, Integers, Factors]]:
    """Rows of similar length together: their numbers, and their columns and values padded to one length."""
    counts = ratings.counts
    rated = np.flatnonzero(counts)
    if not len(rated):
        return
    lengths = _length_series(int(counts.max()))
    group = np.searchsorted(lengths, counts[rated])
    order = rated[np.argsort(group, kind="stable")]
    ends = np.cumsum(np.bincount(group, minlength=len(lengths)))
    for length, start, end in zip(lengths, np.append(0, ends[:-1]), ends, strict=True):
        most = max(1, BATCH // (4 * size * int(length)))
        for first in range(int(start), int(end), most):
            rows = order[first : min(first + most, int(end))]
            offsets = np.arange(int(length))
            places = ratings.starts[rows, None] + offsets
            inside = offsets < counts[rows, None]
            places = np.where(inside, places, 0)
            yield (
                rows,
                np.where(inside, ratings.columns[places], padding),
                np.where(inside, ratings.values[places], np.float32(0)),
            )


def _length_series(longest: int) -> Integers:
    lengths = [1]
    while lengths[-1] < longest:
        lengths.append(max(lengths[-1] + 1, int(lengths[-1] * GROWTH)))
    return np.array(lengths)


def _predictions(ratings: Ratings, rows: Factors, columns: Factors) -> Iterator[tuple[Factors, Factors, Integers]]:
    """x'y of the ratings in chunks: predictions, values, row numbers."""
    chunk = max(1, BATCH // (8 * rows.shape[1]))
    numbers = np.repeat(np.arange(len(ratings)), ratings.counts)
    for first in range(0, len(ratings.values), chunk):
        part = slice(first, first + chunk)
        predicted = np.einsum("if,if->i", rows[numbers[part]], columns[ratings.columns[part]])
        yield predicted, ratings.values[part], numbers[part]
