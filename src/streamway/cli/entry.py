"""The front door: one group of commands, and one place where every error becomes a message and an exit code."""

import sys
from importlib.metadata import version

import click

from streamway.cli import output
from streamway.cli.check import check
from streamway.cli.endpoint import rollback, status
from streamway.cli.launch import publish_command, runs_command, schedule_group, submit_command
from streamway.cli.run import compile_command, run
from streamway.cli.sandbox import sandbox_group
from streamway.cli.steps import cache, convert, deploy, pull, render, smoke, upload, validate
from streamway.cli.transitions import promote_command, retire_command, watch_command
from streamway.errors import StreamwayError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("streamway"), prog_name="streamway")
def cli() -> None:
    """From a Hugging Face model id to a verified OpenAI endpoint on GKE.

    \b
    Try it on this machine:      streamway run configs/sandbox.yaml
    Look before you leap:        streamway check configs/gke-l4.yaml
    Make it a Vertex pipeline:   streamway compile serve_model -o serve_model.yaml
    """


for command in (
    run,
    check,
    compile_command,
    sandbox_group,
    pull,
    convert,
    validate,
    upload,
    cache,
    render,
    deploy,
    smoke,
    status,
    rollback,
    submit_command,
    runs_command,
    schedule_group,
    publish_command,
    watch_command,
    promote_command,
    retire_command,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened; see streamway.errors for the codes."""
    try:
        sys.exit(cli.main(arguments, prog_name="streamway", standalone_mode=False) or 0)
    except StreamwayError as error:
        output.show_error(error.problem, error.next_step)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        output.say("Interrupted. What was started has been stopped; run the same command again to go on.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        sys.stderr.close()
        sys.exit(INTERRUPTED)
