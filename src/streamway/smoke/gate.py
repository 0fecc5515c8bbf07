"""The smoke test: nothing serves until it has answered correctly, as the model and the release that were deployed."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import quantiles
from typing import Any

from streamway.cluster import RELEASE, ClusterConnection, connect
from streamway.errors import ApiServerError, ClusterError, SmokeTestError, WrongAnswerError
from streamway.smoke.asking import Endpoint, RefusedError, Reply
from streamway.smoke.questions import SOUND_ANSWER, Question
from streamway.smoke.report import Answer, Check, SmokeReport
from streamway.smoke.soundness import find_garbage
from streamway.storage.segments import Progress

logger = logging.getLogger("streamway.smoke")

_LOAD_WORKERS = 2
# Not every caller writes a report, so the error holds what is needed to judge it.
_MOST_TOLD = 4
# Where more is better, a fall is a regression; elsewhere a rise is.
_MORE_IS_BETTER = frozenset({"tokens_per_second"})
_COMPARED = ("first_token_seconds", "tokens_per_second", "latency_p50_seconds", "latency_p95_seconds")


def smoke_test(
    *,
    namespace: str,
    service: str,
    port: int,
    served_model_name: str,
    cluster: str = "",
    commit_sha: str = "",
    questions: Sequence[Question] = (),
    load_requests: int = 8,
    load_seconds: float = 20,
    min_context_tokens: int = 0,
    chat_required: bool = False,
    previous_metrics: Mapping[str, float] | None = None,
    allowed_regression: float = 0.0,
    timeout_seconds: float = 300,
    on_progress: Progress | None = None,
) -> SmokeReport:
    """Ask an endpoint through the API server, and judge what it answers.

    Args:
        namespace: Kubernetes namespace.
        service: Name of the Service.
        port: Its port.
        served_model_name: The name that the API must report.
        cluster: As in `streamway.cluster.connect`.
        commit_sha: The commit that every pod behind the Service must carry; empty for any.
        questions: Questions with expected answers; none asks for a sound sentence, or a sound embedding of a model that
            only embeds.
        load_requests: Requests of the small load that measures latency; 0 for none.
        load_seconds: After so long no more of them begin: the figures then say enough, however slow the engine is.
        min_context_tokens: Shortest context that the model must be served with.
        chat_required: Whether a model that cannot chat fails, instead of being asked for what it serves.
        previous_metrics: Figures of the release that served before.
        allowed_regression: By what share each figure may be worse than before; 0 does not compare.
        timeout_seconds: Longest time for the whole test.
        on_progress: Told (checks done, checks in all).

    Returns:
        The report of a test that passed.

    Raises:
        WrongAnswerError: something is wrong; carries the report.
        SmokeTestError: the endpoint could not be asked in time.
        ClusterUnreachableError: the cluster does not answer.
    """
    connection = connect(cluster)
    test = _Test(
        connection=connection,
        namespace=namespace,
        service=service,
        served_model_name=served_model_name,
        commit_sha=commit_sha,
        chat_required=chat_required,
        endpoint=Endpoint(
            connection.service_proxy(namespace, service, int(port)),
            model=served_model_name,
            deadline=time.monotonic() + timeout_seconds,
        ),
    )
    asked = tuple(questions) or (SOUND_ANSWER,)
    stages: list[Callable[[], None]] = [
        test.check_model,
        lambda: test.check_context(min_context_tokens),
        test.check_release,
        *(lambda question=question: test.check_answer(question) for question in asked),
        lambda: test.check_stream(asked[0]),
        lambda: test.measure_load(asked[0], load_requests, load_seconds),
        lambda: test.compare(previous_metrics or {}, allowed_regression),
    ]
    for number, stage in enumerate(stages, start=1):
        stage()
        if on_progress is not None:
            on_progress(number, len(stages))
        if test.hopeless:
            break
    return _conclude(test.report())


def _conclude(report: SmokeReport) -> SmokeReport:
    if report.passed:
        logger.info("smoke test passed: %d checks, %d answers", len(report.checks), len(report.answers))
        return report
    told, left = report.failures[:_MOST_TOLD], len(report.failures) - _MOST_TOLD
    found = " ".join(f"{check.name}: expected {check.expected}, found {check.found}." for check in told)
    more = f" ({left} more {'check' if left == 1 else 'checks'} failed.)" if left > 0 else ""
    raise WrongAnswerError(
        f"{report.served_model_name} behind {report.namespace}/{report.service} fails its smoke test: {found}{more}",
        next_step="Compare these answers with the model's card; send this revision no traffic until they are right."
        if any(not answer.ok for answer in report.answers)
        else "Correct what was deployed, or what is expected of it.",
        report=report,
    )


@dataclass
class _Test:
    """A smoke test under way."""

    connection: ClusterConnection
    endpoint: Endpoint
    namespace: str
    service: str
    served_model_name: str
    commit_sha: str
    chat_required: bool
    checks: list[Check] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    hopeless: bool = False
    _models: list[dict[str, Any]] = field(default_factory=list)
    _serves: str = "chat"

    def report(self) -> SmokeReport:
        return SmokeReport(
            served_model_name=self.served_model_name,
            commit_sha=self.commit_sha,
            service=self.service,
            namespace=self.namespace,
            checks=tuple(self.checks),
            answers=tuple(self.answers),
            metrics=dict(self.metrics),
            notes=tuple(self.notes),
            latencies_seconds=tuple(self.latencies),
        )

    def check_model(self) -> None:
        began = time.monotonic()
        try:
            self._models = self.endpoint.models()
        except RefusedError as error:
            self._record("the API lists its models", False, "HTTP 200", str(error), began)
            self.hopeless = True
            return
        names = [str(entry.get("id")) for entry in self._models]
        ok = self.served_model_name in names
        self._record("the right model is served", ok, self.served_model_name, ", ".join(names) or "none", began)
        self.hopeless = not ok

    def check_context(self, min_tokens: int) -> None:
        length = self.endpoint.context_tokens(self._entry())
        if length is None and not min_tokens:
            return
        ok = isinstance(length, int) and length >= max(1, min_tokens)
        wanted = f"at least {max(1, min_tokens)} tokens"
        self._record("the context is long enough", ok, wanted, f"{length} tokens", time.monotonic())
        self.metrics["max_model_len"] = float(length or 0)

    def check_release(self) -> None:
        if not self.commit_sha:
            return
        began = time.monotonic()
        found = _releases(self.connection, self.namespace, self.service)
        ok = found == {self.commit_sha}
        shown = ", ".join(sorted(sha or "a pod without a release" for sha in found)) or "no pod"
        self._record("every pod carries the release", ok, self.commit_sha, shown, began)
        root = self.endpoint.source(self._entry())
        if root.startswith("gs://"):
            self._record("the engine loaded the release", self.commit_sha in root, self.commit_sha, root, began)

    def check_answer(self, question: Question) -> None:
        began = time.monotonic()
        name = f"answers {question.prompt!r}"
        try:
            question, reply = self._ask(question)
        except RefusedError as error:
            self._record(name, False, _wanted(question), str(error), began)
            self._keep_answer(question, Reply(**_NOTHING, seconds=time.monotonic() - began), ok=False)
            return
        self._judge(name, question, reply, began)

    def check_stream(self, question: Question) -> None:
        began = time.monotonic()
        question = self._usable(question)
        if question.kind not in {"chat", "completion"}:
            return
        name = f"streams its answer to {question.prompt!r}"
        try:
            reply = self.endpoint.stream(question)
        except RefusedError as error:
            self._record(name, False, _wanted(question), str(error), began)
            return
        if not reply.finished:
            self._record(name, False, "a stream that ends with [DONE]", f"it broke off after {reply.text!r}", began)
            return
        self._judge(name, question, reply, began, streamed=True)
        self.metrics["first_token_seconds"] = round(reply.first_token_seconds, 4)
        self.metrics["tokens_per_second"] = round(reply.tokens_per_second, 3)

    def measure_load(self, question: Question, requests: int, most_seconds: float) -> None:
        if requests < 1 or self._failed():
            return
        began = time.monotonic()
        question = replace(self._usable(question), max_tokens=min(question.max_tokens, 16))

        def one(_number: int) -> float | str | None:
            if time.monotonic() - began > most_seconds:
                return None
            try:
                return self.endpoint.ask(question).seconds
            except (RefusedError, SmokeTestError) as error:
                return str(error)

        with ThreadPoolExecutor(_LOAD_WORKERS) as pool:
            results = [result for result in pool.map(one, range(requests)) if result is not None]
        seconds = [result for result in results if isinstance(result, float)]
        errors = [result for result in results if isinstance(result, str)]
        found = f"{len(seconds)} answers" + (f"; {errors[0]}" if errors else "")
        self._record(f"answers {len(results)} requests, two at a time", not errors, "no failure", found, began)
        self._measure(seconds, time.monotonic() - began)

    def compare(self, before: Mapping[str, float], allowed: float) -> None:
        if not allowed:
            return
        for name in _COMPARED:
            if name not in before or name not in self.metrics or before[name] <= 0:
                continue
            now, then = self.metrics[name], before[name]
            worse = then / max(now, 1e-9) - 1 if name in _MORE_IS_BETTER else now / then - 1
            self._record(
                f"{name} is not much worse than before",
                worse <= allowed,
                f"{then:g}, {allowed:.0%} worse at most",
                f"{now:g} ({max(worse, 0):.0%} worse)",
                time.monotonic(),
            )

    def _measure(self, seconds: list[float], whole: float) -> None:
        if not seconds:
            return
        self.latencies = [round(value, 4) for value in seconds]
        cuts = quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else seconds * 19
        self.metrics |= {
            "load_requests": float(len(seconds)),
            "latency_p50_seconds": round(cuts[9], 4),
            "latency_p95_seconds": round(cuts[18], 4),
            "requests_per_second": round(len(seconds) / whole, 3) if whole else 0.0,
        }

    def _ask(self, question: Question) -> tuple[Question, Reply]:
        asked = self._usable(question)
        try:
            return asked, self.endpoint.ask(asked)
        except RefusedError as error:
            instead = _ask_instead(question, asked, error)
            if not instead or self.chat_required:
                raise
        self._serves = instead
        self.notes.append(_NOTES[instead])
        logger.info("%s", _NOTES[instead])
        return self._ask(question)

    def _usable(self, question: Question) -> Question:
        """The question as this endpoint can be asked it."""
        if question.kind != "chat" or self._serves == "chat":
            return question
        if self._serves == "embedding":
            return replace(question, kind="embedding") if question == SOUND_ANSWER else question
        return replace(question, kind="completion", prompt=f"Question: {question.prompt}\nAnswer:")

    def _judge(self, name: str, question: Question, reply: Reply, began: float, *, streamed: bool = False) -> None:
        problem = _unsound(question, reply)
        ok = not problem and (question.kind == "embedding" or question.accepts(reply.text))
        shown = _shown(question, reply)
        self._record(name, ok, _wanted(question), f"{shown} ({problem})" if problem else shown, began)
        self._keep_answer(question, reply, ok=ok, streamed=streamed)

    def _keep_answer(self, question: Question, reply: Reply, *, ok: bool, streamed: bool = False) -> None:
        self.answers.append(
            Answer(
                prompt=question.prompt,
                kind=question.kind,
                text=reply.text[:4000],
                expect=question.expect,
                ok=ok,
                streamed=streamed,
                seconds=round(reply.seconds, 4),
                tokens=reply.tokens,
            )
        )

    def _record(self, name: str, ok: bool, expected: str, found: str, began: float) -> None:
        seconds = round(time.monotonic() - began, 4)
        self.checks.append(Check(name=name, ok=ok, expected=expected, found=found, seconds=seconds))
        logger.info("%s: %s%s", "ok" if ok else "FAILED", name, "" if ok else f"; found {found}")

    def _failed(self) -> bool:
        return any(not check.ok for check in self.checks)

    def _entry(self) -> dict[str, Any]:
        return next((entry for entry in self._models if entry.get("id") == self.served_model_name), {})


_NOTES = {
    "completion": "The model has no chat template; it was asked for completions instead.",
    "embedding": "The model serves no chat; it was asked for an embedding instead.",
}
_NOTHING: dict[str, Any] = {"text": "", "first_token_seconds": 0.0, "tokens": 0, "pieces": 0, "finished": ""}


def _releases(connection: ClusterConnection, namespace: str, service: str) -> set[str]:
    """Commits of the pods that a Service selects, as their annotations say."""
    base = f"/api/v1/namespaces/{namespace}"
    try:
        selector = connection.get(f"{base}/services/{service}")["spec"].get("selector") or {}
    except ApiServerError as error:
        raise SmokeTestError(
            f"The Service {namespace}/{service} cannot be read: {error.problem}",
            next_step="Deploy the server first, or correct the name.",
        ) from error
    if not selector:
        raise ClusterError(
            f"The Service {namespace}/{service} selects no pods, so nothing can be said about what it serves.",
            next_step="Give the name of the endpoint's own Service.",
        )
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    pods = connection.get(f"{base}/pods", {"labelSelector": labels}).get("items") or ()
    return {
        str((pod["metadata"].get("annotations") or {}).get(RELEASE, ""))
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") not in {"Failed", "Succeeded"}
    }


def _ask_instead(question: Question, asked: Question, error: RefusedError) -> str:
    """The kind of question to go on with after a refusal; empty where the refusal is the answer.

    Only who asks nothing in particular is content with an embedding.
    """
    if asked.kind != "chat":
        return ""
    if error.lacks_chat_template:
        return "completion"
    return "embedding" if question == SOUND_ANSWER and error.lacks_route else ""


def _unsound(question: Question, reply: Reply) -> str:
    if question.kind == "tool":
        return "" if reply.text else "no tool was called"
    if question.kind == "embedding":
        return _bad_vector(reply.text, question.expect)
    if not reply.text.strip() and reply.finished == "length":
        return "the answer is empty: every token went into reasoning; allow more with max_tokens"
    return find_garbage(reply.text, prompt=question.prompt, expected=bool(question.expect))


def _bad_vector(text: str, expect: str) -> str:
    vector = json.loads(text)
    if not vector or not all(isinstance(value, int | float) and math.isfinite(value) for value in vector):
        return "the embedding is empty or not finite"
    if len(set(vector)) == 1:
        return "the embedding has the same value everywhere"
    if expect and str(len(vector)) != expect:
        return f"the embedding has {len(vector)} dimensions"
    return ""


def _wanted(question: Question) -> str:
    if not question.expect:
        return "a sound answer"
    if question.kind == "tool":
        return f"a call of {question.expect!r}"
    words = {"regex": "a match of", "exact": "exactly", "json_schema": "JSON that follows"}[question.match]
    return f"{words} {question.expect!r}"


def _shown(question: Question, reply: Reply) -> str:
    if question.kind == "embedding":
        return f"{len(json.loads(reply.text))} numbers"
    return repr(reply.text[:300])
