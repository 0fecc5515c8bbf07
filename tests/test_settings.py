"""A configuration says what it means, or the run does not start."""

import re
from pathlib import Path
from typing import Any

import pytest

from streamway.cli.choices import server_choices
from streamway.errors import SettingsError
from streamway.pipelines import PIPELINES, serve_model
from streamway.server import ServerSpec, render
from streamway.settings import Settings
from streamway.smoke import parse_questions

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


def test_everything_about_the_server_reaches_what_is_rendered(tmp_path: Path) -> None:
    text = (
        SMALL
        + """
smoke:
  chat_required: true
  questions:
    - {prompt: "2 + 2?", expect: "4", match: exact}
    - {prompt: A city as JSON, expect: {type: object, required: [city]}, match: json_schema}
    - {prompt: the sea, kind: embedding}
"""
    )
    text = text.replace(
        "name: endpoint}",
        """name: endpoint, spot: true, replicas: 2, max_replicas: 4, served_model_name: tiny,
  service_account: reader, node_selector: {cloud.google.com/compute-class: gpus},
  tolerations: [{key: team, operator: Equal, value: ml, effect: NoExecute, tolerationSeconds: 60}],
  pod: {cpu: 6, memory: 20Gi, ephemeral_storage: 15Gi, startup_seconds: 900}}""",
    )
    settings = Settings.load(write(tmp_path, text))
    release = {"release_uri": "gs://bucket/models/org/name/abcdef0/", "commit_sha": "abcdef0", "size_bytes": 1 << 30}

    manifests = render(ServerSpec(**release, model_id="org/name", **server_choices(settings)))

    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert by_kind["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 4
    assert pod["serviceAccountName"] == "reader"
    assert pod["nodeSelector"]["cloud.google.com/compute-class"] == "gpus"
    assert {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoExecute", "tolerationSeconds": 60} in pod[
        "tolerations"
    ]
    assert "cloud.google.com/gke-spot" in str(pod["tolerations"])
    assert "--served-model-name=tiny" in pod["containers"][0]["args"]
    requests = pod["containers"][0]["resources"]["requests"]
    assert (requests["cpu"], requests["memory"], requests["ephemeral-storage"]) == ("6", "20Gi", "15Gi")
    assert pod["containers"][0]["startupProbe"]["failureThreshold"] == 900
    questions = parse_questions(settings.parameters()["questions"])
    assert [(question.kind, question.match) for question in questions] == [
        ("chat", "exact"),
        ("chat", "json_schema"),
        ("embedding", "regex"),
    ]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ('{prompt: x, expect: "(", match: regex}', "which is no regex"),
        ('{prompt: x, expect: "{", match: json_schema}', "which is no json_schema"),
        ("{prompt: x, match: fuzzy}", "smoke.questions.0.match is 'fuzzy'"),
    ],
)
def test_a_question_that_cannot_be_judged_is_found_before_anything_moves(
    tmp_path: Path, question: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        Settings.load(write(tmp_path, f"{SMALL}smoke: {{questions: [{question}]}}\n"))


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("pod: {memory: 64 GB}", "server: pod has memory '64 GB', expected a quantity"),
        ("pod: {memory: 1Ti}", "server: pod has memory 1024.0 GiB, expected at most 95.5 cores and 326.4 GiB"),
        ("pod: {startup_seconds: 900}, timeout_seconds: 600", "server: pod has startup_seconds 900, expected at most"),
        ("pod: {startup_seconds: -1}", "server.pod.startup_seconds is -1"),
        ("pod: {mem: 1Gi}", "server.pod.mem is not a setting; perhaps you meant memory?"),
    ],
)
def test_a_pod_that_cannot_be_had_is_found_before_anything_moves(tmp_path: Path, server: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        Settings.load(write(tmp_path, SMALL.replace("name: endpoint", f"name: endpoint, {server}")))


@pytest.mark.parametrize("pipeline", ["serve_model", "promote_model"])
def test_what_a_pod_gets_reaches_the_step_that_makes_it_and_the_one_that_judges_it(
    tmp_path: Path, pipeline: str
) -> None:
    overrides = {"server.pod": "{cpu: 2, memory: 8Gi}", "promotion.source_root": "gs://before/models"}
    settings = Settings.load(write(tmp_path, SMALL), overrides=overrides)
    parameters = settings.parameters() if pipeline == "serve_model" else settings.promotion_parameters("f" * 40)
    assert parameters["pod"] == {"cpu": 2, "memory": "8Gi"}

    tasks = tasks_of(PIPELINES[pipeline].pipeline_spec)

    for step in ("deploy-server", "check-parameters"):
        assert "pod" in str(tasks[step].inputs.parameters["pod"].component_input_parameter)


@pytest.mark.parametrize(
    ("cache", "zone", "cached", "pinned"),
    [
        ("[us-central1-a]", "", ["us-central1-a"], "us-central1-a"),
        ("[us-central1-a]", "us-central1-b", ["us-central1-a"], "us-central1-b"),
        ("[us-central1-a, us-central1-b]", "", ["us-central1-a", "us-central1-b"], ""),
        ("cluster", "", ["cluster"], ""),
        ("[]", "", [], ""),
    ],
)
def test_one_setting_pins_pods_to_the_cached_zone_or_caches_every_zone(
    tmp_path: Path, cache: str, zone: str, cached: list[str], pinned: str
) -> None:
    settings = Settings.load(write(tmp_path, SMALL), overrides={"cache.zones": cache, "server.zone": zone or "''"})

    parameters = settings.parameters()

    assert (parameters["cache_zones"], parameters["zone"]) == (cached, pinned)
    assert server_choices(settings)["zone"] == pinned
