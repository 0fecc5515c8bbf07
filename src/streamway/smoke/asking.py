"""Asking an OpenAI endpoint through the cluster: one question at a time, telling "not yet" from "wrong"."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from streamway.cluster import ProxyResponse, ServiceProxy
from streamway.errors import ClusterUnreachableError, SmokeTestError
from streamway.smoke.questions import Question

logger = logging.getLogger("streamway.smoke")

T = TypeVar("T")

# Answers that a healthy rollout gives for a moment: no endpoint behind the Service yet, a connection that was refused
# or cut, an engine that is busy.
_NOT_YET = frozenset({408, 425, 429, 502, 503, 504})
# What reading an answer of another shape than the API's ends with.
_ODD = (ValueError, TypeError, AttributeError, LookupError)
_LONGEST_PAUSE_SECONDS = 3.0
_ONE_ANSWER_SECONDS = 120.0


class RefusedError(Exception):
    """The endpoint understood and refused: asking again gives the same.

    Args:
        status: HTTP status.
        message: The endpoint's words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message

    @property
    def lacks_chat_template(self) -> bool:
        return self.status == 400 and "chat template" in self.message.lower()

    @property
    def lacks_route(self) -> bool:
        """Whether the engine does not do at all what was asked of it.

        vLLM has no route for what its model is not for; earlier versions have it, and say that it is not supported.
        """
        words = self.message.lower()
        return (self.status == 404 and "not found" in words) or "does not support" in words


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one question.

    Args:
        text: The answer.
        seconds: From the request to its end.
        first_token_seconds: From the request to the first text; the same as `seconds` where it was not streamed.
        tokens: Tokens of the answer; 0 where the engine does not say.
        pieces: In how many pieces the text came; 1 where it was not streamed.
        finished: Why the engine stopped, as it says; empty for a stream that broke off.
    """

    text: str
    seconds: float
    first_token_seconds: float
    tokens: int
    pieces: int
    finished: str

    @property
    def tokens_per_second(self) -> float:
        after_first = self.seconds - self.first_token_seconds
        if self.pieces > 1 and self.tokens > 1 and after_first > 0:
            return (self.tokens - 1) / after_first
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Endpoint:
    """An OpenAI endpoint behind a Service.

    Args:
        proxy: The way to it.
        model: The model's name in the API.
        deadline: When to give up, on the monotonic clock.
    """

    def __init__(self, proxy: ServiceProxy, *, model: str, deadline: float) -> None:
        self._proxy = proxy
        self._model = model
        self._deadline = deadline

    def models(self) -> list[dict[str, Any]]:
        """The models that it lists."""
        found = self._json("GET", "/v1/models", None)
        return [entry for entry in found.get("data") or () if isinstance(entry, dict)]

    def context_tokens(self, entry: dict[str, Any]) -> Any:
        """Tokens that a question and its answer may have together; None where the engine does not say.

        vLLM lists what it serves. SGLang lists the context that the model has, and starts with a KV cache that holds
        less; how much that is, it says elsewhere.
        """
        listed = entry.get("max_model_len")
        held = self._sglang_says(entry, "/server_info", "max_total_num_tokens")
        return min(listed, held) if isinstance(listed, int) and isinstance(held, int) else listed

    def source(self, entry: dict[str, Any]) -> str:
        """Where the engine says that it loaded the model from; empty where it does not say."""
        return str(self._sglang_says(entry, "/model_info", "model_path") or entry.get("root") or "")

    def _sglang_says(self, entry: dict[str, Any], path: str, name: str) -> Any:
        """One fact that SGLang keeps beside its list of models; None where that is not the engine, or it refuses."""
        if entry.get("owned_by") != "sglang":
            return None
        try:
            return self._json("GET", path, None).get(name)
        except RefusedError:
            return None

    def ask(self, question: Question) -> Reply:
        """Ask and wait for the whole answer.

        Raises:
            RefusedError: the endpoint refuses the question.
            SmokeTestError: no answer came in time.
        """
        path, body, read = _request(question, self._model)
        began = time.monotonic()
        found = self._json("POST", path, body)
        seconds = time.monotonic() - began
        try:
            text, finished = read(found)
            tokens = int((found.get("usage") or {}).get("completion_tokens") or 0)
        except _ODD as error:
            raise _broken(error) from error
        return Reply(
            text=text,
            seconds=seconds,
            first_token_seconds=seconds,
            tokens=tokens,
            pieces=1,
            finished=finished,
        )

    def stream(self, question: Question) -> Reply:
        """Ask for the answer as a stream, and read it to its end.

        Raises:
            RefusedError: the endpoint refuses the question.
            SmokeTestError: no answer came in time.
        """
        path, body, _read = _request(question, self._model)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self._patiently(lambda: self._stream_once(path, body))

    def _stream_once(self, path: str, body: Any) -> Reply | ProxyResponse:
        began = time.monotonic()
        first, pieces, tokens, finished, done = 0.0, [""], 0, "", False
        with self._proxy.events(path, body=body, timeout_seconds=self._left()) as (response, events):
            if response.status >= 400:
                return response
            for event in events:
                if event == "[DONE]":
                    done = True
                    break
                piece = json.loads(event)
                if "error" in piece:
                    raise RefusedError(response.status, _words_of(piece))
                text, reason = _read_delta(piece)
                tokens = int((piece.get("usage") or {}).get("completion_tokens") or tokens)
                finished = reason or finished
                if text:
                    first = first or time.monotonic() - began
                    pieces.append(text)
        seconds = time.monotonic() - began
        return Reply(
            text="".join(pieces),
            seconds=seconds,
            first_token_seconds=first or seconds,
            tokens=tokens,
            pieces=len(pieces) - 1,
            finished=finished if done else "",
        )

    def _json(self, method: str, path: str, body: Any) -> dict[str, Any]:
        def once() -> dict[str, Any] | ProxyResponse:
            response = self._proxy.request(method, path, body=body, timeout_seconds=self._left())
            if response.status >= 400:
                return response
            found = response.json()
            if not isinstance(found, dict):
                raise ValueError(f"the answer is a JSON {type(found).__name__}")
            return found

        return self._patiently(once)

    def _patiently(self, once: Callable[[], T | ProxyResponse]) -> T:
        """Ask again while the answer is "not yet" and there is time."""
        pause, said = 0.2, ""
        while True:
            try:
                result = once()
                if not isinstance(result, ProxyResponse):
                    return result
                words = _words(result)
                if result.status not in _NOT_YET and not (result.from_api_server and result.status >= 500):
                    raise RefusedError(result.status, words)
            except ClusterUnreachableError as error:
                words = error.problem
            except _ODD as error:
                raise _broken(error) from error
            if words != said:
                said = words
                logger.info("not answering yet: %s", words)
            if time.monotonic() + pause > self._deadline:
                raise SmokeTestError(
                    f"The endpoint did not answer in time; the last thing it said: {words}",
                    next_step="Look at the server's pods and log, then run the smoke test again.",
                )
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _left(self) -> float:
        return max(1.0, min(_ONE_ANSWER_SECONDS, self._deadline - time.monotonic()))


def _request(question: Question, model: str) -> tuple[str, dict[str, Any], Callable[[dict[str, Any]], tuple[str, str]]]:
    common = {"model": model, "max_tokens": question.max_tokens, "temperature": 0, "seed": 0}
    if question.kind == "embedding":
        return "/v1/embeddings", {"model": model, "input": question.prompt}, _read_embedding
    if question.kind == "completion":
        return "/v1/completions", {**common, "prompt": question.prompt}, _read_completion
    body = {**common, "messages": [{"role": "user", "content": question.prompt}]}
    if question.kind == "tool":
        tool = {
            "name": question.expect or "answer",
            "description": "Call this with the answer.",
            "parameters": {"type": "object", "properties": {"input": {"type": "string"}}},
        }
        body |= {"tools": [{"type": "function", "function": tool}], "tool_choice": "auto"}
        return "/v1/chat/completions", body, _read_tool_call
    return "/v1/chat/completions", body, _read_chat


def _read_chat(found: dict[str, Any]) -> tuple[str, str]:
    choice = _choice(found)
    message = choice.get("message") or {}
    return str(message.get("content") or ""), str(choice.get("finish_reason") or "")


def _read_completion(found: dict[str, Any]) -> tuple[str, str]:
    choice = _choice(found)
    return str(choice.get("text") or ""), str(choice.get("finish_reason") or "")


def _read_tool_call(found: dict[str, Any]) -> tuple[str, str]:
    choice = _choice(found)
    calls = (choice.get("message") or {}).get("tool_calls") or ()
    names = [_called(call.get("function") or {}) for call in calls]
    return ", ".join(names), str(choice.get("finish_reason") or "")


def _called(function: dict[str, Any]) -> str:
    """The name of a tool that is called with arguments that can be read: who calls it could use no others."""
    name, arguments = str(function.get("name", "")), function.get("arguments")
    try:
        usable = isinstance(json.loads(arguments or ""), dict)
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(f"it calls {name!r} with {arguments!r}, expected a JSON object as text")
    return name


def _read_embedding(found: dict[str, Any]) -> tuple[str, str]:
    entries = found.get("data") or [{}]
    vector = entries[0].get("embedding") or ()
    return json.dumps(list(vector)), "stop"


def _read_delta(piece: dict[str, Any]) -> tuple[str, str]:
    choices = piece.get("choices") or ()
    if not choices:
        return "", ""
    choice = choices[0]
    text = choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content")
    return str(text or ""), str(choice.get("finish_reason") or "")


def _choice(found: dict[str, Any]) -> dict[str, Any]:
    choices = found.get("choices") or ()
    if not choices:
        raise ValueError("it has no choices")
    return dict(choices[0])


def _broken(error: Exception) -> RefusedError:
    return RefusedError(200, f"the answer is not what the API promises: {error}")


def _words(response: ProxyResponse) -> str:
    try:
        found = response.json()
    except ValueError:
        return response.text[:300].strip() or f"HTTP {response.status} without a word"
    return _words_of(found) if isinstance(found, dict) else str(found)[:300]


def _words_of(found: dict[str, Any]) -> str:
    inner = found.get("error")
    message = inner.get("message") if isinstance(inner, dict) else found.get("message") or found.get("detail")
    return str(message or inner or found)[:600]
