"""Whatever can be filled in wrongly is refused at once: what it is, what was expected beside it, and what to do.

Each step is called as a pipeline calls it, against real parts; the check that runs beside the first step says the same
before anything is moved. Another test holds these tables to the pipelines: a parameter that is added needs its line.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_roots import share_authority
from part_processes import announcement, start_part

from streamway import components, storage
from streamway.errors import StreamwayError
from streamway.pipelines import PIPELINES
from streamway.sandbox.seed import add_synthetic_models

SHA = "1" * 40
MODEL = "sandbox/tiny"
ROOT = "gs://models/serving"
RELEASE = f"{ROOT}/{MODEL}/{SHA}/"
DOUBLE = Path(__file__).parents[1] / "server" / "images" / "double"


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A value that somebody fills in, and the words that must answer it.

    Args:
        parameter: Of the pipeline.
        value: What is filled in.
        said: What is wrong and what was expected, as words of the message in their order.
        next_step: Words of the next step.
    """

    parameter: str
    value: Any
    said: tuple[str, ...]
    next_step: str


FORM = [
    Wrong("model_id", "a b", ("model id 'a b'", "expected `org/name`"), "Write it as the Hub does"),
    Wrong("release_root", "", ("release_root is ''", "expected gs://BUCKET/PREFIX"), "address of a bucket"),
    Wrong("release_root", "/models", ("release_root is '/models'", "expected gs://"), "address of a bucket"),
    Wrong("release_root", "gs://", ("'gs://'", "is not a bucket name", "expected 3 to 222"), "Correct the bucket"),
    Wrong("name", "", ("name is ''", "expected at most 40"), "Choose another name"),
    Wrong("name", "Bad_Name", ("name is 'Bad_Name'", "expected at most 40"), "Choose another name"),
    Wrong("name", "vllm", ("name is 'vllm'", "VLLM_PORT"), "Choose another name"),
    Wrong(
        "cache_zones", ["mars"], ("'mars' is not the name of a zone", "expected one such as"), "gcloud compute zones"
    ),
    Wrong("cache_zones", [1], ("cache_zones has 1", "expected texts"), "Put it in quotes"),
    Wrong("cache_wait_minutes", -1.0, ("cache_wait_minutes is -1", "expected 0 to 1440"), "Give it 90"),
    Wrong("cache_ttl_hours", 0.5, ("ttl_seconds is 1800", "expected 3600", "0.5 hours was"), "1 to 168 hours"),
    Wrong("cache_ttl_hours", 169.0, ("expected 3600 (1 hour) to 604800", "169 hours was"), "1 to 168 hours"),
    Wrong(
        "cache_zones",
        ["europe-west4-a"],
        ("Zone europe-west4-a is not in the location of gs://models, which is US-CENTRAL1",),
        "Name zones of US-CENTRAL1",
    ),
    Wrong("cluster", "prod", ("cluster is 'prod', which names no cluster",), "projects/P/locations/L/clusters/C"),
    Wrong("namespace", "Bad NS", ("namespace is 'Bad NS'", "expected at most 63"), "Choose another namespace"),
    Wrong("image", "", ("image is ''", "no image's name"), "registry/repository:tag"),
    Wrong("image", "vllm/vllm-openai", ("image is 'vllm/vllm-openai'", "another engine tomorrow"), "Pin it"),
    Wrong("image", "vllm/vllm-openai:v0.11.0", ("vLLM before 0.14.1", "CVE-2026-22807"), "v0.14.1 or newer"),
    Wrong("accelerator", "l4", ("accelerator is 'l4'", "expected one of", "nvidia-l4"), "gke-accelerator"),
    Wrong("gpu_count", 3, ("gpu_count is 3", "expected 1, 2, 4, 8 with nvidia-l4"), "0 to derive it"),
    Wrong("gpu_count", -1.0, ("gpu_count is -1", "expected 1, 2, 4, 8"), "0 to derive it"),
    Wrong("zone", "Zone A", ("zone is 'Zone A'", "expected a name such as us-central1-a"), "empty for any"),
    Wrong("engine_arguments", ["--model", "x"], ("engine_arguments has '--model'", "not yours"), "Remove --model"),
    Wrong("engine_arguments", [7], ("engine_arguments has 7", "expected a text"), "Put it in quotes"),
    Wrong(
        "environment", {"HF_TOKEN": "x"}, ("environment has 'HF_TOKEN'", "looks like a secret"), "Keep it in a Secret"
    ),
    Wrong("environment", {"A": 1}, ("environment has 'A': 1", "expected a name and a text"), "in quotes"),
    Wrong("strategy", "rolling", ("strategy is 'rolling'", "expected one of auto"), "Leave it at auto"),
    Wrong("keep_hours", -1.0, ("keep_hours is -1", "expected 0 to 168"), "1 is usual"),
    Wrong("keep_hours", float("nan"), ("keep_hours is nan", "expected 0 to 168"), "1 is usual"),
    Wrong("stopper_image", "python", ("stopper_image is 'python'", "an image with its version"), "python3"),
    Wrong("timeout_seconds", -1.0, ("timeout_seconds is -1", "expected 0 to 86400"), "0 to derive it"),
    Wrong("pod", {"memory": "lots"}, ("pod has memory 'lots'", "expected a quantity", "such as 64Gi"), "leave it out"),
    Wrong("pod", {"cpu": 200}, ("pod has cpu 200", "expected at most 95.5 cores", "g2-standard-96"), "Ask for less"),
    Wrong("served_model_name", "a b", ("served_model_name is 'a b'", "without spaces"), "Leave it empty"),
    Wrong(
        "service_account", "a@p.iam", ("service_account is 'a@p.iam'", "expected lower-case"), "not its Google account"
    ),
    Wrong("replicas", 0, ("replicas is 0", "expected 1 or more"), "at least one pod"),
    Wrong("max_replicas", 1.0, ("max_replicas is 1", "expected more than the 1 of replicas"), "0 for no autoscaler"),
    Wrong("node_selector", {"a b": "c"}, ("node_selector has 'a b': 'c'", "expected a label"), "--show-labels"),
    Wrong("node_selector", {"pool": 1}, ("node_selector has 'pool': 1", "and a text"), "in quotes"),
    Wrong("tolerations", ["x"], ("Entry 1 of tolerations is 'x'", "expected a mapping"), "Write it like"),
    Wrong(
        "tolerations", [{"key": "a", "operator": "Is"}], ("tolerations has operator 'Is'", "Exists or Equal"), "pod's"
    ),
    Wrong("tolerations", [{"keys": "a"}], ("tolerations has keys 'a'", "expected key"), "pod's specification"),
    Wrong("tolerations", [{"value": "a"}], ("tolerations has key None", "expected key"), "pod's specification"),
    Wrong("tolerations", [{"key": "a", "effect": "Go"}], ("has effect 'Go'", "NoSchedule"), "pod's specification"),
    Wrong("tolerations", [{"key": "a", "tolerationSeconds": 0.5}], ("tolerationSeconds 0.5", "whole"), "pod's"),
    Wrong(
        "questions", ["What?"], ("Question 1 is 'What?'", "expected at least a prompt"), "{prompt: ..., expect: ...}"
    ),
    Wrong("questions", [{"prompt": " "}], ("empty prompt",), "Write what the model is asked"),
    Wrong(
        "questions",
        [{"prompt": "a", "answer": "b"}],
        ("Question 1 has 'answer'", "expected expect"),
        "Correct the name",
    ),
    Wrong("questions", [{"prompt": "a", "expect": "("}], ("'a' expects '('", "no regex"), "set match to 'exact'"),
    Wrong("questions", [{"prompt": "a", "match": "near"}], ("match 'near'", "expected one of regex"), "Choose one"),
    Wrong("questions", [{"prompt": "a", "max_tokens": 0}], ("max_tokens 0", "expected 1 or more"), "Leave it out"),
    Wrong(
        "allowed_regression",
        -0.1,
        ("allowed_regression is -0.1", "expected a share of 0 to 10"),
        "0 to compare nothing",
    ),
    Wrong("min_context_length", -1, ("min_context_length is -1", "expected a number of tokens"), "leave it at 0"),
    Wrong("stage", "Stage One", ("'Stage One' is not a name of a stage", "expected small letters"), "`staging`"),
]
PROMOTION = [
    Wrong("commit_sha", "main", ("commit 'main'", "expected 40 hex digits"), "Copy the whole id"),
    Wrong("source_root", "", ("source_root is ''", "expected gs://BUCKET/PREFIX"), "address of a bucket"),
    Wrong("requires", ["Stage One"], ("'Stage One' is not a name of a stage",), "`staging`"),
    Wrong("requires", [1], ("requires has 1", "expected texts"), "Put it in quotes"),
]
PULL = [
    Wrong("model_id", "nobody/nothing", ("nobody/nothing is not on http://", "no token was given"), "case-sensitive"),
    Wrong("model_id", "", ("'' is not a model id",), "Write it as `org/name`"),
    Wrong("revision", " ", ("The revision of sandbox/tiny is ' '", "expected a branch, a tag"), "Write main"),
    Wrong("revision", "absent", ("'absent'",), "Choose a branch, a tag or a commit"),
    Wrong("token_secret", "hf_token", ("token's secret (8 characters)", "not a resource name"), "never put the token"),
    Wrong("allowed_licences", ["mit"], ("licence is 'apache-2.0'", "allowed are mit"), "change the policy"),
    Wrong("release_root", "", ("release root ''", "expected gs://BUCKET/PREFIX or a folder"), "address of a bucket"),
    Wrong("release_root", "s3://b/p", ("release root 's3://b/p'", "expected gs://"), "address of a bucket"),
]
CACHE = [
    Wrong(
        "cache_zones", ["europe-west4-a"], ("Zone europe-west4-a is not in", "US-CENTRAL1"), "Name zones of US-CENTRAL1"
    ),
]
RETIREMENT = [
    Wrong("name", "", ("name is ''", "expected the name of an endpoint"), "`streamway status`"),
    Wrong("name", "Bad Name", ("name is 'Bad Name'", "expected the name of an endpoint"), "`streamway status`"),
    Wrong(
        "namespace", "Bad NS", ("namespace is 'Bad NS'", "expected the name of a namespace"), "where the endpoint is"
    ),
    Wrong("release_root", "", ("release root ''", "expected gs://BUCKET/PREFIX"), "address of a bucket"),
    Wrong("cluster", "prod", ("cluster is 'prod', which names no cluster",), "projects/P/locations/L/clusters/C"),
    Wrong("cache_zones", ["mars"], ("'mars' is not the name of a zone",), "gcloud compute zones"),
    Wrong("cache_zones", ["europe-west4-a"], ("europe-west4-a is not in the location of gs://models",), "US-CENTRAL1"),
    Wrong("older_releases", True, ("older_releases is yes and delete_releases is no",), "Say yes to both"),
    Wrong("releases", [f"{ROOT}/org"], (f"{ROOT}/org is not a release under {ROOT}", "expected"), "`streamway status`"),
    Wrong("releases", [1], ("releases has 1", "expected texts"), "Put it in quotes"),
    Wrong("cache_wait_minutes", -5.0, ("cache_wait_minutes is -5", "expected 0 to 1440"), "Give it 90"),
]
# Yes or no is always one of the two, and what is allowed is no mistake.
NEVER_WRONG = {
    *("allow_remote_code", "cache_ingest_on_write", "spot", "warm_start", "chat_required"),
    *("delete_releases", "despite_unseen"),
}
TABLES = {
    "serve_model": [*FORM, *PULL, *CACHE],
    "promote_model": [*FORM, *PROMOTION, *CACHE],
    "retire_model": RETIREMENT,
}


