"""What a user sees of a reconcile: children made and repaired, no write without need, errors that say what to do."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from cluster.controlplane import ControlPlane
from tests.api.rest import APPLY
from tests.api.runtime.conftest import Space, eventually, running
from tests.api.runtime.toy import Widget


async def test_children_are_made_with_owner_and_labels_and_the_status_says_so(
    plane: ControlPlane, space: Space
) -> None:
    async with running(plane, space):
        created = space.create("w", pods=2)
        await eventually(lambda: space.is_ready("w"), "Ready")
        child = space.get("configmaps", "w")
        assert child is not None
        assert child["data"] == {"color": "blue"}
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "headrace"
        assert child["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "test.headrace.dev/v1",
                "kind": "Widget",
                "name": "w",
                "uid": created["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        assert [(item["manager"], item["operation"]) for item in child["metadata"]["managedFields"]] == [
            ("headrace", "Apply")
        ]
        assert space.pods() == ["w-1-0", "w-1-1"]
        await eventually(lambda: [item["reason"] for item in space.events()] == ["Started"], "one Event")
        assert space.events()[0]["regarding"]["uid"] == created["metadata"]["uid"]


async def test_looking_again_writes_nothing_and_neither_does_a_new_process(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space) as first:
        for name in "abc":
            space.create(name, pods=1)
        for name in "abc":
            await eventually(partial(space.is_ready, name), "Ready")
        await first.settle()
        before = len(first.proxy.writes())
        await first.look_again()
        assert first.proxy.writes()[before:] == []
    async with running(plane, space) as second:
        await asyncio.wait_for(second.manager.ready.wait(), 10)
        await second.settle()
        await second.look_again()
        assert second.proxy.writes() == []


async def test_a_change_of_the_spec_changes_the_child_and_drops_what_is_no_longer_wanted(
    plane: ControlPlane, space: Space
) -> None:
    async with running(plane, space):
        space.create("w", color="red")
        await eventually(lambda: space.is_ready("w"), "Ready")
        assert (space.get("configmaps", "w") or {})["data"] == {"color": "red", "extra": "warm"}
        space.set("widgets", "w", spec={"color": "green"})
        await eventually(lambda: (space.get("configmaps", "w") or {})["data"] == {"color": "green"}, "green, not warm")


async def test_a_field_that_is_no_longer_wanted_goes_even_if_the_release_that_wanted_it_is_gone(
    plane: ControlPlane, space: Space
) -> None:
    """The hash annotation tells that what is there was applied by another idea of the child."""
    async with running(plane, space):
        space.create("w")
        await eventually(lambda: space.is_ready("w"), "Ready")
    now = (space.get("configmaps", "w") or {})["metadata"]
    kept = {"labels": now["labels"], "ownerReferences": now["ownerReferences"]}
    older = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "w", "annotations": {"headrace.dev/applied": "older"}, **kept},
        "data": {"color": "blue", "old": "field"},
    }
    answer = space.rest(
        "PATCH", space.path("configmaps", "w"), older, content_type=APPLY, fieldManager="headrace", force="true"
    )
    assert answer.accepted, answer
    async with running(plane, space):
        await eventually(
            lambda: (space.get("configmaps", "w") or {}).get("data") == {"color": "blue"}, "only the color"
        )


async def test_drift_of_a_child_is_repaired_and_what_others_added_is_left_alone(
    plane: ControlPlane, space: Space
) -> None:
    async with running(plane, space) as run:
        space.create("w")
        await eventually(lambda: space.is_ready("w"), "Ready")
        space.set("configmaps", "w", data={"color": "mud", "theirs": "kept"})
        await eventually(
            lambda: (space.get("configmaps", "w") or {})["data"] == {"color": "blue", "theirs": "kept"}, "blue again"
        )
        await run.settle()
        before = len(run.proxy.writes())
        await run.look_again()
        assert run.proxy.writes()[before:] == []


async def test_a_deleted_child_comes_back(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space):
        space.create("w", pods=1)
        await eventually(lambda: space.is_ready("w"), "Ready")
        space.delete("configmaps", "w")
        await eventually(lambda: space.get("configmaps", "w") is not None, "the ConfigMap")
        space.delete("pods", "w-1-0")
        await eventually(lambda: space.pods() == ["w-2-0"], "a pod of the next attempt")


async def test_the_status_is_written_only_when_it_changes(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space) as run:
        space.create("w")
        await eventually(lambda: space.is_ready("w"), "Ready")
        await run.settle()
        before = (space.get("widgets", "w") or {})["metadata"]["resourceVersion"]
        await run.look_again()
        assert (space.get("widgets", "w") or {})["metadata"]["resourceVersion"] == before
        writes = [call for call in run.proxy.writes() if call.path.endswith("/status")]
        assert len(writes) == 1


async def test_a_name_that_somebody_else_has_is_not_taken_over(plane: ControlPlane, space: Space) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "w"}, "data": {"precious": "1"}}
    assert space.rest("POST", space.path("configmaps"), theirs).accepted
    async with running(plane, space):
        space.create("w")
        await eventually(lambda: space.ready("w").get("reason") == "NameConflict", "NameConflict")
        message = space.ready("w")["message"]
        assert f"ConfigMap {space.name}/w exists already" in message
        assert "another name" in message
        assert (space.get("configmaps", "w") or {})["data"] == {"precious": "1"}


async def test_two_resources_that_want_one_child_do_not_fight(plane: ControlPlane, space: Space) -> None:
    other = space.create("other")
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "w",
            "labels": {"app.kubernetes.io/managed-by": "headrace"},
            "ownerReferences": [
                {
                    "apiVersion": "test.headrace.dev/v1",
                    "kind": "Widget",
                    "name": "other",
                    "uid": other["metadata"]["uid"],
                    "controller": True,
                }
            ],
        },
    }
    assert space.rest("POST", space.path("configmaps"), held).accepted
    async with running(plane, space) as run:
        space.create("w")
        await eventually(lambda: space.ready("w").get("reason") == "NameConflict", "NameConflict")
        assert f"belongs to Widget {space.name}/other" in space.ready("w")["message"]
        await run.settle()


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("Terminal", "WrongColor", "choose another"),
        ("Wait", "PaintMissing", "buy some"),
        ("Retry", "BrushBroke", "a new one comes"),
        ("Bug", "InternalError", "the operator's log"),
    ],
)
async def test_an_error_is_a_condition_and_one_event_and_goes_when_mended(
    plane: ControlPlane, space: Space, fault: str, reason: str, message: str
) -> None:
    async with running(plane, space) as run:
        space.create("w", fault=fault)
        await eventually(lambda: space.ready("w").get("reason") == reason, reason)
        ready = space.ready("w")
        assert ready["status"] == "False"
        assert message in ready["message"]
        await run.look_again()  # saying it again would be no news
        assert [(item["type"], item["reason"]) for item in space.events()] == [("Warning", reason)]
        space.set("widgets", "w", spec={"fault": ""})
        await eventually(lambda: space.is_ready("w"), "Ready")


async def test_a_spec_that_does_not_parse_says_which_field(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space):
        space.create("w", pods="many")
        await eventually(lambda: space.ready("w").get("reason") == "InvalidSpec", "InvalidSpec")
        message = space.ready("w")["message"]
        assert "spec.pods" in message
        assert "'many'" in message


async def test_a_field_of_a_newer_release_is_passed_over(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space):
        space.create("w", colour="blue")
        await eventually(lambda: space.is_ready("w"), "Ready")


async def test_a_resource_on_its_way_out_is_left_to_the_garbage_collector(plane: ControlPlane, space: Space) -> None:
    async with running(plane, space) as run:
        space.create("w")
        await eventually(lambda: space.is_ready("w"), "Ready")
        await run.settle()
        space.set("widgets", "w", metadata={"finalizers": ["test.headrace.dev/hold"]})
        space.rest("DELETE", space.path("widgets", "w"))
        space.delete("configmaps", "w")
        await run.settle()
        assert space.get("configmaps", "w") is None
        space.set("widgets", "w", metadata={"finalizers": None})


async def test_a_namespace_that_is_being_deleted_is_no_error(plane: ControlPlane, space: Space) -> None:
    space.create("w")
    assert space.rest("DELETE", f"/api/v1/namespaces/{space.name}").accepted  # nobody finishes that here
    async with running(plane, space) as run:
        await eventually(lambda: len(run.proxy.writes()) > 0, "an attempt")
        await run.settle()
        assert space.ready("w") == {}
        assert len(run.proxy.writes()) == 1  # and it is not tried for ever
        assert run.manager.queue(Widget).next_due() is None
