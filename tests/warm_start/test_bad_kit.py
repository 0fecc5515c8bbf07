"""A kit that an engine does not survive, or answers wrongly with, is given to no pod again."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamway import server, storage, warm_start
from streamway.errors import RolloutError, WrongAnswerError
from streamway.server.kit import Kit
from streamway.storage.kits import read_kit_index, read_kits

pytestmark = pytest.mark.slow


def kits(house: Any) -> list[str]:
    return [kit.uri for kit in read_kits(house.release_uri).values()]


def offers(house: Any) -> list[str]:
    return [name for name in house.versions() if name.startswith("configmaps/tiny")]


def test_an_engine_that_crashes_with_its_kit_is_tried_once_without_and_the_kit_is_dropped(
    house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    house.serve(WARM_CRASH="warm")
    (kit,) = kits(house)
    server.retire_server(name="tiny", namespace=house.namespace)

    deployed = house.deploy(WARM_CRASH="warm")

    (pod,) = house.pods()
    assert house.found_in_cache(pod["metadata"]["name"]) == {}
    assert f"fails with the warm-start kit {kit}, so it is tried without" in caplog.text
    assert (kits(house), offers(house)) == ([], [])
    assert not storage.exists(kit)
    house.prove(deployed)


def test_a_kit_is_not_to_blame_where_the_engine_crashes_without_it_too(house: Any, tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    house.serve(WARM_CRASH=str(crash))
    (kit,) = kits(house)
    server.retire_server(name="tiny", namespace=house.namespace)
    crash.touch()

    with pytest.raises(RolloutError) as caught:
        house.deploy(WARM_CRASH=str(crash))

    assert caught.value.reason == "crash_loop"
    assert "tried with its warm-start kit before, and failed as well" in caught.value.problem
    assert kits(house) == [kit]
    assert (house.pods(), offers(house)) == ([], [])


def test_a_pod_that_came_later_and_crashes_with_its_kit_is_helped_by_the_next_run(
    house: Any, until_ready: Callable[[int], None]
) -> None:
    house.serve(WARM_CRASH="warm")
    (pod,) = house.pods()
    path = f"/api/v1/namespaces/{house.namespace}/pods/{pod['metadata']['name']}"
    house.connection.request("DELETE", path, query={"gracePeriodSeconds": 0})

    house.serve(WARM_CRASH="warm")

    until_ready(1)
    (pod,) = house.pods()
    assert "no warm-start kit" in house.said_about_kit(pod)


def test_a_rollback_tries_without_the_kit_too(house: Any) -> None:
    house.serve(WARM_CRASH="warm")
    house.serve(WARM_CRASH="warm", engine_arguments=["--enforce-eager"], strategy="recreate")
    (first,) = [row for row in server.read_status(name="tiny", namespace=house.namespace).revisions if not row.replicas]

    now = server.rollback(name="tiny", namespace=house.namespace, drop_kit=warm_start.drop_kit)

    assert now.active == first.name
    assert [kit.made_for["arguments"][-1] for kit in read_kits(house.release_uri).values()] == ["--enforce-eager"]


def test_a_kit_that_makes_an_engine_answer_wrongly_is_dropped_with_the_revision(house: Any) -> None:
    house.serve(WARM_ANSWER="It is Berlin.")
    server.retire_server(name="tiny", namespace=house.namespace)
    held = house.deploy(WARM_ANSWER="It is Berlin.")

    with pytest.raises(WrongAnswerError) as caught:
        house.prove(held)

    assert "had a warm-start kit, which was dropped" in caught.value.problem
    assert (kits(house), offers(house)) == ([], [])
    house.serve(WARM_ANSWER="It is Berlin.")


def test_a_kit_that_cannot_be_dropped_is_named(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    house.serve()
    (kit,) = read_kits(house.release_uri).values()
    storage.delete_files([f"{house.release_uri.rstrip('/')}.manifest.json"])

    with caplog.at_level(logging.WARNING):
        warm_start.drop_kit(Kit(uri=kit.uri, sha256=kit.sha256, size_bytes=kit.size_bytes))

    assert f"{kit.uri} could not be dropped, so delete it by hand" in caplog.text


def test_an_engine_that_gets_on_with_no_kit_goes_without_after_the_second(
    house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _time in range(2):
        house.serve(WARM_CRASH="warm")
        assert len(kits(house)) == 1
        server.retire_server(name="tiny", namespace=house.namespace)
        house.deploy(WARM_CRASH="warm")
        server.retire_server(name="tiny", namespace=house.namespace)
    assert caplog.text.count("so it is tried without") == 2

    house.serve(WARM_CRASH="warm")
    server.retire_server(name="tiny", namespace=house.namespace)
    house.serve(WARM_CRASH="warm")

    assert caplog.text.count("so it is tried without") == 2, "no attempt is lost to a kit any more"
    assert kits(house) == []
    assert "it did not get on with 2 of them" in caplog.text
    (told,) = warm_start.read_kit_status([house.release_uri])
    assert "1 x nvidia-l4 with example.com/engine-double:1: none" in told.line()
    assert f"delete {house.release_uri.rstrip('/')}.kits.json" in told.line()

    house.serve(engine_arguments=["--enforce-eager"], strategy="recreate")
    assert len(kits(house)) == 1, "other arguments have kits of their own"
    storage.delete_files([f"{house.release_uri.rstrip('/')}.kits.json"])
    house.serve(WARM_CRASH="warm", strategy="recreate")
    assert len(kits(house)) == 1, "whoever deletes the index may try again"


def test_a_kit_that_an_engine_starts_with_wipes_out_what_was_dropped_before(house: Any) -> None:
    house.serve()
    (kit,) = read_kits(house.release_uri).values()
    warm_start.drop_kit(Kit(uri=kit.uri, sha256=kit.sha256, size_bytes=kit.size_bytes))
    house.serve()
    assert [entry.count for entry in read_kit_index(house.release_uri).dropped.values()] == [1]

    house.replace_pod()
    house.serve()

    assert read_kit_index(house.release_uri).dropped == {}
