"""Every component's compiled command runs where there is nothing but what the Dockerfile installs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from streamway import components
from streamway.errors import StreamwayError

ROOT = Path(__file__).parents[2]
VENV = "/opt/streamway"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def build_stage() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile's first stage, with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages = [index for index, (word, *_) in enumerate(lines) if word == "FROM"]
    return [(word, rest) for word, rest in lines[stages[0] + 1 : stages[1]]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the image has: the Dockerfile's own lines, run in a folder instead of a container."""
    build, venv = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("opt") / "streamway"
    for word, rest in build_stage():
        if word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                # A folder's content is copied to the target, a file into it.
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, build / target)
        elif word == "RUN":
            # The image's `python` is the one under test here.
            command = re.sub(r"^python ", f"{sys.executable} ", rest).replace(VENV, str(venv))
            subprocess.run(command, shell=True, check=True, cwd=build, env=clean_environment(None))  # noqa: S602
    yield venv
    shutil.rmtree(venv)


def clean_environment(venv: Path | None) -> dict[str, str]:
    """An environment with nobody's cluster, credentials or packages in it."""
    if venv is None:
        return {name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name[:4] == "PIP_"}
    return {
        "PATH": f"{venv}/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "NO_GCE_CHECK": "true",
        "KUBECONFIG": "/nonexistent/kubeconfig",
        # Nothing may be asked for over the network.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
    }


EXAMPLES = {"STRING": "x", "NUMBER_INTEGER": 1, "NUMBER_DOUBLE": 1.0, "BOOLEAN": False, "LIST": [], "STRUCT": {}}
STATUS = {"state": "FAILED", "pipeline_job_resource_name": "p", "pipeline_task_name": "t", "error": {"message": "m"}}


def executor_input(spec: dict[str, Any], folder: Path) -> str:
    """Make an input of a component from its contract: defaults where it has them, something else where not."""
    inputs, outputs = spec.get("inputDefinitions", {}), spec.get("outputDefinitions", {})
    values = {}
    for name, definition in inputs.get("parameters", {}).items():
        kind = definition["parameterType"]
        values[name] = definition.get("defaultValue", EXAMPLES.get(kind, STATUS))
    values["run_uri"] = str(folder / "journal")

    def artifact(name: str, definition: dict[str, Any]) -> dict[str, Any]:
        return {"artifacts": [{"name": name, "type": definition["artifactType"], "uri": str(folder / name)}]}

    return json.dumps(
        {
            "inputs": {
                "parameterValues": values,
                "artifacts": {name: artifact(name, one) for name, one in inputs.get("artifacts", {}).items()},
            },
            "outputs": {
                "parameters": {name: {"outputFile": str(folder / name)} for name in outputs.get("parameters", {})},
                "artifacts": {name: artifact(name, one) for name, one in outputs.get("artifacts", {}).items()},
                "outputFile": str(folder / "executor_output.json"),
            },
        }
    )


def all_errors(base: type[StreamwayError] = StreamwayError) -> set[str]:
    return {base.__name__}.union(*(all_errors(child) for child in base.__subclasses__()))


def test_the_environment_has_no_development_packages_and_no_torch(installed: Path) -> None:
    listed = subprocess.run(
        [installed / "bin" / "python", "-m", "pip", "list", "--format=json"], check=True, capture_output=True
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert {"streamway", "kfp", "kubernetes"} <= names
    assert not names & {"torch", "pytest", "mypy", "transformers", "vllm"}


@pytest.mark.parametrize("name", components.__all__)
def test_a_compiled_command_gets_as_far_as_its_step(installed: Path, tmp_path: Path, name: str) -> None:
    compiled = tmp_path / "component.yaml"
    compiler.Compiler().compile(getattr(components, name), str(compiled))
    spec = yaml.safe_load(compiled.read_text())
    (executor,) = spec["deploymentSpec"]["executors"].values()
    (component,) = spec["components"].values()
    given = executor_input(component, tmp_path)
    arguments = [given if argument == "{{$}}" else argument for argument in executor["container"]["args"]]
    done = subprocess.run(
        [*executor["container"]["command"], *arguments],
        cwd=tmp_path,
        env=clean_environment(installed),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 0:
        assert (tmp_path / "executor_output.json").exists()
        return
    failed = re.search(rf"^streamway {name} \| failed (.*)$", done.stderr, re.MULTILINE)
    assert failed, done.stderr
    error = json.loads(failed[1])
    assert error["kind"] in all_errors(), done.stderr
    assert error["next_step"]
