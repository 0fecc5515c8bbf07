"""The parameters of every pipeline as one document, made from the pipelines themselves so that it cannot be wrong.

python -m streamway.launch.parameters > docs/parameters.md
"""

import json
import sys
from typing import Any

_TYPES = {
    "String": "text",
    "Integer": "whole number",
    "Float": "number",
    "Boolean": "yes or no",
    "List": "list",
    "Dict": "mapping",
}
_HEAD = """# Parameters

What a person fills in on the Vertex AI page, and what `streamway submit` fills in from a configuration. This file is
made by `python -m streamway.launch.parameters`; a test holds it to the pipelines.

Secrets are never parameters: where a token is needed, its Secret Manager name is. Whole numbers may arrive as floats
and are taken for what they are. Every parameter with a default may be left out.
"""
_TAIL = """
## What the services make of a compiled file

One file serves Vertex AI and Kubeflow. What differs is theirs:

| | Vertex AI | Kubeflow |
|---|---|---|
| name of a run in its journal, `.runs/<name>/` | the job's id | the workflow's name |
| size of a task's worker | a machine type that holds its CPU and memory limit | limits of its pod |
| a lost worker | the task is tried again, from where it was, unless it gives a verdict: deploy, smoke test | the same |
| a task's timeout | none; every step has its own | none; every step has its own |
| small outputs | `launch.pipeline_root` | the deployment's object store, unless that is set |
| schedules | with a time zone, with catch-up on resume | in UTC, without catch-up |
"""


def describe_parameters() -> str:
    """Write the document."""
    from streamway.pipelines import PIPELINES

    sections = [_HEAD]
    for name, pipeline in PIPELINES.items():
        spec = pipeline.component_spec
        rows = [_row(parameter, definition) for parameter, definition in spec.inputs.items()]
        title = f"\n## {name}\n\n{_first_paragraph(pipeline)}\n\n"
        sections.append(title + "| parameter | type | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "".join([*sections, _TAIL])


def _row(name: str, definition: Any) -> str:
    default = f"`{json.dumps(definition.default)}`" if definition.optional else "required"
    kind = _TYPES[definition.type]
    return f"| `{name}` | {kind} | {default} | {_cell(definition.description)} |"


def _first_paragraph(pipeline: Any) -> str:
    return " ".join((pipeline.pipeline_func.__doc__ or "").strip().partition("\n\n")[0].split())


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(describe_parameters())
