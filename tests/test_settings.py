"""A configuration says what it means, or the run does not start."""

from pathlib import Path
from typing import Any

import pytest

from streamway.errors import SettingsError
from streamway.pipelines import PIPELINES, serve_model
from streamway.settings import Settings

ROOT = Path(__file__).parents[1]
SMALL = """
model: {id: org/name}
storage: {release_root: gs://bucket/models/}
server: {name: endpoint}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert Settings.load(path).parameters()["model_id"]


def test_parameters_are_exactly_those_of_the_pipeline(tmp_path: Path) -> None:
    parameters = Settings.load(write(tmp_path, SMALL)).parameters()
    assert set(parameters) == set(serve_model.component_spec.inputs)


def test_defaults_agree_with_those_of_the_pipeline(tmp_path: Path) -> None:
    parameters = Settings.load(write(tmp_path, SMALL)).parameters()
    for name, definition in serve_model.component_spec.inputs.items():
        if definition.optional:
            assert parameters[name] == definition.default, name


def test_a_trailing_slash_of_the_release_root_does_not_matter(tmp_path: Path) -> None:
    assert Settings.load(write(tmp_path, SMALL)).parameters()["release_root"] == "gs://bucket/models"


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("{name: endpoint}", "{name: endpoint, acelerator: nvidia-l4}"))
    with pytest.raises(SettingsError, match=r"server\.acelerator is not a setting; perhaps you meant accelerator\?"):
        Settings.load(path)


def test_an_unknown_key_inside_a_list_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "smoke: {questions: [{prompt: a, expect: b, exepct: c}]}")
    with pytest.raises(SettingsError, match=r"smoke\.questions\.0\.exepct .* perhaps you meant expect\?"):
        Settings.load(path)


def test_an_unknown_section_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"sever is not a setting; perhaps you meant server\?"):
        Settings.load(write(tmp_path, SMALL + "sever: {}"))


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("org/name", "name") + "cache: {ttl_hours: 500}"
    with pytest.raises(SettingsError) as caught:
        Settings.load(write(tmp_path, text))
    assert "2 wrong setting(s)" in caught.value.problem
    assert "model.id is 'name'" in caught.value.problem
    assert "cache.ttl_hours is 500" in caught.value.problem


def test_overrides_replace_a_setting_and_are_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    assert Settings.load(path, overrides={"model.revision": "v2"}).model.revision == "v2"
    assert Settings.load(path, overrides={"cache.zones": "[us-central1-a]"}).cache.zones == ("us-central1-a",)
    with pytest.raises(SettingsError, match="perhaps you meant revision"):
        Settings.load(path, overrides={"model.revison": "v2"})
    with pytest.raises(SettingsError, match="id is not a section"):
        Settings.load(path, overrides={"model.id.x": "1"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[1, 2", "cannot be read as YAML"), ("- a", "holds list"), ("", "holds NoneType"), ("\x00", "cannot be read")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=problem) as caught:
        Settings.load(path)
    assert str(path) in caught.value.problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no configuration file .*absent\.yaml"):
        Settings.load(tmp_path / "absent.yaml")


def test_settings_cannot_be_changed_after_loading(tmp_path: Path) -> None:
    settings = Settings.load(write(tmp_path, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        settings.model.id = "other/name"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "parameter", "step", "given"),
    [
        ("cache.ingest_on_write", "true", "cache_ingest_on_write", "enable-cache", "ingest_on_write"),
        ("server.warm_start", "false", "warm_start", "deploy-server", "warm_start"),
    ],
)
@pytest.mark.parametrize("pipeline", ["serve_model", "promote_model"])
def test_a_switch_reaches_the_step_that_it_is_for(
    tmp_path: Path, key: str, value: str, parameter: str, step: str, given: str, pipeline: str
) -> None:
    overrides = {key: value, "promotion.source_root": "gs://before/models"}
    settings = Settings.load(write(tmp_path, SMALL), overrides=overrides)
    parameters = settings.parameters() if pipeline == "serve_model" else settings.promotion_parameters("f" * 40)
    assert parameters[parameter] is (value == "true")

    tasks = tasks_of(PIPELINES[pipeline].pipeline_spec)

    assert parameter in str(tasks[step].inputs.parameters[given].component_input_parameter)


def tasks_of(spec: Any) -> dict[str, Any]:
    """Every task of a pipeline, however deep it is."""
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    return {name: task for dag in dags for name, task in dag.tasks.items()}
