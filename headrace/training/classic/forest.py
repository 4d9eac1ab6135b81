"""A random forest with its trees spread over the workers; it is the forest that scikit-learn grows in one process.

Tree i is grown from seed i of the sequence that scikit-learn's forest draws, on the same bootstrap sample, so it does
not matter who grows it. Trees are grown in chunks; a finished chunk is written to storage at once (skops: no pickle),
and a restarted run, with any number of workers, grows only those that are missing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.api.trainingjob import ForestTrainer
from headrace.storage import NotFound, Store, patiently
from headrace.training.classic import collective, results
from headrace.training.classic.rows import Part, Rows, fingerprint, load, require_classes
from headrace.training.environment import Environment
from headrace.training.errors import Interrupted
from headrace.training.running import Run, session

CHUNK = 16
"""Trees of one chunk."""
OPSET = 17
MODEL_FILE = "model.skops"

logger = logging.getLogger(__name__)


def train(
    trainer: ForestTrainer, storage_uri: str | None = None, sink: Callable[[str], None] | None = None
) -> dict[str, float]:
    """See `headrace.training.classic.train`."""
    told = Environment.read()
    # Every worker needs all rows: a bootstrap sample is drawn from all.
    part = patiently(lambda: load(trainer.dataset, trainer.seed, 0, 1))
    classes = 0
    if trainer.task == "Classification":
        counts = np.bincount(np.maximum(part.train.labels, 0).astype(np.int64))
        require_classes(part.train.labels, counts)
        classes = len(counts)
    with session(storage_uri, sink, told) as run:
        mark = fingerprint(trainer.model_dump(mode="json"), part)
        chunks = _Chunks(run.storage.folder(f"checkpoints/forest-{mark[:16]}") if run.storage else None)
        mine = _grow(run, trainer, part.train, chunks)
        contents = [chunk for each in _exchange(run, mine) for chunk in each]
        if run.rank != 0:
            return {}
        trees = [tree for _, content in sorted(contents) for tree in _loaded(content, len(part.columns))]
        metrics = _finish(run, trainer, part, forest_of(trainer, trees, part.train, classes), classes)
        chunks.remove()
        return metrics


def tree_seeds(seed: int, trees: int) -> NDArray[np.int64]:
    """The seeds that scikit-learn's forest gives to its trees."""
    numbers: NDArray[np.int64] = np.random.RandomState(seed).randint(np.iinfo(np.int32).max, size=trees)
    return numbers


