"""Everything that is started on Vertex AI, end to end: the services' clients, the real engine, and nobody watching.

One endpoint's life in order: submitted, scheduled, following the Hub, promoted by its commit, retired. The engine
starts three times: for the first commit, for the second one, and in production. Runs of what is served already take
seconds, and each way of starting one has its own: our schedule and Google's, Google's job, Kubeflow's client.
"""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform import PipelineJob, PipelineJobSchedule
from google.cloud.aiplatform_v1.types import PipelineState, Schedule
from grpc_roots import share_authority
from kfp import Client

from streamway import server, storage
from streamway.cache import list_caches
from streamway.cluster import connect
from streamway.launch.service import RunStatus, wait_for_run
from streamway.launch.vertex import VertexService
from streamway.report import RunJournal
from streamway.sandbox.hub_repository import add_commit
from streamway.settings import Settings
from streamway.storage import gates
from tests.end_to_end.conftest import ROOT, Outcome, Terminal, processes_of

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
STAGES = ("staging", "production")
ACCOUNT = "streamway@project.iam.gserviceaccount.com"
SIX_STEPS = ["pull-model", "convert-weights", "upload-model", "enable-cache", "deploy-server", "smoke-test"]
KINDS = ("deployments", "replicasets", "pods", "services", "configmaps", "poddisruptionbudgets", "serviceaccounts",
         "leases")  # fmt: skip
QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France? Answer with the name of the city."}],
    "max_tokens": 8,
    "temperature": 0,
}


