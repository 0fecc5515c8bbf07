"""The gate: what passes, what fails, and what is only not ready yet."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from streamway import smoke
from streamway.errors import ClusterError, ClusterPermissionError, SmokeTestError, WrongAnswerError
from streamway.smoke import Question, SmokeReport

SHA = "0123456789abcdef0123456789abcdef01234567"
FRANCE = Question(prompt="What is the capital of France?", expect=r"\bParis\b")
Engine = Callable[..., Any]


def run(**settings: Any) -> SmokeReport:
    defaults: dict[str, Any] = {
        "namespace": "models",
        "service": "tiny",
        "port": 8000,
        "served_model_name": "org/tiny",
        "questions": (FRANCE,),
        "load_requests": 4,
        "timeout_seconds": 20,
    }
    return smoke.smoke_test(**{**defaults, **settings})


def failing(**settings: Any) -> WrongAnswerError:
    with pytest.raises(WrongAnswerError) as caught:
        run(**settings)
    assert not caught.value.report.passed
    return caught.value


def test_a_correct_model_passes_every_check(engine: Engine) -> None:
    engine()

    report = run(commit_sha=SHA)

    assert report.verdict == "passed"
    assert "Paris" in report.streamed_answer
    assert [answer.streamed for answer in report.answers] == [False, True]
    assert {"first_token_seconds", "tokens_per_second", "latency_p50_seconds", "latency_p95_seconds"} <= set(
        report.metrics
    )
    assert report.metrics["max_model_len"] == 2048


def test_the_context_is_what_sglang_can_hold_and_not_what_its_model_could(engine: Engine) -> None:
    engine(sglang='{"max_total_num_tokens": 1000}')

    error = failing(min_context_tokens=2048)

    assert "expected at least 2048 tokens, found 1000 tokens" in error.problem
    assert run().metrics["max_model_len"] == 1000


def test_sglang_says_elsewhere_which_release_it_loaded(engine: Engine) -> None:
    engine(sglang='{"model_path": "gs://models/prefix/org/tiny/another/"}')

    assert "the engine loaded the release: expected 0123456789abcdef" in failing(commit_sha=SHA).problem


def test_progress_counts_the_checks(engine: Engine) -> None:
    engine()
    told: list[tuple[int, int]] = []

    run(on_progress=lambda done, total: told.append((done, total)))

    assert told[-1][0] == told[-1][1] == len(told)


def test_a_wrong_answer_fails_and_the_report_keeps_it(engine: Engine) -> None:
    engine({"": "The capital of France is Berlin."})

    error = failing()

    assert "'What is the capital of France?'" in error.problem
    assert r"expected a match of '\\bParis\\b'" in error.problem
    assert "found 'The capital of France is Berlin.'" in error.problem
    assert error.report.answers[0].text == "The capital of France is Berlin."


def test_the_error_holds_what_is_to_be_compared_because_there_may_be_no_report(engine: Engine) -> None:
    engine({"France": "Berlin", "Italy": "Madrid", "Spain": "Madrid", "": "na"})
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Kenya": "Nairobi"}

    error = failing(questions=[Question(prompt=f"Capital of {of}?", expect=city) for of, city in capitals.items()])

    assert "'Capital of France?': expected a match of 'Paris', found 'Berlin'." in error.problem
    assert "'Capital of Italy?': expected a match of 'Rome', found 'Madrid'." in error.problem
    assert "Spain" not in error.problem
    # The first one is asked as a stream too.
    assert error.problem.endswith("(1 more check failed.)")
    assert error.next_step.startswith("Compare these answers with the model's card")
    assert "report" not in str(error)


def test_what_is_wrong_but_no_answer_is_not_to_be_compared_with_a_model_card(engine: Engine) -> None:
    engine()

    assert failing(min_context_tokens=4096).next_step == "Correct what was deployed, or what is expected of it."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "the answer is empty"),
        ("!", "a single character"),
        ("!!!!!!!!!!!!!!!!!!!!", "repeats '!' over and over"),
        ("the the the the the", "repeats 'the' over and over"),
        ("море широкое и синее", "mostly Cyrillic letters"),
    ],
)
def test_garbage_fails_without_any_expected_answer(engine: Engine, answer: str, reason: str) -> None:
    engine({"": answer})

    error = failing(questions=())

    assert reason in error.problem


def test_another_model_behind_the_name_fails(engine: Engine) -> None:
    engine(model="org/other")

    error = failing()

    assert "expected org/tiny, found org/other" in error.problem


def test_another_release_behind_the_service_fails(engine: Engine) -> None:
    cluster = engine()
    cluster.releases = [SHA, "f" * 40]

    error = failing(commit_sha=SHA)

    assert "every pod carries the release" in error.problem
    assert "f" * 40 in error.problem


def test_an_engine_that_loaded_another_release_fails(engine: Engine) -> None:
    engine(root="gs://models/prefix/org/tiny/" + "e" * 40)

    assert "the engine loaded the release" in failing(commit_sha=SHA).problem


def test_a_context_shorter_than_needed_fails(engine: Engine) -> None:
    engine()

    assert "expected at least 4096 tokens, found 2048 tokens" in failing(min_context_tokens=4096).problem


def test_a_busy_engine_is_asked_again(engine: Engine) -> None:
    cluster = engine(busy="2")

    assert run().passed
    assert cluster.requests.count("/v1/chat/completions") >= 4


def test_no_endpoint_in_time_is_not_a_wrong_answer(cluster: Any) -> None:
    with pytest.raises(SmokeTestError) as caught:
        run(timeout_seconds=1)

    assert not isinstance(caught.value, WrongAnswerError)
    assert "no endpoints available" in caught.value.problem


def test_a_service_that_is_not_there_is_no_wrong_answer(engine: Engine) -> None:
    engine()

    with pytest.raises(ClusterError) as caught:
        run(service="nothing")

    assert not isinstance(caught.value, WrongAnswerError)


def test_a_right_that_is_missing_is_no_wrong_answer(cluster: Any) -> None:
    cluster.proxy_status = 403

    with pytest.raises(ClusterPermissionError) as caught:
        run()

    assert "services/proxy" in caught.value.problem


def test_a_stream_that_ends_in_an_error_says_which(engine: Engine) -> None:
    engine(stream_error="the KV cache is gone")

    assert "the KV cache is gone" in failing().problem


def test_a_model_without_chat_template_is_asked_for_completions(engine: Engine) -> None:
    engine(no_template="1")

    report = run()

    assert report.notes == ("The model has no chat template; it was asked for completions instead.",)
    assert {answer.kind for answer in report.answers} == {"completion"}


def test_a_model_without_chat_template_fails_where_chat_is_required(engine: Engine) -> None:
    engine(no_template="1")

    assert "chat template" in failing(chat_required=True).problem


@pytest.mark.parametrize("refusal", ["no route", "The model does not support Chat Completions API"])
def test_a_model_that_only_embeds_is_asked_for_an_embedding_where_nothing_else_is_asked(
    engine: Engine, refusal: str
) -> None:
    engine({"": "[0.1, 0.2, -0.3]"}, only_embeds=refusal)

    report = run(questions=())

    assert report.notes == ("The model serves no chat; it was asked for an embedding instead.",)
    assert [(answer.kind, answer.streamed) for answer in report.answers] == [("embedding", False)]
    assert report.metrics["load_requests"] == 4


def test_a_model_that_only_embeds_must_embed_soundly(engine: Engine) -> None:
    engine({"": "[0.0, 0.0, 0.0]"}, only_embeds="no route")

    assert "same value everywhere" in failing(questions=()).problem


@pytest.mark.parametrize("settings", [{}, {"questions": (), "chat_required": True}])
def test_a_model_that_only_embeds_fails_where_chat_is_asked_for(engine: Engine, settings: dict[str, Any]) -> None:
    cluster = engine({"": "[0.1, 0.2, -0.3]"}, only_embeds="no route")

    assert "HTTP 404: Not Found" in failing(**settings).problem
    assert "/v1/embeddings" not in cluster.requests


def test_a_model_that_chats_is_not_let_off_with_an_embedding(engine: Engine) -> None:
    cluster = engine({"": "na " * 40})

    assert "over and over" in failing(questions=()).problem
    assert "/v1/embeddings" not in cluster.requests


def test_a_stream_that_breaks_off_fails(engine: Engine) -> None:
    engine(break_stream="1")

    assert "a stream that ends with [DONE]" in failing().problem


@pytest.mark.parametrize(
    "reply",
    [
        '{"choices": ["Paris"]}',
        '{"choices": [{"message": "Paris", "delta": "Paris"}]}',
        '{"choices": [{"message": {"content": "Paris"}, "delta": {}}], "usage": "none"}',
        '["Paris"]',
    ],
)
def test_an_answer_of_another_shape_is_wrong_and_no_accident(engine: Engine, reply: str) -> None:
    engine(reply=reply)

    error = failing()

    assert "the answer is not what the API promises" in error.problem
    assert not any(check.ok for check in error.report.checks if "answer" in check.name)


def test_exact_and_schema_expectations(engine: Engine) -> None:
    engine({"two and two": "4", "as JSON": '```json\n{"city": "Paris"}\n```'})
    schema = '{"type": "object", "required": ["city"], "properties": {"city": {"const": "Paris"}}}'

    report = run(
        questions=(
            Question(prompt="What is two and two?", expect="4", match="exact"),
            Question(prompt="The capital of France as JSON", expect=schema, match="json_schema"),
        )
    )

    assert report.passed


def test_embeddings_are_judged_as_vectors(engine: Engine) -> None:
    engine({"": "[0.1, 0.2, -0.3]"})
    question = Question(prompt="the sea", kind="embedding", expect="3")

    assert run(questions=(question,)).passed

    wrong = Question(prompt="the sea", kind="embedding", expect="768")
    assert "has 3 dimensions" in failing(questions=(wrong,)).problem


def test_a_constant_embedding_is_garbage(engine: Engine) -> None:
    engine({"": "[0.0, 0.0, 0.0]"})

    error = failing(questions=(Question(prompt="the sea", kind="embedding"),))

    assert "same value everywhere" in error.problem


def test_a_tool_must_be_called(engine: Engine) -> None:
    engine({"weather": "get_weather", "": ""})
    question = Question(prompt="What is the weather?", kind="tool", expect="get_weather")

    assert run(questions=(question,)).passed
    other = Question(prompt="Sing a song", kind="tool", expect="get_weather")
    assert "no tool was called" in failing(questions=(other,)).problem


@pytest.mark.parametrize("called", ["sing", "get_weather_forecast"])
def test_another_tool_than_the_one_that_is_asked_for_fails(engine: Engine, called: str) -> None:
    engine({"": called})
    question = Question(prompt="What is the weather?", kind="tool", expect="get_weather")

    assert f"expected a call of 'get_weather', found '{called}'" in failing(questions=(question,)).problem


@pytest.mark.parametrize("arguments", ['{"city": "Par', "", '["Paris"]', "Paris"])
def test_a_tool_that_is_called_with_broken_arguments_fails(engine: Engine, arguments: str) -> None:
    engine({"": "get_weather"}, tool_arguments=arguments)
    question = Question(prompt="What is the weather?", kind="tool", expect="get_weather")

    error = failing(questions=(question,))

    assert f"calls 'get_weather' with {arguments!r}, expected a JSON object" in error.problem
    assert [answer.ok for answer in error.report.answers] == [False]


def test_a_completion_is_asked_for_where_a_question_says_so(engine: Engine) -> None:
    cluster = engine({"The capital of France is": "Paris."})
    question = Question(prompt="The capital of France is", kind="completion", expect=r"^Paris\.$", match="regex")

    report = run(questions=(question,))

    assert [(answer.kind, answer.text, answer.streamed) for answer in report.answers] == [
        ("completion", "Paris.", False),
        ("completion", "Paris.", True),
    ]
    assert {path for path in cluster.requests if path != "/v1/models"} == {"/v1/completions"}
    assert {body["prompt"] for body in cluster.bodies} == {"The capital of France is"}


def test_a_wrong_completion_fails(engine: Engine) -> None:
    engine({"The capital of France is": "Berlin."})
    question = Question(prompt="The capital of France is", kind="completion", expect="Paris")

    assert "expected a match of 'Paris', found 'Berlin.'" in failing(questions=(question,)).problem


def test_the_first_token_comes_before_the_whole_answer(engine: Engine) -> None:
    engine(token_seconds="0.05")

    report = run(load_requests=0)

    (streamed,) = (answer for answer in report.answers if answer.streamed)
    assert 0 < report.metrics["first_token_seconds"] < streamed.seconds
    # The rate is that after the first token: five more tokens, each after a pause.
    after_first = streamed.seconds - report.metrics["first_token_seconds"]
    assert report.metrics["tokens_per_second"] == pytest.approx((streamed.tokens - 1) / after_first, rel=0.01)


def test_the_load_is_so_many_short_requests_two_at_a_time(engine: Engine) -> None:
    # The first two are the question and its stream.
    cluster = engine(seconds="[0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]")

    report = run(load_requests=7, questions=(Question(prompt=FRANCE.prompt, expect="Paris", max_tokens=40),))

    assert [body["max_tokens"] for body in cluster.bodies] == [40, 40, *[16] * 7]
    assert cluster.most_at_once == 2
    assert report.metrics["load_requests"] == len(report.latencies_seconds) == 7
    assert "answers 7 requests, two at a time" in [check.name for check in report.checks]


def test_an_engine_that_answers_slowly_does_not_hold_the_load_for_long(engine: Engine) -> None:
    # The first two are the question and its stream.
    cluster = engine(seconds=json.dumps([0, 0, *[2] * 8]))

    report = run(load_requests=8, load_seconds=1)

    assert len(cluster.bodies) == 2 + 2, "requests were begun although the time was over"
    assert report.passed
    assert report.metrics["load_requests"] == len(report.latencies_seconds) == 2
    assert "answers 2 requests, two at a time" in [check.name for check in report.checks]


def test_half_of_the_load_is_answered_within_the_median(engine: Engine) -> None:
    engine(seconds="[0, 0, 0.0, 0.05, 0.1, 0.2, 0.4]")

    report = run(load_requests=5)

    ordered = sorted(report.latencies_seconds)
    assert report.metrics["latency_p50_seconds"] == ordered[2]
    assert ordered[3] <= report.metrics["latency_p95_seconds"] <= ordered[4]
    assert report.metrics["latency_p50_seconds"] < report.metrics["latency_p95_seconds"]


FIGURES = [
    ("first_token_seconds", 1e-6, 1000.0),
    ("tokens_per_second", 1e9, 1e-6),
    ("latency_p50_seconds", 1e-6, 1000.0),
    ("latency_p95_seconds", 1e-6, 1000.0),
]


@pytest.mark.parametrize(("figure", "much_better", "much_worse"), FIGURES)
def test_each_figure_is_compared_with_the_release_before(
    engine: Engine, figure: str, much_better: float, much_worse: float
) -> None:
    engine()

    error = failing(previous_metrics={figure: much_better}, allowed_regression=0.5)

    assert [check.name for check in error.report.failures] == [f"{figure} is not much worse than before"]
    assert "50% worse at most" in error.problem
    assert run(previous_metrics={figure: much_worse}, allowed_regression=0.5).passed
    assert run(previous_metrics={figure: much_better}, allowed_regression=0).passed
