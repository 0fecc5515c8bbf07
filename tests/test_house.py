"""The house keeps its own rules: what is packaged, who imports whom, and contracts that agree with their steps."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from streamway import components, errors
from streamway.errors import StreamwayError

ROOT = Path(__file__).parents[1]
ROOTS = {
    "streamway": ROOT / "src/streamway",
    "streamway.components": ROOT / "components",
    "streamway.pipelines": ROOT / "pipelines",
}
COMPONENTS = sorted(path for path in (ROOT / "components").glob("*.py") if path.name not in ("__init__.py", "image.py"))
SIX_STEPS = ("pull_model", "convert_weights", "upload_model", "enable_cache", "deploy_server", "smoke_test")


def packages_in_the_tree() -> set[str]:
    found = set()
    for name, folder in ROOTS.items():
        for init in folder.rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(folder).parts]))
    return found


def test_every_package_of_the_tree_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_in_the_tree()
    assert listed == sorted(listed)


def test_a_built_wheel_holds_every_module_and_imports_from_it(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in ROOTS.items():
        prefix = name.replace(".", "/")
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".css", ".typed", ".json") and "__pycache__" not in path.parts:
                assert f"{prefix}/{path.relative_to(folder).as_posix()}" in held
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", str(wheel), "--no-deps", "--target", str(installed)], check=True)
    code = "import streamway.components, streamway.pipelines; print(streamway.components.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(installed)}, cwd=tmp_path, check=True, capture_output=True
    )
    assert found.stdout.decode().startswith(str(installed))


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_component_files_import_only_what_a_contract_needs(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            pytest.fail(f"{path.name} imports {node.names[0].name} at the top")
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("kfp", "typing", "streamway.components.image")


def step_call(function: ast.FunctionDef) -> tuple[str, ast.Call]:
    """The one call of a body whose keywords are the component's own parameters."""
    rooms = {"hub", "room", "storage", "cache", "server", "gate"}
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in rooms
        and node.func.attr == function.name
    ]
    assert len(calls) == 1
    room = calls[0].func.value.id  # type: ignore[attr-defined]
    return ("weights" if room == "room" else room), calls[0]


@pytest.mark.parametrize("name", SIX_STEPS)
def test_a_component_passes_every_parameter_to_a_step_that_knows_it(name: str) -> None:
    tree = ast.parse((ROOT / "components" / f"{name}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    room, call = step_call(function)
    step = getattr(importlib.import_module(f"streamway.{room}"), name)
    signature = inspect.signature(step)
    passed = {keyword.arg for keyword in call.keywords}
    assert passed <= set(signature.parameters)
    required = {p.name for p in signature.parameters.values() if p.default is inspect.Parameter.empty}
    assert required <= passed
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    own = {argument.arg for argument in function.args.args}
    assert own <= used


@pytest.mark.parametrize("name", SIX_STEPS)
def test_every_parameter_of_a_component_is_described_in_the_compiled_contract(name: str) -> None:
    spec = getattr(components, name).component_spec
    for parameter, definition in (spec.inputs or {}).items():
        assert definition.description, f"{name}.{parameter}"
    for output, definition in (spec.outputs or {}).items():
        assert definition.description, f"{name}.{output}"


def all_errors(base: type[StreamwayError]) -> list[type[StreamwayError]]:
    return [base] + [found for child in base.__subclasses__() for found in all_errors(child)]


def test_every_error_has_an_exit_code_of_its_own() -> None:
    classes = [found for found in all_errors(StreamwayError) if found.__module__ == "streamway.errors"]
    codes = {found.exit_code for found in classes if "exit_code" in vars(found)}
    assert len(codes) == len(classes)
    assert all(0 < code < 126 for code in codes)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"^ +([│├└─ ]*)(\w+Error) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    depths = {name: len(lines) // 4 for lines, name, _ in drawn}
    assert {name: int(code) for _, name, code in drawn} == {
        found.__name__: found.exit_code
        for found in all_errors(StreamwayError)
        if found.__module__ == "streamway.errors"
    }
    for name, depth in depths.items():
        assert len(getattr(errors, name).__mro__) - len(StreamwayError.__mro__) == depth, name


def all_files() -> list[Path]:
    return [path for folder in (*ROOTS.values(), ROOT / "tests", ROOT / "benchmarks") for path in folder.rglob("*.py")]


def test_no_file_is_longer_than_a_reader_holds() -> None:
    long = {path: path.read_text().count("\n") for path in all_files()}
    assert {str(path): lines for path, lines in long.items() if lines > 500} == {}


def test_no_name_says_nothing() -> None:
    assert [path for path in all_files() if {"utils", "helpers", "common", "manager"} & set(path.stem.split("_"))] == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
    return handler.type is None or bool({"Exception", "BaseException"} & caught)


def test_no_error_of_every_kind_is_passed_over_in_silence() -> None:
    silent = [
        f"{path}:{handler.lineno}"
        for path in all_files()
        for handler in ast.walk(ast.parse(path.read_text()))
        if isinstance(handler, ast.ExceptHandler) and is_broad(handler)
        if all(isinstance(statement, ast.Pass | ast.Continue) for statement in handler.body)
    ]
    assert silent == []


def shows_a_demand(test: ast.FunctionDef) -> bool:
    calls = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    said = any(name in ("raises", "fail") or name.startswith("assert_") for name in names)
    return said or any(isinstance(node, ast.Assert) for node in ast.walk(test))


def test_every_test_shows_what_it_demands() -> None:
    hollow = [
        f"{path}:{node.lineno} {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not shows_a_demand(node)
    ]
    assert hollow == []


def test_the_plan_of_the_house_names_every_room_once() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    drawn = re.findall(r"^  ([\w.]+)(?:/| ) ", plan, re.MULTILINE)
    rooms = {path.name for path in (ROOT / "src/streamway").iterdir() if not path.name.startswith("_")}
    mentioned = {word for line in plan.splitlines() for word in re.findall(r"\w+\.py", line)}
    assert sorted(set(drawn)) == sorted(drawn)
    assert rooms - {"py.typed"} <= set(drawn) | mentioned
    assert set(drawn) <= rooms


def test_every_module_says_why_it_exists() -> None:
    for folder in ROOTS.values():
        for path in folder.rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path