@dataclass(frozen=True, kw_only=True)
class Cloud(Terminal):
    """A shell beside a sandbox with Vertex AI, and one configuration for each stage."""

    folder: Path

    def config(self, stage: str) -> str:
        return str(self.folder / f"{stage}.yaml")

    def ask_for(self, *arguments: str) -> Any:
        """Run a command that must succeed; return what it printed as JSON."""
        done = self.streamway(*arguments, "--json")
        assert done.code == 0, done.err
        return done.json

    def both_at_once(self, *arguments: str) -> list[Outcome]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda _: self.streamway(*arguments, "--json"), range(2)))

    def part(self, name: str, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
        """Ask a part of the sandbox for what only the sandbox has, such as its counters and its clock."""
        announced = json.loads((self.state_path / "sandbox" / f"{name}.json").read_text())
        url = announced.get("admin_url", announced["url"])
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{url}/sandbox/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        return json.loads(urllib.request.urlopen(request).read())

    def push(self, text: str) -> str:
        """Push a commit that changes nothing about the weights; return its id."""
        repositories = self.state_path / "sandbox" / "hub" / "repos"
        return add_commit(repositories, MODEL, {"CHANGES.md": text.encode()})

    def runs(self) -> set[str]:
        return {run.id for run in self.vertex.list_runs(limit=100)}

    def wait_for_new(self, before: set[str], *, count: int) -> set[str]:
        """Wait until there are so many runs that were not there before."""
        deadline = time.monotonic() + 60
        while len(new := self.runs() - before) < count:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return new

    def wait(self, run_id: str) -> RunStatus:
        return wait_for_run(self.vertex, run_id, timeout_seconds=600)

    @property
    def vertex(self) -> VertexService:
        return VertexService(location="us-central1")


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What two watchers made of a new commit: their looks, the run, and every run that there is because of it."""

    sha: str
    looks: list[Any]
    run: RunStatus
    started: set[str]


def write_configs(folder: Path) -> None:
    """Write the configuration of each stage: the sandbox's own, with what a person adds for two stages."""
    for stage in STAGES:
        config = yaml.safe_load((ROOT / "configs" / "sandbox.yaml").read_text())
        config["storage"]["release_root"] = f"gs://{stage}-models/serving"
        config["server"]["namespace"] = stage
        config["launch"] = {"service_account": ACCOUNT}
        config["promotion"] = {"stage": stage, "source_root": "gs://staging-models/serving", "requires": ["staging"]}
        config["sandbox"] = {
            "vertex": True,
            "gpu_count": len(STAGES),
            "buckets": [{"name": f"{name}-models"} for name in STAGES],
        }
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("vertex")
    write_configs(folder)
    made = Cloud(state_path=folder / "state", folder=folder)
    before = dict(os.environ)
    try:
        share_authority(made.state_path / "sandbox")
        up = made.streamway("sandbox", "up", made.config("staging"))
        assert up.code == 0, up.err
        os.environ.update(made.environment)
        yield made
    finally:
        os.environ.clear()
        os.environ.update(before)
        down = made.streamway("sandbox", "down")
    assert down.code == 0, down.err
    assert not processes_of(made.state_path)


@pytest.fixture(scope="module")
def submitted(cloud: Cloud) -> Any:
    return cloud.ask_for("submit", cloud.config("staging"), "--wait")


@pytest.fixture(scope="module")
def compiled(cloud: Cloud) -> Path:
    """What a person downloads or is given: the compiled pipeline, and nothing else of ours."""
    path = cloud.folder / "serve_model.yaml"
    assert cloud.streamway("compile", "serve_model", "-o", str(path), state=False).code == 0
    return path


@pytest.fixture(scope="module")
def new_job(cloud: Cloud, compiled: Path) -> Callable[[str], PipelineJob]:
    """Makes jobs as a notebook does, with Google's client alone."""
    aiplatform.init(
        project=os.environ["GOOGLE_CLOUD_PROJECT"],
        location="us-central1",
        api_endpoint=os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"],
        api_transport="rest",
        credentials=AnonymousCredentials(),
    )
    return lambda job_id: PipelineJob(
        display_name="From a notebook",
        template_path=str(compiled),
        job_id=job_id or None,
        pipeline_root="gs://staging-models/serving/.pipelines",
        parameter_values=Settings.load(Path(cloud.config("staging"))).parameters(),
    )


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """Two schedules of one endpoint, ours and one of Google's client, and the run that each of them has started."""

    ours: RunStatus
    googles: RunStatus
    googles_state: Schedule.State


@pytest.fixture(scope="module")
def scheduled(cloud: Cloud, submitted: Any, new_job: Callable[[str], PipelineJob]) -> Scheduled:
    """What became of two schedules in one night."""
    ours = cloud.ask_for("schedule", "create", cloud.config("staging"), "30 4 * * *", "--time-zone", "Europe/Berlin")
    googles = PipelineJobSchedule(pipeline_job=new_job(""), display_name="Nightly, from a notebook")
    googles.create(cron="TZ=Europe/Berlin 45 4 * * *", max_run_count=1, service_account=ACCOUNT)
    cloud.part("vertex", "clock", "POST", {"advance_seconds": 24 * 3600})
    fired = {run.schedule: run for run in map(cloud.wait, cloud.wait_for_new({submitted["id"]}, count=2))}
    cloud.ask_for("schedule", "delete", cloud.config("staging"), "smollm2")
    (listed,) = googles.list_jobs()
    assert listed.name == fired[googles.name].id
    return Scheduled(ours=fired[ours["id"]], googles=fired[googles.name], googles_state=googles.state)


@pytest.fixture(scope="module")
def launched(cloud: Cloud, scheduled: Scheduled, new_job: Callable[[str], PipelineJob]) -> PipelineJob:
    """A run of the compiled file that a data scientist has started from a notebook, without a line of ours."""
    job = new_job("from-a-notebook")
    # Before it submits, this client asks Google itself which project owns a bucket that it sees, and waits a minute for
    # the answer; so it sees none.
    with pytest.MonkeyPatch.context() as blind:
        blind.setenv("STORAGE_EMULATOR_HOST", os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"])
        job.submit()
    cloud.wait("from-a-notebook")
    return PipelineJob.get("from-a-notebook")


@pytest.fixture(scope="module")
def on_kubeflow(cloud: Cloud, launched: PipelineJob, compiled: Path) -> Any:
    """A run of the same file that Kubeflow's own client has started and waited for."""
    client = Client(host=os.environ["KF_PIPELINES_ENDPOINT"])
    started = client.create_run_from_pipeline_package(
        str(compiled),
        arguments=Settings.load(Path(cloud.config("staging"))).parameters(),
        run_name="From a client",
        experiment_name="streamway",
        pipeline_root="gs://staging-models/serving/.pipelines",
        service_account="pipeline-runner",
    )
    return client.wait_for_run_completion(started.run_id, timeout=600, sleep_duration=1)


@pytest.fixture(scope="module")
def followed(cloud: Cloud, on_kubeflow: Any) -> Followed:
    """What became of a new commit that two watchers saw at the same time."""
    before = cloud.runs()
    sha = cloud.push("A new commit.")
    watched = cloud.both_at_once("watch", cloud.config("staging"), "--once")
    looks = [look for outcome in watched for look in outcome.json]
    run_id = next(look["run"] for look in looks if look["run"])
    return Followed(sha=sha, looks=looks, run=cloud.wait(run_id), started=cloud.runs() - before)


@pytest.fixture(scope="module")
def promoted(cloud: Cloud, followed: Followed) -> Any:
    """The run that took the commit to production; the Hub counts from its start on."""
    cloud.part("hub", "counters", "DELETE")
    return cloud.ask_for("promote", cloud.config("production"), followed.sha, "--submit", "--wait")


@dataclass(frozen=True, kw_only=True)
class Retired:
    """What retirements said that they would do, and the runs that did it."""

    planned: dict[str, Any]
    runs: list[Any]


@pytest.fixture(scope="module")
def retired(cloud: Cloud, submitted: Any, promoted: Any) -> Retired:
    """The runs that took both endpoints away, with all that was ever published for them."""
    # A release that nothing in production has ever served: no cluster knows of it.
    gates.promote_release(
        model_id=MODEL,
        commit_sha=first_commit(submitted),
        source_root="gs://staging-models/serving",
        release_root="gs://production-models/serving",
        requires=["staging"],
    )
    everything = ("--caches", "--releases", "--older-releases")

    def retire(stage: str) -> Any:
        waiting = ("--submit", "--wait", "--cache-wait-minutes", "10")
        return cloud.ask_for("retire", cloud.config(stage), *everything, *waiting)

    planned = {stage: cloud.ask_for("retire", cloud.config(stage), *everything, "--dry-run") for stage in STAGES}
    with ThreadPoolExecutor(len(STAGES)) as pool:
        retiring = [pool.submit(retire, stage) for stage in STAGES]
        # Each of them waits for Cloud Storage, which takes an hour of the caches' clock.
        while not all(run.done() for run in retiring):
            if any(cache.state == "disabled" for stage in STAGES for cache in list_caches(f"{stage}-models")):
                cloud.part("caches", "clock", "POST", {"advance_seconds": 3600})
            time.sleep(0.5)
        return Retired(planned=planned, runs=[run.result() for run in retiring])


def answer(namespace: str) -> str:
    proxy = connect().service_proxy(namespace, "smollm2", 8000)
    response = proxy.request("POST", "/v1/chat/completions", body=QUESTION, timeout_seconds=60)
    return str(response.json()["choices"][0]["message"]["content"])


def metrics(job: PipelineJob, task: str, output: str) -> dict[str, float]:
    (found,) = (detail for detail in job.task_details if detail.task_name == task)
    (artifact,) = found.outputs[output].artifacts
    return dict(artifact.metadata)


def active_commit(namespace: str) -> str:
    status = server.read_status(name="smollm2", namespace=namespace)
    return next(revision.commit_sha for revision in status.revisions if revision.role == "active")


def journal(run_id: str, stage: str = "staging") -> RunJournal:
    return RunJournal.load(f"gs://{stage}-models/serving/.runs/{run_id}")


def first_commit(submitted: Any) -> str:
    pulled = journal(submitted["id"]).record("pull_model")
    assert pulled is not None
    return str(pulled.result["commit_sha"])


def moved_bytes(run: RunJournal) -> int:
    return sum(record.result.get("moved_bytes", 0) for record in run.records)


def report_of(run: RunJournal) -> str:
    return storage.read_file(f"{run.run_uri}/report.html").decode()


def paths(stage: str) -> list[str]:
    return [file.path for file in storage.list_files(f"gs://{stage}-models/serving")]


def test_a_submitted_run_serves_the_model(submitted: Any) -> None:
    assert (submitted["state"], submitted["step_error"]) == ("succeeded", {})
    assert submitted["service_account"] == ACCOUNT
    names = [task["name"] for task in submitted["tasks"]]
    assert [name for name in names if name != "check-parameters"] == [*SIX_STEPS, "record-passage", "report-run"]
    assert names.index("check-parameters") < names.index("convert-weights")
    assert {task["state"] for task in submitted["tasks"]} == {"succeeded"}
    assert "Paris" in answer("staging")


def test_its_report_names_the_verdict(submitted: Any) -> None:
    page = report_of(journal(submitted["id"]))
    assert '<p class="word">Serving</p>' in page
    assert "The endpoint <code>staging/smollm2</code> has answered correctly." in page
    assert "Paris" in page
    kept = [path for path in paths("staging") if path.startswith(f".pipelines/{submitted['id']}/report-run")]
    assert kept
    assert storage.read_file(f"gs://staging-models/serving/{kept[0]}").decode() == page


def assert_nothing_moved(run: RunJournal) -> None:
    assert run.failed is None
    names = [record.name.replace("_", "-") for record in run.records]
    assert names == ["check-parameters", *SIX_STEPS, "record-passage"]
    assert moved_bytes(run) == 0
    deployed = run.record("deploy_server")
    assert deployed is not None
    assert deployed.result["changed"] is False
    assert '<p class="word">Serving</p>' in report_of(run)


def test_a_schedule_fires_and_nothing_moves(submitted: Any, scheduled: Scheduled) -> None:
    assert (scheduled.ours.state, scheduled.ours.service_account) == ("succeeded", ACCOUNT)
    assert moved_bytes(journal(submitted["id"])) > 200e6
    assert_nothing_moved(journal(scheduled.ours.id))


def test_a_schedule_of_googles_own_client_fires_and_serves(scheduled: Scheduled) -> None:
    assert (scheduled.googles.state, scheduled.googles.service_account) == ("succeeded", ACCOUNT)
    assert scheduled.googles.id != scheduled.ours.id
    assert scheduled.googles_state == Schedule.State.COMPLETED
    assert_nothing_moved(journal(scheduled.googles.id))
    assert "Paris" in answer("staging")


def test_a_run_of_kubeflows_own_client_serves(on_kubeflow: Any) -> None:
    assert (on_kubeflow.state, on_kubeflow.error) == ("SUCCEEDED", None)
    assert on_kubeflow.service_account == "pipeline-runner"
    states = {task.display_name: task.state for task in on_kubeflow.run_details.task_details}
    assert {states[step] for step in (*SIX_STEPS, "record-passage", "report-run")} == {"SUCCEEDED"}
    # Kubeflow names a run's journal after its workflow.
    names = {path.split("/")[1] for path in paths("staging") if path.startswith(".runs/serve-model-")}
    (name,) = (name for name in names if name == f"serve-model-{on_kubeflow.run_id[:5]}")
    assert_nothing_moved(journal(name))


def test_the_compiled_file_runs_from_googles_own_client(launched: PipelineJob) -> None:
    assert launched.state == PipelineState.PIPELINE_STATE_SUCCEEDED
    assert {task.task_name for task in launched.task_details} >= {*SIX_STEPS, "report-run"}
    assert_nothing_moved(journal("from-a-notebook"))


def test_what_was_measured_is_shown_as_metrics_of_the_steps(submitted: Any, launched: PipelineJob) -> None:
    assert launched.state == PipelineState.PIPELINE_STATE_SUCCEEDED
    deployed = metrics(PipelineJob.get(submitted["id"]), "deploy-server", "timings")
    assert {"schedule_seconds", "stream_weights_seconds", "streamer_gib_per_second"} <= deployed.keys()
    asked = metrics(launched, "smoke-test", "metrics")
    assert 0 < asked["latency_p50_seconds"] <= asked["latency_p95_seconds"]
    assert asked["first_token_seconds"] > 0


def test_two_watchers_start_one_run_of_a_new_commit(followed: Followed) -> None:
    assert {look["commit_sha"] for look in followed.looks} == {followed.sha}
    outcomes = sorted(look["outcome"] for look in followed.looks)
    assert outcomes in (["started", "taken"], ["started", "unchanged"])
    assert followed.started == {followed.run.id}
    assert followed.run.state == "succeeded"


def test_the_new_commit_is_served(followed: Followed) -> None:
    assert active_commit("staging") == followed.sha
    assert "Paris" in answer("staging")
    page = report_of(journal(followed.run.id))
    assert followed.sha[:12] in page
    assert "Median before" in page


def test_a_promoted_commit_serves_in_production_without_the_hub(
    cloud: Cloud, followed: Followed, promoted: Any
) -> None:
    assert (promoted["state"], promoted["step_error"]) == ("succeeded", {})
    assert {task["name"] for task in promoted["tasks"][:2]} == {"promote-release", "check-parameters"}
    assert cloud.part("hub", "counters")["total"]["count"] == 0
    assert active_commit("production") == followed.sha
    assert "Paris" in answer("production")
    assert "Paris" in answer("staging")
    release = storage.verify_release(f"gs://production-models/serving/{MODEL}/{followed.sha}/")
    assert release.manifest.commit_sha == followed.sha
    assert moved_bytes(journal(promoted["id"], "production")) == 0


def test_retiring_says_before_what_goes(followed: Followed, submitted: Any, retired: Retired) -> None:
    first = first_commit(submitted)
    for stage in STAGES:
        root = f"gs://{stage}-models/serving/{MODEL}"
        assert set(retired.planned[stage]["releases"]) == {f"{root}/{followed.sha}", f"{root}/{first}"}
        assert (retired.planned[stage]["stays"], retired.planned[stage]["unseen"]) == ([], [])


def test_retiring_takes_everything_away(cloud: Cloud, retired: Retired) -> None:
    assert [run["state"] for run in retired.runs] == ["succeeded", "succeeded"]
    for stage in STAGES:
        found = cloud.kubectl("get", ",".join(KINDS), "-n", stage, "-o", "name")
        assert found.code == 0, found.err
        # Kubernetes puts these two into every namespace.
        assert set(found.out.split()) <= {"configmap/kube-root-ca.crt", "serviceaccount/default"}
        assert list_caches(f"{stage}-models") == ()
        left = paths(stage)
        # What was run is remembered, and so is what was seen on the Hub: a watcher must not bring the endpoint back.
        assert {path.split("/")[0] for path in left} <= {".runs", ".pipelines", ".watch"}
        assert [path for path in left if path.startswith(".runs/endpoints/")] == []


def test_the_report_of_a_retirement_says_what_is_gone(retired: Retired) -> None:
    page = report_of(journal(retired.runs[0]["id"]))
    assert '<p class="word">Retired</p>' in page
    assert "The caches of gs://staging-models are gone." in page
    assert "absent" in page


def test_a_watcher_does_not_bring_back_what_was_retired(cloud: Cloud, retired: Retired) -> None:
    before = cloud.runs()
    (look,) = cloud.ask_for("watch", cloud.config("staging"), "--once")
    assert look["outcome"] == "unchanged"
    assert cloud.runs() == before
