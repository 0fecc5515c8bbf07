"""A compiled pipeline is one reproducible file, in the shape that Vertex AI and Kubeflow read."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from streamway.errors import LaunchError
from streamway.launch import compile_pipeline

CODE = "import sys; from pathlib import Path; from streamway.launch import compile_pipeline; " \
       "compile_pipeline('serve_model', Path(sys.argv[1]))"  # fmt: skip


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path / seed)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_compiled_file_is_one_document_that_vertex_can_read(tmp_path: Path) -> None:
    (spec,) = yaml.safe_load_all(compile_pipeline("serve_model", tmp_path / "p.yaml").read_text())
    assert spec["pipelineInfo"]["name"] == "serve-model"
    assert len(spec["deploymentSpec"]["executors"]) == 9


def test_the_six_steps_run_in_sequence_under_an_exit_handler(tmp_path: Path) -> None:
    spec = yaml.safe_load(compile_pipeline("serve_model", tmp_path / "p.yaml").read_text())
    handler = spec["root"]["dag"]["tasks"]["report-run"]
    assert handler["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    order = ["pull-model", "convert-weights", "upload-model", "enable-cache", "deploy-server", "smoke-test"]
    assert set(tasks) == {*order, "check-parameters", "condition-2"}
    for before, after in pairwise(order):
        assert before in tasks[after]["dependentTasks"]
    assert "check-parameters" in tasks["convert-weights"]["dependentTasks"]
    assert "check-parameters" in tasks["enable-cache"]["dependentTasks"]
    assert "smoke-test" in tasks["condition-2"]["dependentTasks"]


def test_no_component_installs_anything_when_it_runs(tmp_path: Path) -> None:
    assert "pip install" not in compile_pipeline("serve_model", tmp_path / "p.yaml").read_text()


def test_the_image_of_every_component_can_be_chosen(tmp_path: Path) -> None:
    image = "europe-docker.pkg.dev/project/repository/streamway@sha256:" + "0" * 64
    spec = yaml.safe_load(compile_pipeline("serve_model", tmp_path / "p.yaml", image=image).read_text())
    executors = spec["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {image}


@pytest.mark.parametrize("image", ["a b", "x\ny: z", "$(id)", "-flag"])
def test_what_is_no_image_reference_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(LaunchError, match="not an image reference"):
        compile_pipeline("serve_model", tmp_path / "p.yaml", image=image)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image", ["streamway", "host:5000/p/streamway", "p/streamway:", "p/streamway:latest"])
def test_an_image_that_may_be_another_one_tomorrow_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(LaunchError, match="may be another image tomorrow; expected one with a tag"):
        compile_pipeline("serve_model", tmp_path / "p.yaml", image=image)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("image", ["host:5000/p/streamway:1", "p/streamway:latest@sha256:" + "0" * 64])
def test_a_tag_of_its_own_or_a_digest_fixes_an_image(tmp_path: Path, image: str) -> None:
    assert f"image: {image}\n" in compile_pipeline("serve_model", tmp_path / "p.yaml", image=image).read_text()


def test_an_unknown_pipeline_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="perhaps you meant serve_model"):
        compile_pipeline("serve-model", tmp_path / "p.yaml")
