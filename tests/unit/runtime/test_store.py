"""The store: newest wins, own writes are read, what is gone stays gone."""

from __future__ import annotations

from typing import Any

from controllers.runtime.objects import OWNER_KIND, OWNER_UID, POD, Key, Manifest
from controllers.runtime.store import ObjectStore, Owner


def pod(name: str, version: int, *, uid: str = "", owner: str = "", **metadata: Any) -> Manifest:
    reference = {"apiVersion": "v1", "kind": "Job", "name": f"job-{owner}", "uid": owner, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
            **({"ownerReferences": [reference]} if owner else {}),
            **metadata,
        },
    }


def key(name: str) -> Key:
    return Key("ns", name)


def version(store: ObjectStore, name: str) -> str:
    found = store.get(key(name))
    assert found is not None
    return str(found["metadata"]["resourceVersion"])


def test_the_newest_version_wins_whatever_comes_last() -> None:
    store = ObjectStore(POD)
    assert store.put(pod("a", 5))
    assert not store.put(pod("a", 4))
    assert not store.put(pod("a", 5))
    assert version(store, "a") == "5"


def test_managed_fields_and_kubectls_copy_are_not_kept() -> None:
    store = ObjectStore(POD)
    store.put(
        pod(
            "a",
            1,
            managedFields=[{"manager": "x"}],
            annotations={"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "1"},
        )
    )
    found = store.get(key("a"))
    assert found is not None
    assert "managedFields" not in found["metadata"]
    assert found["metadata"]["annotations"] == {"kept": "1"}


def test_objects_are_found_by_their_controlling_owner_in_order_of_name() -> None:
    store = ObjectStore(POD)
    for name in ("c", "a", "b"):
        store.put(pod(name, 1, owner="1"))
    store.put(pod("d", 2, owner="2"))
    store.put(pod("e", 3))
    assert [item["metadata"]["name"] for item in store.owned("ns", "1")] == ["a", "b", "c"]
    store.deleted(pod("b", 4, owner="1"))
    assert [item["metadata"]["name"] for item in store.owned("ns", "1")] == ["a", "c"]
    assert store.owned("ns", "3") == []


def test_pods_of_a_deployment_are_found_by_the_labels_of_their_resource() -> None:
    store = ObjectStore(POD)
    labels = {OWNER_UID: "svc-uid", OWNER_KIND: "InferenceService", "app.kubernetes.io/instance": "digits"}
    store.put(pod("a", 1, owner="replica-set", labels=labels))
    assert len(store.owned("ns", "svc-uid")) == 1
    assert store.owner(key("a")) == Owner("headrace.dev/v1alpha1", "InferenceService", key("digits"), "svc-uid")


def test_an_object_of_another_namespace_is_not_the_owners_whatever_its_labels_say() -> None:
    """A Deployment that was exported and applied elsewhere carries the labels of the first one's resource."""
    store = ObjectStore(POD)
    labels = {OWNER_UID: "svc-uid", OWNER_KIND: "InferenceService", "app.kubernetes.io/instance": "digits"}
    heard: list[Key | None] = []
    store.subscribe(lambda _, owner: heard.append(owner.key if owner else None))
    store.put(pod("mine", 1, labels=labels))
    store.put(pod("mine", 2, uid="forged", labels=labels, namespace="elsewhere"))
    store.put(pod("other", 3, uid="child", owner="svc-uid", namespace="elsewhere"))
    assert [item["metadata"]["uid"] for item in store.owned("ns", "svc-uid")] == ["uid-mine"]
    assert heard == [key("digits"), Key("elsewhere", "digits"), Key("elsewhere", "job-svc-uid")]
    store.deleted(pod("mine", 4, uid="forged", labels=labels, namespace="elsewhere"))
    assert [item["metadata"]["uid"] for item in store.owned("ns", "svc-uid")] == ["uid-mine"]


def test_both_owners_hear_of_an_object_that_changes_hands() -> None:
    store = ObjectStore(POD)
    heard: list[str] = []
    store.subscribe(lambda _, owner: heard.append(owner.uid if owner else ""))
    store.put(pod("a", 1, owner="1"))
    store.put(pod("a", 2, owner="2"))
    assert heard == ["1", "1", "2"]


def test_the_echo_of_an_own_write_is_no_news() -> None:
    store = ObjectStore(POD)
    heard: list[Key] = []
    store.record(pod("a", 7), "digest")
    store.subscribe(lambda changed, _: heard.append(changed))
    store.put(pod("a", 7))
    assert heard == []
    assert store.settled(key("a")) == "digest"


def test_what_was_applied_is_no_longer_known_once_somebody_else_wrote() -> None:
    store = ObjectStore(POD)
    store.record(pod("a", 7), "digest")
    store.put(pod("a", 8))
    assert store.settled(key("a")) == ""


def test_a_late_answer_does_not_bring_back_what_the_watch_saw_deleted() -> None:
    store = ObjectStore(POD)
    store.put(pod("a", 7))
    store.deleted(pod("a", 9))
    store.seen = 9
    store.record(pod("a", 7), "digest")
    assert store.get(key("a")) is None


def test_news_of_what_we_deleted_that_is_still_on_its_way_is_ignored() -> None:
    store = ObjectStore(POD)
    store.put(pod("a", 7, uid="one"))
    store.delete_requested(key("a"), "one")
    store.put(pod("a", 8, uid="one"))
    assert store.get(key("a")) is None
    store.put(pod("a", 12, uid="two"))
    store.deleted(pod("a", 9, uid="one"))
    assert store.uid(key("a")) == "two"


def test_a_list_drops_what_it_lacks_but_not_what_is_newer_than_it() -> None:
    store = ObjectStore(POD)
    store.put(pod("gone", 3))
    store.put(pod("stays", 4))
    listing = store.list()
    store.record(pod("mine", 12))  # written after the list's state
    listing.put(pod("stays", 4))
    listing.put(pod("new", 6))
    listing.finish(10)
    assert sorted(name for _, name in store) == ["mine", "new", "stays"]
