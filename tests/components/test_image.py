"""The image of the components is pinned, runs as nobody in particular, and is built from what it needs alone."""

import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_base_is_one_release_of_a_python_that_is_supported() -> None:
    ((_, base),) = [one for one in instructions() if one[0] == "ARG"]
    version = re.fullmatch(r"PYTHON=python:(\d+)\.(\d+)\.\d+-slim-\w+", base)
    assert version, base
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={version[1]}.{version[2]}" == needed
    assert all(rest.startswith("${PYTHON}") for word, rest in instructions() if word == "FROM")


def test_what_is_installed_is_held_to_the_constraints() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.match(r"[\w.\-\[\]]+==[\w.+]+", pin) for pin in pins)


def test_it_runs_as_a_number_that_is_not_root() -> None:
    last = [rest for word, rest in instructions() if word == "USER"][-1]
    assert int(last) > 0


def test_the_build_is_sent_what_it_copies_and_nothing_else() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in shlex.split(rest)[:-1]
    }
    assert sent == copied
