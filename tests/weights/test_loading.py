"""Converted models load where models are loaded, and answer as the originals do."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from streamway.sandbox.engine import Engine, engine_environment, ensure_engine
from streamway.weights import convert_weights, validate

SCRIPT = Path(__file__).parent / "engine_models.py"
ARCHITECTURES = [
    "bert",
    "gpt2",
    "llama_float8",
    "llama_shared_but_untied",
    "llama_tied",
    "llama_untied",
    "mixtral",
    "t5",
]
SECONDS = 280

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def run(engine: Engine, *arguments: str) -> list[dict[str, Any]]:
    environment = {**os.environ, **engine_environment(engine), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    python = str(engine.bin_path / "python")
    done = subprocess.run(
        [python, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return ensure_engine(print)


@pytest.fixture(scope="module")
def models(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pickled models of real architectures, each with its conversion beside it."""
    folder = tmp_path_factory.mktemp("models") / "models"
    run(engine, "make", str(folder))
    for model in sorted(folder.iterdir()):
        convert_weights(snapshot_uri=str(model / "source"), weights_uri=str(model / "converted"), copy_unchanged=True)
    return folder


def test_transformers_gets_the_same_answers_from_every_architecture(engine: Engine, models: Path) -> None:
    found = run(engine, "compare", str(models))
    assert sorted(answer["name"] for answer in found) == ARCHITECTURES
    for answer in found:
        assert answer["equal"], answer
        assert answer["finite"], answer
        assert answer["missing"] == [[], []], answer
        assert answer["unexpected"] == [], answer


def test_real_models_are_valid_after_conversion(models: Path) -> None:
    for model in sorted(models.iterdir()):
        report = validate(str(model / "converted"))
        assert report.ok, report.lines()
        assert not {"misaligned", "format-metadata"} & {finding.code for finding in report.findings}


@pytest.mark.timeout(SECONDS + 20)
def test_vllm_streams_a_converted_model_and_says_the_same(engine: Engine, models: Path) -> None:
    (found,) = run(engine, "serve", str(models))
    assert len(set(found["expected"])) > 2
    assert found["served"] == found["expected"]
