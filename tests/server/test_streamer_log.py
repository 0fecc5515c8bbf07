"""The engine's log, in the words of several versions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.server import read_log

MIB = 1024**2


@pytest.mark.parametrize(
    ("line", "size_bytes", "seconds", "rate"),
    [
        (
            "[RunAI Streamer] Overall time to stream 15.0 GiB of all files: 13.4s, 1.1 GiB/s",
            15 * 1024 * MIB,
            13.4,
            1.1,
        ),
        (
            "2026-11-22 17:07 - INFO - [RunAI Streamer] Overall time to stream 256.6 MiB of all files to cpu: 0.5s, "
            "513.2 MiB/s",
            round(256.6 * MIB),
            0.5,
            0.501,
        ),
        ("Overall time to stream 269.0 MB of all files to cuda:0: 0.5s, 538.0 MB/s", 269_000_000, 0.5, 0.501),
        ("(EngineCore pid=7) Overall time to stream 2.0 GiB of all files: 4.0s", 2048 * MIB, 4.0, 0.5),
        ("[RunAI Streamer] Overall time to stream 512 Bytes of all files: 0.0s, 0 Bytes/s", 512, 0.0, 0.0),
    ],
)
def test_the_streamers_line_is_read_in_all_its_wordings(
    line: str, size_bytes: int, seconds: float, rate: float
) -> None:
    figures = read_log([line]).streamer

    assert figures is not None
    assert (figures.bytes, figures.seconds, figures.gib_per_second) == (
        size_bytes,
        seconds,
        pytest.approx(rate, abs=0.01),
    )


def test_ranks_that_stream_together_are_added_up() -> None:
    figures = read_log(
        [
            "[RunAI Streamer] Overall time to stream 4.0 GiB of all files to cuda:0: 2.0s, 2.0 GiB/s",
            "[RunAI Streamer] Overall time to stream 4.0 GiB of all files to cuda:1: 4.0s, 1.0 GiB/s",
        ]
    ).streamer

    assert figures is not None
    assert (figures.bytes, figures.seconds, figures.gib_per_second) == (8 * 1024 * MIB, 4.0, 2.0)


def test_the_engines_own_line_is_the_second_source() -> None:
    log = read_log(["INFO [gpu_model_runner.py:5150] Model loading took 15.1 GiB memory and 14.250000 seconds"])

    assert log.streamer is not None
    assert (log.streamer.source, log.streamer.seconds, log.model_gib) == ("engine", 14.25, 15.1)


def test_the_streamers_line_wins_over_the_engines() -> None:
    lines = [
        "[RunAI Streamer] Overall time to stream 1.0 GiB of all files: 1.0s, 1.0 GiB/s",
        "Loading weights took 1.50 seconds",
    ]

    for order in (lines, lines[::-1]):
        figures = read_log(order).streamer
        assert figures is not None
        assert figures.source == "streamer"


def test_the_whole_start_is_read() -> None:
    log = read_log(
        [
            "Loading safetensors using Runai Model Streamer:  37% Completed | 101/272 [00:01<00:02, 70it/s]",
            "torch.compile took 5.10 s in total",
            "init engine (profile, create kv cache, warmup model) took 13.00 s (compilation: 5.10 s)",
            "INFO:     Application startup complete.",
        ]
    )

    assert (log.loading_percent, log.compilation_seconds, log.initialisation_seconds, log.serving) == (
        37,
        5.1,
        13.0,
        True,
    )


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=80) | st.from_regex(r"time to stream .{0,30}:.{0,20}s.{0,20}"), max_size=5))
def test_no_line_stops_the_reader(lines: list[str]) -> None:
    assert read_log([*lines, "INFO:     Application startup complete."]).serving
