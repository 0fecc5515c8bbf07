"""Contracts hold on every runner: whole numbers arrive as floats, and no parameter can hold a secret by its name."""

import ast
import re
from pathlib import Path

import pytest

from streamway import components
from streamway.pipelines import PIPELINES

ROOT = Path(__file__).parents[2]


def function_of(name: str) -> ast.FunctionDef:
    tree = ast.parse((ROOT / "components" / f"{name}.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


@pytest.mark.parametrize("name", components.__all__)
def test_whole_numbers_are_made_whole_before_they_are_used(name: str) -> None:
    function = function_of(name)
    whole = {
        one.arg for one in function.args.args if isinstance(one.annotation, ast.Name) and one.annotation.id == "int"
    }
    made_whole = {
        id(node.args[0])
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "int"
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in whole:
            assert id(node) in made_whole, f"{name}: {node.id} in line {node.lineno}"


@pytest.mark.parametrize("name", PIPELINES)
def test_no_pipeline_takes_a_secret(name: str) -> None:
    for parameter in PIPELINES[name].component_spec.inputs:
        assert not re.search(r"token(?!_secret$)|password|(?<!token_)secret|key", parameter), parameter


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_is_optional_that_cannot_be_left_out(name: str) -> None:
    for parameter, definition in PIPELINES[name].component_spec.inputs.items():
        assert definition.optional == (definition.default is not None), parameter