def grow_tree(trainer: ForestTrainer, rows: Rows, seed: int) -> Any:
    """One fitted tree of the forest."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeClassifier if trainer.task == "Classification" else DecisionTreeRegressor
    tree = kind(
        max_depth=trainer.max_depth,
        min_samples_leaf=trainer.min_samples_leaf,
        max_features=_max_features(trainer),
        random_state=seed,
    )
    weights = None
    if trainer.bootstrap:
        drawn = np.random.RandomState(seed).randint(0, len(rows), len(rows))
        weights = np.bincount(drawn, minlength=len(rows)).astype(np.float64)
    # The forest's trees know the classes by their numbers.
    return tree.fit(rows.features, rows.labels, sample_weight=weights)


def forest_of(trainer: ForestTrainer, trees: list[Any], rows: Rows, classes: int) -> Any:
    """scikit-learn's forest of the given trees."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if classes else RandomForestRegressor
    forest = kind(
        n_estimators=len(trees),
        max_depth=trainer.max_depth,
        min_samples_leaf=trainer.min_samples_leaf,
        max_features=_max_features(trainer),
        bootstrap=trainer.bootstrap,
        random_state=trainer.seed,
    )
    forest.estimators_ = trees
    forest.estimator_ = trees[0].__class__()
    forest.n_features_in_ = rows.features.shape[1]
    forest.n_outputs_ = 1
    if classes:
        forest.classes_ = np.arange(classes)
        forest.n_classes_ = classes
    return forest


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Finished chunks in storage; None keeps nothing."""

    folder: Store | None

    def read(self, number: int) -> bytes | None:
        if self.folder is None:
            return None
        folder = self.folder
        try:
            return patiently(lambda: folder.read_bytes(f"{number}.skops"))
        except NotFound:
            return None

    def write(self, number: int, content: bytes) -> None:
        if self.folder is not None:
            folder = self.folder
            patiently(lambda: folder.write_bytes(f"{number}.skops", content))

    def remove(self) -> None:
        if self.folder is not None:
            self.folder.delete()


def _grow(run: Run, trainer: ForestTrainer, rows: Rows, chunks: _Chunks) -> list[tuple[int, bytes]]:
    """This worker's chunks: every world_size-th."""
    from skops.io import dumps

    seeds = tree_seeds(trainer.seed, trainer.trees)
    numbers = range(run.rank, -(-trainer.trees // CHUNK), run.world_size)
    mine: list[tuple[int, bytes]] = []
    restored = 0
    for number in numbers:
        content = chunks.read(number)
        if content is None:
            if run.interrupted:
                raise Interrupted
            chosen = seeds[number * CHUNK : (number + 1) * CHUNK]
            content = dumps(_parallel(lambda seed: grow_tree(trainer, rows, int(seed)), chosen, run.beat))
            chunks.write(number, content)
        else:
            restored += 1
        mine.append((number, content))
        done = min(trainer.trees, len(mine) * CHUNK * run.world_size)
        run.report(step=done, steps=trainer.trees, samples=len(rows))
    if restored:
        logger.info("%d of %d chunks of trees were there from an earlier attempt", restored, len(numbers))
    return mine


def _parallel(grow: Callable[[Any], Any], seeds: NDArray[np.int64], beat: Callable[[], None]) -> list[Any]:
    """Trees by as many threads as there are CPUs; growing releases the interpreter's lock."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(collective.threads()) as pool:
        trees = []
        for tree in pool.map(grow, seeds):
            trees.append(tree)
            beat()
        return trees


def _exchange(run: Run, mine: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """All workers' chunks."""
    most = collective.largest(run, len(mine))
    for index in range(most):
        number, content = mine[index] if index < len(mine) else (-1, b"")
        numbers = collective.concatenate(run, np.array([number], np.int64))
        contents = collective.concatenate_bytes(run, content)
        yield [(int(n), c) for n, c in zip(numbers, contents, strict=True) if n >= 0]


def _loaded(content: bytes, columns: int) -> list[Any]:
    """The trees of a chunk.

    scikit-learn follows the numbers in a tree's nodes without looking, so whoever can write to storage could make it
    read anywhere: they are checked here. A child comes after its parent, so there are no circles either.

    Raises:
        ValueError: they are no trees.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
    from skops.io import loads

    trees: list[Any] = loads(content, trusted=["sklearn.tree._tree.Tree"])
    for each in trees:
        if not isinstance(each, DecisionTreeClassifier | DecisionTreeRegressor):
            raise ValueError(f"a chunk of trees holds a {type(each).__name__}")
        tree = each.tree_
        places = np.arange(tree.node_count)
        inner = tree.children_left >= 0
        for children in (tree.children_left, tree.children_right):
            if (children[inner] <= places[inner]).any() or (children[inner] >= tree.node_count).any():
                raise ValueError("a tree's nodes point outside of the tree")
        if tree.n_features != columns or (tree.feature[inner] < 0).any() or (tree.feature[inner] >= columns).any():
            raise ValueError("a tree asks for columns that the data do not have")
    return trees


def _finish(run: Run, trainer: ForestTrainer, part: Part, forest: Any, classes: int) -> dict[str, float]:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
    from skops.io import dumps

    test = part.test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict = forest.predict_proba if classes else forest.predict
        predictions = predict(test.features) if len(test) else np.empty((0, classes or 1))
    metrics: dict[str, float] = {}
    if classes:
        metrics = results.score_classes(test.labels, predictions, classes)
    elif len(test):
        metrics = {
            "rmse": float(root_mean_squared_error(test.labels, predictions)),
            "mae": float(mean_absolute_error(test.labels, predictions)),
            "r2": float(r2_score(test.labels, predictions)),
        }
    model = to_onnx(
        forest,
        initial_types=[("input", FloatTensorType([None, len(part.columns)]))],
        target_opset={"": OPSET, "ai.onnx.ml": 3},
        options={id(forest): {"zipmap": False}} if classes else None,
    )
    rows = test.features[: results.CHECKED_ROWS]
    metadata = {name: f"{value:.6g}" for name, value in metrics.items()}
    onnx = results.checked_onnx(model, rows, predictions[: len(rows)], metadata)
    facts = {"trees": len(forest.estimators_), "rows": part.total, "classes": classes, "features": list(part.columns)}
    results.publish(run, trainer, {MODEL_FILE: dumps(forest), results.ONNX_FILE: onnx}, metrics, facts, part)
    return metrics


def _max_features(trainer: ForestTrainer) -> str | None:
    return None if trainer.max_features == "All" else trainer.max_features.lower()
