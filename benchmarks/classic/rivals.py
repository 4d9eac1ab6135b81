"""Spark MLlib and implicit on the same split of MovieLens-100k, and the line of all three.

A program of its own: `python rivals.py FOLDER`, where `benchmarks.classic` has put ratings, split and our figures.
Spark runs with two local threads; its first fit, in a cold JVM, is reported beside the fastest of the later ones.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TOP, TIMES = 10, 3


def spark(train: Any, test: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """RMSE on the test rows whose user and item were trained on, and seconds of each fit."""
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    frame = session.createDataFrame(train).repartition(2).cache()
    frame.count()
    als = ALS(
        rank=settings["factors"],
        maxIter=settings["iterations"],
        regParam=settings["regularization"],
        userCol="user",
        itemCol="item",
        ratingCol="rating",
        coldStartStrategy="drop",
        numUserBlocks=2,
        numItemBlocks=2,
        seed=0,
    )
    seconds = []
    for _ in range(1 + TIMES):
        began = time.monotonic()
        model = als.fit(frame)
        model.userFactors.count()
        seconds.append(time.monotonic() - began)
    predicted = model.transform(session.createDataFrame(test)).toPandas()
    session.stop()
    error = float(np.sqrt(np.square(predicted["prediction"] - predicted["rating"]).mean()))
    return {"rmse": round(error, 4), "firstSeconds": round(seconds[0], 2), "seconds": round(min(seconds[1:]), 2)}


def implicit(train: Any, test: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """NDCG at TOP over users with test items, items of the training rows left out; exact solver, two threads."""
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    users, items = np.unique(train["user"]), np.unique(train["item"])
    test = test[test["user"].isin(users) & test["item"].isin(items)]
    places = np.searchsorted(users, train["user"]), np.searchsorted(items, train["item"])
    confidence = 1 + settings["alpha"] * train["rating"].to_numpy(np.float32)
    matrix = csr_matrix((confidence, places), shape=(len(users), len(items)))
    seconds = []
    for _ in range(TIMES):
        model = AlternatingLeastSquares(
            settings["factors"],
            regularization=settings["regularization"],
            iterations=settings["iterations"],
            use_cg=False,
            num_threads=2,
            random_state=0,
        )
        began = time.monotonic()
        model.fit(matrix, show_progress=False)
        seconds.append(time.monotonic() - began)
    discounts = 1 / np.log2(np.arange(TOP) + 2)
    gains = []
    for user, rows in test.groupby("user"):
        wanted = set(np.searchsorted(items, rows["item"]))
        place = int(np.searchsorted(users, user))
        best, _ = model.recommend(place, matrix[place], N=TOP)
        hits = np.array([item in wanted for item in best])
        gains.append((hits * discounts).sum() / discounts[: len(wanted)].sum())
    return {"ndcgAt10": round(float(np.mean(gains)), 4), "seconds": round(min(seconds), 2)}


def main(folder: Path) -> None:
    """Print the line."""
    ours = json.loads((folder / "ours.json").read_text())
    ratings = pd.read_parquet(folder / "ratings.parquet")
    chosen = np.load(folder / "test.npy")
    train, test = ratings[~chosen], ratings[chosen]
    explicit, ranked = ours["settings"]
    best = {
        name: min(runs, key=lambda run: run["seconds"])
        for name, runs in ours.items()
        if name in ("explicit", "implicit")
    }
    line = {
        "benchmark": "classic als",
        **ours["machine"],
        "trainerExplicit": {"rmse": round(best["explicit"]["rmse"], 4), "seconds": best["explicit"]["seconds"]},
        "sparkExplicit": spark(train, test, explicit),
        "trainerImplicit": {"ndcgAt10": round(best["implicit"]["ndcgAt10"], 4), "seconds": best["implicit"]["seconds"]},
        "implicitImplicit": implicit(train, test, ranked),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
