"""docs/parameters.md says what the pipelines take, and every parameter reads well on a form."""

from pathlib import Path

import pytest

from streamway.errors import SettingsError
from streamway.launch.parameters import describe_parameters
from streamway.pipelines import PIPELINES
from streamway.settings import Settings

ROOT = Path(__file__).parents[2]
SHA = "0123456789abcdef0123456789abcdef01234567"


def test_the_document_is_what_the_pipelines_say() -> None:
    written = (ROOT / "docs" / "parameters.md").read_text()
    assert written == describe_parameters(), "run: python -m streamway.launch.parameters > docs/parameters.md"


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_is_described_in_one_sentence_or_two(name: str) -> None:
    for parameter, definition in PIPELINES[name].component_spec.inputs.items():
        assert definition.description and definition.description.rstrip().endswith("."), parameter
        assert len(definition.description) < 200, parameter


def test_a_person_must_fill_in_three_fields() -> None:
    inputs = PIPELINES["serve_model"].component_spec.inputs
    assert {name for name, field in inputs.items() if not field.optional} == {"model_id", "release_root", "name"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_gives_each_pipeline_exactly_its_parameters(path: Path) -> None:
    settings = Settings.load(path, overrides={"promotion.source_root": "gs://staging/models"})
    given = {
        "serve_model": settings.parameters(),
        "promote_model": settings.promotion_parameters(SHA),
        "retire_model": settings.retirement_parameters(caches=True, releases=True),
    }
    for name, pipeline in PIPELINES.items():
        assert set(given[name]) == set(pipeline.component_spec.inputs), name


def test_promotion_needs_to_know_where_releases_come_from() -> None:
    settings = Settings.load(ROOT / "configs" / "sandbox.yaml")
    with pytest.raises(SettingsError, match=r"promotion\.source_root is empty"):
        settings.promotion_parameters(SHA)
