"""What a model is asked, and how its answer is judged."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from streamway.errors import SettingsError

KINDS = ("chat", "completion", "embedding", "tool")
MATCHES = ("regex", "exact", "json_schema")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with the answer that is expected.

    Args:
        prompt: What is asked; for an embedding, the text.
        expect: The expected answer: a regular expression found anywhere without regard to case, the exact text,
            a JSON schema, or for a tool call the name of the tool; empty asks only for a sound answer.
        match: How `expect` is meant: `regex`, `exact` or `json_schema`.
        kind: `chat`, `completion`, `embedding` or `tool`.
        max_tokens: Longest answer.
    """

    prompt: str
    expect: str = ""
    match: str = "regex"
    kind: str = "chat"
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise SettingsError("A question has an empty prompt.", next_step="Write what the model is asked.")
        _one_of("kind", self.kind, KINDS, self.prompt)
        _one_of("match", self.match, MATCHES, self.prompt)
        if self.max_tokens < 1:
            raise SettingsError(
                f"The question {self.prompt!r} has max_tokens {self.max_tokens}, expected 1 or more.",
                next_step="Leave it out for 64.",
            )
        try:
            re.compile(self.expect if self.match == "regex" else "")
            if self.match == "json_schema":
                json.loads(self.expect)
        except (re.error, ValueError) as error:
            raise SettingsError(
                f"The question {self.prompt!r} expects {self.expect!r}, which is no {self.match}: {error}.",
                next_step="Correct it, or set match to 'exact' to compare texts.",
            ) from error

    def accepts(self, answer: str) -> bool:
        """Whether an answer is the expected one."""
        if not self.expect:
            return True
        if self.kind == "tool":
            # It may be called more than once; a tool of another name was never offered.
            return set(answer.split(", ")) == {self.expect}
        if self.match == "exact":
            return answer.strip() == self.expect.strip()
        if self.match == "json_schema":
            return _follows_schema(answer, json.loads(self.expect))
        return re.search(self.expect, answer, re.IGNORECASE | re.DOTALL) is not None


def parse_questions(entries: Sequence[Mapping[str, Any]]) -> tuple[Question, ...]:
    """Read questions as a configuration has them.

    Raises:
        SettingsError: an entry is wrong; names it.
    """
    return tuple(_parse(entry, number) for number, entry in enumerate(entries, start=1))


def _parse(entry: Any, number: int) -> Question:
    known = {field.name for field in fields(Question)}
    if not isinstance(entry, Mapping) or "prompt" not in entry:
        raise SettingsError(
            f"Question {number} is {entry!r}, expected at least a prompt.",
            next_step="Write it as {prompt: ..., expect: ...}.",
        )
    if unknown := sorted(set(entry) - known):
        raise SettingsError(
            f"Question {number} has {', '.join(map(repr, unknown))}, expected {', '.join(sorted(known))}.",
            next_step="Correct the name.",
        )
    values = dict(entry)
    if not isinstance(values.get("expect", ""), str):
        # A schema may be written as YAML rather than as text.
        values["expect"] = json.dumps(values["expect"])
    if "max_tokens" in values:
        values["max_tokens"] = int(values["max_tokens"])
    return Question(**values)


def _one_of(name: str, value: str, allowed: Sequence[str], prompt: str) -> None:
    if value not in allowed:
        raise SettingsError(
            f"The question {prompt!r} has {name} {value!r}, expected one of {', '.join(allowed)}.",
            next_step=f"Choose one, or leave {name} out for {allowed[0]!r}.",
        )


def _follows_schema(answer: str, schema: Any) -> bool:
    """Whether an answer is JSON of the right shape.

    Knows what expectations need: type, properties, required, items, enum, const, minimum, maximum, pattern.
    """
    text = re.sub(r"^\s*```(?:json)?|```\s*$", "", answer.strip())
    try:
        return _fits(json.loads(text), schema)
    except ValueError:
        return False


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def _fits(value: Any, schema: Any) -> bool:
    if not isinstance(schema, dict):
        return bool(schema)
    return (
        _has_type(value, schema.get("type"))
        and ("enum" not in schema or value in schema["enum"])
        and ("const" not in schema or value == schema["const"])
        and _in_range(value, schema)
        and _object_fits(value, schema)
        and all(_fits(item, schema.get("items", True)) for item in (value if isinstance(value, list) else ()))
    )


def _has_type(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return True
    names = wanted if isinstance(wanted, list) else [wanted]
    return any(
        isinstance(value, _TYPES.get(name, ())) and (name == "boolean" or not isinstance(value, bool)) for name in names
    )


def _in_range(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def _object_fits(value: Any, schema: dict[str, Any]) -> bool:
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        _fits(value[name], properties[name]) for name in properties if name in value
    )


# Asked where the caller has no question: any model can write it, and noise does not pass for it.
SOUND_ANSWER = Question(prompt="Write one sentence about the sea.")
