"""Whether a model is served the features that it was trained with.

A model's card says which features it was trained with and their hashes (`headrace.features.history.card`); a FeatureSet
says those of the features that it serves. Whoever loads a model for serving compares the two before it calls itself
ready.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.api.featureset import differences
from headrace.storage import Credentials, NotFound, Store

CARD = "card.json"


class ParityError(Exception):
    """The features at serving are not those of training; names each one that differs."""


def trained_with(
    model_uri: str, credentials: Credentials | Mapping[str, str] | Path | None = None
) -> dict[str, Any] | None:
    """What the card beside a model says of its features; None where there is no card, or it names none.

    Args:
        model_uri: The model's file, or the folder with the model and its card.
        credentials: As for `Store.open`.

    Raises:
        StorageError: The store cannot be asked.
        ParityError: The card cannot be read.
    """
    store = Store.open(model_uri, credentials)
    folder = model_uri.rstrip("/") if store.is_folder() else model_uri.rpartition("/")[0]
    try:
        content = Store.open(folder, credentials).read_bytes(CARD)
    except NotFound:
        return None
    try:
        found = json.loads(content).get("features")
    except (ValueError, AttributeError) as error:
        raise ParityError(f"{folder}/{CARD} is no model card: {error}") from error
    if found is not None and not (isinstance(found, dict) and isinstance(found.get("features"), dict)):
        raise ParityError(
            f"{folder}/{CARD}: features: expected the hashes of features by their names, found {found!r:.80}"
        )
    return found


def require(card: Mapping[str, Any] | None, served: Mapping[str, str], feature_set: str) -> None:
    """See to it that a model is served what it was trained with.

    Args:
        card: What `trained_with` gave; a model without a card is let through, since nothing is known of it.
        served: Hash of each feature that the FeatureSet serves (`status.features`, or /v1/metadata).
        feature_set: Its name, for the message.

    Raises:
        ParityError: They differ.
    """
    if card is None:
        return
    if found := differences(card["features"], served):
        raise ParityError(
            f"the model was trained with other features than FeatureSet {feature_set} serves: {'; '.join(found)}. "
            "Train it anew, or put the FeatureSet's expressions back"
        )
