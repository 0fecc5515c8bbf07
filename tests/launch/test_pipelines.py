"""Every pipeline has one shape that Vertex AI and Kubeflow both run, with workers sized and nothing left to caching."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, dsl
from kfp.pipeline_spec import pipeline_spec_pb2

from streamway.launch import compile_pipeline, run_locally
from streamway.pipelines import PIPELINES

COMPILE = """
import sys
from pathlib import Path
from streamway.launch import compile_pipeline
from streamway.pipelines import PIPELINES
for name in PIPELINES:
    compile_pipeline(name, Path(sys.argv[1]) / name)
"""
# google.cloud.aiplatform sends the whole compiled file with every job; Vertex AI takes a few hundred kB.
LARGEST_BYTES = 100_000


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compiled")
    found = {}
    for name in PIPELINES:
        (found[name],) = yaml.safe_load_all(compile_pipeline(name, folder / f"{name}.yaml").read_text())
    return found


def tasks_of(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task that runs a component, wherever in the pipeline it is."""
    for component in (spec["root"], *spec["components"].values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield name, task


def container_of(spec: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
    return spec["deploymentSpec"]["executors"][label]["container"]


def test_all_pipelines_compile_to_the_same_bytes_whatever_the_order_of_hashes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path / seed)], check=True, env=environment)
    for name in PIPELINES:
        first, second = ((tmp_path / seed / name).read_bytes() for seed in ("1", "2"))
        assert first == second
        assert len(first) < LARGEST_BYTES


@pytest.mark.parametrize("name", PIPELINES)
def test_the_exit_handler_is_outermost(compiled: dict[str, Any], name: str) -> None:
    tasks = compiled[name]["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "report-run"}
    assert tasks["report-run"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert tasks["report-run"]["dependentTasks"] == ["exit-handler-1"]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_report_is_a_page_that_the_services_show(compiled: dict[str, Any], name: str) -> None:
    given = compiled[name]["components"]["comp-report-run"]["outputDefinitions"]["artifacts"]
    assert {output: one["artifactType"]["schemaTitle"] for output, one in given.items()} == {"page": "system.HTML"}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_file_is_what_the_services_read(compiled: dict[str, Any], name: str) -> None:
    spec = json_format.ParseDict(compiled[name], pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == name.replace("_", "-")
    text = yaml.safe_dump(compiled[name])
    assert "iterator" not in text
    assert "pip install" not in text


@pytest.mark.parametrize("name", PIPELINES)
def test_every_worker_is_sized_and_no_task_is_cached(compiled: dict[str, Any], name: str) -> None:
    for task_name, task in tasks_of(compiled[name]):
        resources = container_of(compiled[name], task)["resources"]
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(resources), task_name
        assert not task.get("cachingOptions", {}).get("enableCache"), task_name


@pytest.mark.parametrize("name", PIPELINES)
def test_a_lost_worker_is_replaced_but_a_verdict_stands(compiled: dict[str, Any], name: str) -> None:
    for task_name, task in tasks_of(compiled[name]):
        retries = task.get("retryPolicy", {}).get("maxRetryCount", 0)
        assert retries == (0 if task_name in ("deploy-server", "smoke-test", "retire-cache") else 1), task_name


@pytest.mark.parametrize("name", ["serve_model", "promote_model"])
def test_a_gate_is_recorded_only_after_the_smoke_test_and_only_where_a_stage_is_named(
    compiled: dict[str, Any], name: str
) -> None:
    tasks = compiled[name]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    gate = tasks["condition-2"]
    assert "smoke-test" in gate["dependentTasks"]
    assert gate["triggerPolicy"]["condition"] == "inputs.parameter_values['pipelinechannel--stage'] != ''"


@pytest.mark.parametrize("name", ["serve_model", "promote_model"])
def test_a_pipeline_fills_in_all_but_what_a_step_knows_best(compiled: dict[str, Any], name: str) -> None:
    for task_name, task in tasks_of(compiled[name]):
        known = compiled[name]["components"][task["componentRef"]["name"]]["inputDefinitions"]["parameters"]
        left = known.keys() - task["inputs"]["parameters"].keys()
        of_promotions = {"commit_sha", "source_root", "requires"} if task_name == "check-parameters" else set()
        assert left <= {"timeout_seconds", "memory_mib", "wait"} | of_promotions, task_name


@pytest.mark.parametrize("name", ["serve_model", "promote_model"])
def test_what_is_meant_for_the_server_and_its_proof_is_not_mixed_up(compiled: dict[str, Any], name: str) -> None:
    tasks = dict(tasks_of(compiled[name]))
    chosen = compiled[name]["root"]["inputDefinitions"]["parameters"].keys()
    for task_name in ("deploy-server", "smoke-test", "check-parameters"):
        given = tasks[task_name]["inputs"]["parameters"]
        assert len(given.keys() & chosen) >= 7
        for parameter in given.keys() & chosen:
            source = given[parameter].get("componentInputParameter", "the step before")
            assert source in (f"pipelinechannel--{parameter}", "the step before"), (task_name, parameter)


@dsl.component(base_image="python:test", install_kfp_package=False)
def fail_and_count(path: str):
    from pathlib import Path

    with Path(path).open("a") as attempts:
        attempts.write("attempt")
    raise ValueError("always")


@dsl.pipeline(name="stubborn")
def stubborn(path: str):
    fail_and_count(path=path).set_retry(num_retries=3, backoff_duration="600s")


def test_a_local_run_keeps_nobody_waiting_for_the_same_error_again(tmp_path: Path) -> None:
    compiler.Compiler().compile(stubborn, str(tmp_path / "stubborn.yaml"))
    parameters = {"path": str(tmp_path / "attempts")}
    finished = run_locally(
        tmp_path / "stubborn.yaml", parameters, folder=tmp_path / "run", environment={}, on_event=lambda event: None
    )
    assert not finished.succeeded
    assert (tmp_path / "attempts").read_text() == "attempt"


def test_retirement_plans_before_it_touches_anything(compiled: dict[str, Any]) -> None:
    tasks = compiled["retire_model"]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    order = ["plan-retirement", "retire-server", "retire-releases", "retire-cache"]
    assert set(tasks) == set(order)
    for before, after in pairwise(order):
        assert before in tasks[after]["dependentTasks"]
