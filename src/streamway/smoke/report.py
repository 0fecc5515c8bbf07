"""What a smoke test found, as plain values that can be written anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked.

    Args:
        name: What, as a short sentence.
        ok: Whether it held.
        expected: What was expected.
        found: What was found.
        seconds: How long it took.
    """

    name: str
    ok: bool
    expected: str
    found: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the model.

    Args:
        prompt: What it was asked.
        kind: How: `chat`, `completion`, `embedding` or `tool`.
        text: What it answered.
        expect: What was expected; empty for any sound answer.
        ok: Whether that was accepted.
        streamed: Whether it came as a stream.
        seconds: How long the whole answer took.
        tokens: Tokens of the answer, as the engine counts them; 0 where it does not say.
    """

    prompt: str
    kind: str
    text: str
    expect: str
    ok: bool
    streamed: bool
    seconds: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class SmokeReport:
    """The whole of a smoke test.

    Args:
        served_model_name: The model that was asked.
        commit_sha: The commit that was expected behind it.
        service: The Service that was asked.
        namespace: Its namespace.
        checks: Everything that was checked, in order.
        answers: Everything that was answered.
        metrics: Seconds, tokens and rates, by name.
        notes: What a reader should know, such as a missing chat template.
        latencies_seconds: How long each request of the small load took, in the order they were asked.
    """

    served_model_name: str
    commit_sha: str
    service: str
    namespace: str
    checks: tuple[Check, ...]
    answers: tuple[Answer, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    latencies_seconds: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def verdict(self) -> str:
        return "passed" if self.passed else "failed"

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)

    @property
    def streamed_answer(self) -> str:
        return next((answer.text for answer in self.answers if answer.streamed), "")


def summarise(report: SmokeReport) -> str:
    """Say in a few words how a test went, for an annotation or a line."""
    first = report.metrics.get("first_token_seconds")
    speed = f", first token after {first:.2f} s" if first is not None else ""
    return f"{report.verdict}: {len(report.checks)} checks, {len(report.answers)} answers{speed}"
