"""The front door: one group of commands, and one place where every error becomes a message and an exit code.

Rooms are imported by the commands that need them: help takes a tenth of a second, and judging a folder of weights
loads neither KFP nor a client of Google's or of Kubernetes.
"""

import sys

import click

from streamway.cli import output
from streamway.cli.lazy import LazyGroup
from streamway.errors import StreamwayError
from streamway.interrupts import terminated_like_interrupt

INTERRUPTED = 130


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="streamway", prog_name="streamway")
def cli() -> None:
    """From a Hugging Face model id to a verified OpenAI endpoint on GKE.

    \b
    Try it on this machine:      streamway run configs/sandbox.yaml
    Look before you leap:        streamway check configs/gke-l4.yaml
    Make it a Vertex pipeline:   streamway compile serve_model -o serve_model.yaml
    """


for _name, _source, _summary in (
    ("run", "run:run", "Run the pipeline of CONFIG on this machine, by KFP's local runner."),
    ("check", "check:check", "Look at everything CONFIG needs, and move nothing."),
    ("prepare", "prepare:prepare", "Print the commands that make what CONFIG needs."),
    ("compile", "run:compile_command", "Compile PIPELINE to the file that Vertex AI and Kubeflow read."),
    ("sandbox", "sandbox:sandbox_group", "The Hub, Cloud Storage, caches and a cluster, on this machine."),
    ("pull", "pull:pull", "Pull MODEL_ID from the Hub to the staging place of RELEASE_ROOT."),
    ("convert", "convert:convert", "Convert the checkpoint in SOURCE to safetensors in TARGET."),
    ("validate", "convert:validate", "Judge the safetensors in URI, a folder or a gs:// prefix."),
    ("upload", "upload:upload", "Publish the converted model in WEIGHTS_URI under RELEASE_ROOT."),
    ("cache", "cache:cache", "Create, update or resume the Anywhere Cache of BUCKET."),
    ("render", "server:render", "Print the manifests that `deploy` would apply."),
    ("deploy", "server:deploy", "Deploy a published release as CONFIG says."),
    ("smoke", "server:smoke", "Ask the endpoint of CONFIG its questions."),
    ("status", "endpoint:status", "Say what endpoint NAME serves, since when, and how it was proved."),
    ("rollback", "endpoint:rollback", "Let endpoint NAME serve an earlier revision again."),
    ("submit", "launch:submit_command", "Start the pipeline of CONFIG on Vertex AI."),
    ("runs", "launch:runs_command", "List the runs where CONFIG starts them."),
    ("schedule", "schedule:schedule_group", "Schedules of the pipeline: made, paused, resumed and deleted."),
    ("publish", "launch:publish_command", "Put the compiled pipelines where the Vertex AI page offers them."),
    ("watch", "watch:watch_command", "Follow the models of CONFIG; a new commit starts one run."),
    ("promote", "transitions:promote_command", "Serve COMMIT_SHA, which has passed elsewhere, as CONFIG says."),
    ("retire", "transitions:retire_command", "Take the endpoint of CONFIG away."),
):
    cli.announce(_name, f"streamway.cli.{_source}", _summary)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of what happened; see streamway.errors for the codes."""
    try:
        with terminated_like_interrupt():
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
