"""What an engine's log says about the weights and the start, read tolerantly.

The streamer's own line has changed its wording several times and may be dropped; vLLM's lines are the second source.
Nothing here decides whether a server works: a log that says nothing is no failure.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = r"([\d.]+)\s*([kKmMgGtT]?)(i?)(?:[Bb]ytes?|B)"
# "[RunAI Streamer] Overall time to stream 15.0 GiB of all files: 13.4s, 1.1 GiB/s", and with "to cpu" or
# "to cuda:0" before the colon (runai-model-streamer 0.13 to 0.17).
_STREAMED = re.compile(rf"time to stream\s+{_SIZE}.*?:\s*([\d.]+)\s*s(?:ec\w*)?\b(?:,\s*{_SIZE}/s)?", re.IGNORECASE)
# vLLM's progress bar over tensors.
_PROGRESS = re.compile(r"Runai Model Streamer:\s*(\d+)% Completed \| (\d+)/(\d+)", re.IGNORECASE)
_WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
_MODEL = re.compile(r"Model loading took ([\d.]+) (?:GiB|GB)(?: memory)? and ([\d.]+) seconds")
_ENGINE = re.compile(r"init engine \(.*?\) took ([\d.]+) s")
_COMPILED = re.compile(r"torch\.compile took ([\d.]+) s in total")


@dataclass(frozen=True, kw_only=True)
class StreamerFigures:
    """How the weights came.

    Args:
        bytes: Bytes that were streamed; 0 where only vLLM's own line was found.
        seconds: How long it took.
        gib_per_second: The rate; 0 where the bytes are not known.
        source: The words that it was read from: `streamer` or `engine`.
    """

    bytes: int
    seconds: float
    gib_per_second: float
    source: str = "streamer"


@dataclass(frozen=True, kw_only=True)
class EngineLog:
    """What has been read so far.

    Args:
        streamer: How the weights came, once they have.
        loading_percent: How far the weights are; None before the first word of it.
        model_gib: Memory that the model takes.
        initialisation_seconds: What the engine needed after the weights: compilation, profiling, warm-up.
        compilation_seconds: The part of it that was compilation.
        serving: The API has said that it is up.
    """

    streamer: StreamerFigures | None = None
    loading_percent: int | None = None
    model_gib: float | None = None
    initialisation_seconds: float | None = None
    compilation_seconds: float | None = None
    serving: bool = False

    def read(self, line: str) -> "EngineLog":
        """Take in one line of the log."""
        if match := _STREAMED.search(line):
            return replace(self, streamer=_add(self.streamer, _streamed(match)), loading_percent=100)
        if match := _PROGRESS.search(line):
            return replace(self, loading_percent=int(match[1]))
        if match := _WEIGHTS.search(line):
            return self._fall_back(float(match[1]))
        if match := _MODEL.search(line):
            return replace(self._fall_back(float(match[2])), model_gib=float(match[1]))
        if match := _ENGINE.search(line):
            return replace(self, initialisation_seconds=float(match[1]))
        if match := _COMPILED.search(line):
            return replace(self, compilation_seconds=float(match[1]))
        if "Application startup complete" in line:
            return replace(self, serving=True)
        return self

    def _fall_back(self, seconds: float) -> "EngineLog":
        if self.streamer is not None:
            return self
        return replace(
            self,
            streamer=StreamerFigures(bytes=0, seconds=seconds, gib_per_second=0.0, source="engine"),
            loading_percent=100,
        )


def read_log(lines: Iterable[str]) -> EngineLog:
    """Read a whole log."""
    log = EngineLog()
    for line in lines:
        log = log.read(line)
    return log


def _streamed(match: re.Match[str]) -> StreamerFigures:
    size = _bytes(match[1], match[2], match[3])
    seconds = float(match[4])
    said = _bytes(match[5], match[6], match[7]) if match[5] else 0
    rate = (said or (size / seconds if seconds else 0.0)) / 2**30
    return StreamerFigures(bytes=size, seconds=seconds, gib_per_second=round(rate, 3))


def _add(known: StreamerFigures | None, new: StreamerFigures) -> StreamerFigures:
    """Join the lines of several ranks: each streams its share, all at the same time."""
    if known is None or known.source != "streamer":
        return new
    size, seconds = known.bytes + new.bytes, max(known.seconds, new.seconds)
    rate = size / 2**30 / seconds if seconds else 0.0
    return StreamerFigures(bytes=size, seconds=seconds, gib_per_second=round(rate, 3))


def _bytes(number: str, prefix: str, binary: str) -> int:
    return round(float(number) * (_BINARY if binary else _UNITS)[prefix.lower()])
