"""What scikit-learn follows without looking: the numbers in the nodes of its trees."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_tree(tree: Any, columns: int | None = None) -> None:
    """Look at the nodes of a `sklearn.tree._tree.Tree` that somebody else may have written.

    scikit-learn reads wherever they point, so a crafted file could make it read anywhere. A child must come after its
    parent, so there are no circles either.

    Args:
        tree: The tree.
        columns: How many columns its data has; None takes the tree's word.

    Raises:
        ValueError: they point outside of the tree or of the data.
    """
    places = np.arange(tree.node_count)
    inner = tree.children_left >= 0
    for children in (tree.children_left, tree.children_right):
        if (children[inner] <= places[inner]).any() or (children[inner] >= tree.node_count).any():
            raise ValueError("a tree's nodes point outside of the tree")
    columns = tree.n_features if columns is None else columns
    if tree.n_features != columns or (tree.feature[inner] < 0).any() or (tree.feature[inner] >= columns).any():
        raise ValueError("a tree asks for columns that the data do not have")