def artifact(uri: str = "") -> SimpleNamespace:
    return SimpleNamespace(uri=uri, path="/dev/null", metadata={}, log_metric=lambda *_: None)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Hub, a bucket with a release, caches and a cluster, and this process pointed at all of them."""
    state = tmp_path_factory.mktemp("state")
    (state / "images.json").write_text(json.dumps([{"image": "example.com/engine-double:*", "path": str(DOUBLE)}]))
    share_authority(state)
    add_synthetic_models(state / "hub" / "repos")
    started = {
        "hub": (),
        "bucket": ("--buckets", "models=US-CENTRAL1"),
        "caches": (),
        "cluster": ("--images", str(state / "images.json")),
    }
    processes = []
    with pytest.MonkeyPatch.context() as pointed:
        try:
            for part, arguments in started.items():
                processes.append(start_part(part, state, *arguments))
                for name, value in announcement(part, state)["environment"].items():
                    pointed.setenv(name, value)
            pointed.setenv("GOOGLE_CLOUD_PROJECT", "project")
            storage.write_file(f"{RELEASE}config.json", b"{}")
            storage.write_file(f"{RELEASE.rstrip('/')}.manifest.json", b"{}")
            yield
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(20)


def refusal(component: str, **given: Any) -> StreamwayError:
    """Call a component as a pipeline does; it must refuse."""
    with pytest.raises(StreamwayError) as caught:
        getattr(components, component).python_func(**given)
    return caught.value


def assert_answers(error: StreamwayError, wrong: Wrong) -> None:
    place = 0
    for words in wrong.said:
        assert words in error.problem[place:], error.problem
        place = error.problem.index(words, place) + len(words)
    assert wrong.next_step in error.next_step, error.next_step
    assert error.exit_code > 1


def ids(table: list[Wrong]) -> dict[str, Any]:
    return {"argvalues": table, "ids": [f"{wrong.parameter}={wrong.value!r}"[:60] for wrong in table]}


GOOD_FORM = {"model_id": MODEL, "release_root": ROOT, "run_uri": "", "name": "tiny", "image": "example.com/engine:1"}
GOOD_PROMOTION = {**GOOD_FORM, "commit_sha": SHA, "source_root": ROOT, "requires": ["staging"]}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("wrong", **ids(FORM))
def test_the_form_is_judged_before_anything_is_moved(wrong: Wrong) -> None:
    assert_answers(refusal("check_parameters", **{**GOOD_FORM, wrong.parameter: wrong.value}), wrong)
    assert_answers(refusal("check_parameters", **{**GOOD_PROMOTION, wrong.parameter: wrong.value}), wrong)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("wrong", **ids(PROMOTION))
def test_the_form_of_a_promotion_is_judged_too(wrong: Wrong) -> None:
    assert_answers(refusal("check_parameters", **{**GOOD_PROMOTION, wrong.parameter: wrong.value}), wrong)


@pytest.mark.usefixtures("sandbox")
def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    filled_in = {"name": "vllm", "questions": ["What?"], "cache_ttl_hours": 200.0, "stage": "Stage One"}
    error = refusal("check_parameters", **{**GOOD_FORM, **filled_in, "run_uri": str(tmp_path)})
    first, *lines = error.problem.splitlines()
    assert first == "4 parameters are wrong:"
    assert [line[:3] for line in lines] == ["1. ", "2. ", "3. ", "4. "]
    for words in ("'Stage One'", "200 hours", "name is 'vllm'", "Question 1"):
        assert words in error.problem
    assert len(error.next_step.splitlines()) == 5
    record = json.loads((tmp_path / "check_parameters.json").read_text())
    assert (record["status"], record["error"]["exit_code"]) == ("failed", 2)


@pytest.mark.usefixtures("sandbox")
def test_a_good_form_changes_nothing(tmp_path: Path) -> None:
    before = storage.list_files("gs://models")
    whole = {
        "gpu_count": 2.0, "replicas": 1.0, "max_replicas": 3.0, "min_context_length": 2048.0, "stage": "staging",
        "zone": "us-central1-a", "cache_zones": ["us-central1-a", "cluster"], "served_model_name": "org/name:latest",
        "tolerations": [{"key": "team", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300.0}],
        "node_selector": {"cloud.google.com/compute-class": "gpus"}, "service_account": "reader",
        "questions": [{"prompt": "Capital of France?", "expect": "Paris"}], "allowed_regression": 0.5,
    }  # fmt: skip
    components.check_parameters.python_func(**{**GOOD_PROMOTION, **whole, "run_uri": str(tmp_path)})
    assert json.loads((tmp_path / "check_parameters.json").read_text())["status"] == "succeeded"
    assert storage.list_files("gs://models") == before


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("wrong", **ids(PULL))
def test_the_pull_refuses_what_it_was_given(wrong: Wrong) -> None:
    good = {"model_id": "sandbox/tiny", "release_root": ROOT, "run_uri": "", "snapshot": artifact()}
    assert_answers(refusal("pull_model", **{**good, wrong.parameter: wrong.value}), wrong)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("wrong", **ids(CACHE))
def test_a_zone_that_could_never_be_cached_is_refused(wrong: Wrong) -> None:
    good = {"run_uri": "", "size_bytes": 10, "release": artifact(RELEASE)}
    assert_answers(refusal("enable_cache", **good, zones=wrong.value), wrong)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("wrong", **ids(RETIREMENT))
def test_a_retirement_is_judged_before_anything_is_taken_away(wrong: Wrong) -> None:
    good = {"name": "tiny", "release_root": ROOT, "run_uri": ""}
    assert_answers(refusal("plan_retirement", **{**good, wrong.parameter: wrong.value}), wrong)


@pytest.mark.parametrize("name", PIPELINES)
def test_no_parameter_of_a_pipeline_is_without_its_refusal(name: str) -> None:
    parameters = set(PIPELINES[name].component_spec.inputs)
    refused = {wrong.parameter for wrong in TABLES[name]}
    assert parameters - refused - NEVER_WRONG == set()
    assert refused - parameters == set()
