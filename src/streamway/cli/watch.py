"""`streamway watch`: models followed on the Hub, each new commit of which starts one run."""

import asyncio
import contextlib
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import click

from streamway import hub
from streamway.cli import output
from streamway.cli.configuration import load_settings
from streamway.cli.options import config_argument, json_option, kfp_option, set_option, state_option, with_options
from streamway.cli.service import connect, make_request
from streamway.errors import SettingsError
from streamway.launch.service import RunRequest
from streamway.launch.watch import FAILED, UNCHANGED, Followed, Look, Watcher, look_until, starter, watch
from streamway.launch.webhook import LookQueue, Told, serve_webhook, webhook_application
from streamway.settings import Settings

# After a webhook the Hub's API may still name the commit before for a moment.
_HUB_CATCHES_UP_SECONDS = (1.0, 5.0, 15.0)


@click.command("watch")
@with_options(config_argument, set_option, state_option, kfp_option)
@click.option("--once", is_flag=True, help="Look once and exit, for a scheduler; exits with 1 if a look failed.")
@click.option("--webhook", "listen", default="", metavar="HOST:PORT", help="Also listen for the Hub's webhook.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="File with the webhook's secret, in place of watch.webhook_secret.",
)
@json_option
@click.pass_context
def watch_command(
    context: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    once: bool,
    listen: str,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """Follow the models of CONFIG; a new commit starts one run, however many watchers look.

    With --webhook the Hub tells of new commits; looking every now and then goes on, because messages get lost.
    """
    settings = load_settings(config, overrides)
    followed = _followed(settings)
    service = connect(settings, state_path, kfp_url)
    with tempfile.TemporaryDirectory(prefix="streamway-") as folder, output.narrated():

        def request(model: Followed, commit_sha: str) -> RunRequest:
            # A moving branch must not move between the look and the run.
            parameters = settings.parameters() | {
                "model_id": model.model_id,
                "revision": commit_sha,
                "name": model.name,
            }
            return make_request(settings, "serve_model", parameters, Path(folder), on_vertex=not kfp_url)

        watcher = Watcher(
            state_root=settings.storage.release_root,
            start=starter(service, request),
            token=hub.read_token(settings.model.token_secret),
        )
        if once:
            looks = [watcher.look(model) for model in followed]
            output.give(looks, as_json=as_json, lines=[_look_line(look) for look in looks])
            context.exit(int(any(look.outcome == FAILED for look in looks)))
        _follow(watcher, followed, settings, listen, secret_file, as_json=as_json)


def _followed(settings: Settings) -> tuple[Followed, ...]:
    """Return what a configuration follows.

    Raises:
        SettingsError: two models would take turns at one endpoint.
    """
    server = settings.server
    wanted = [(entry.id, entry.revision, entry.name or server.name) for entry in settings.watch.follow]
    followed = tuple(
        Followed(model_id=model_id, revision=revision, name=name, namespace=server.namespace)
        for model_id, revision, name in wanted or [(settings.model.id, settings.model.revision, server.name)]
    )
    names = [model.name for model in followed]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise SettingsError(
            f"watch.follow has two models for the endpoint {twice}, which would take turns at it.",
            next_step="Give each of them a name of its own.",
        )
    return followed


def _follow(
    watcher: Watcher,
    followed: tuple[Followed, ...],
    settings: Settings,
    listen: str,
    secret_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Look, and listen, until interrupted."""

    def tell(look: Look) -> None:
        if as_json or look.outcome != UNCHANGED:
            output.give(look, as_json=as_json, lines=[_look_line(look)])

    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with contextlib.ExitStack() as stack:
            if listen:
                stack.enter_context(_listening(watcher, followed, settings, listen, secret_file, tell))
            output.say(f"Following {', '.join(map(str, followed))}; Ctrl-C ends it.")
            watch(watcher, followed, interval_seconds=settings.watch.interval_seconds, stop=stop, on_look=tell)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _listening(
    watcher: Watcher,
    followed: tuple[Followed, ...],
    settings: Settings,
    listen: str,
    secret_file: Path | None,
    tell: Any,
) -> Any:
    """Serve the webhook on a thread of its own."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise SettingsError(f"--webhook {listen!r} is not HOST:PORT.", next_step="Write it like 0.0.0.0:8080.")

    def look(told: Told) -> None:
        tell(look_until(watcher, told.followed, told.commit_sha, pauses=_HUB_CATCHES_UP_SECONDS))

    looks = LookQueue(look)
    application = webhook_application(secret=_read_secret(settings, secret_file), followed=followed, on_told=looks.put)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    serving = serve_webhook(application, host=host or "127.0.0.1", port=int(port), stop=stop)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,), name="webhook-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        looks.close()


def _read_secret(settings: Settings, secret_file: Path | None) -> str:
    """Read the webhook's secret, which is neither in a setting nor on a command line.

    Raises:
        SettingsError: nobody says where it is.
    """
    if secret_file is not None:
        try:
            return secret_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(
                f"The webhook's secret cannot be read from {secret_file}: {error.strerror}.",
                next_step="Give the file that holds it.",
            ) from error
    secret = hub.read_token(settings.watch.webhook_secret)
    if not secret:
        raise SettingsError(
            "Nobody says where the webhook's secret is.",
            next_step="Set watch.webhook_secret to its Secret Manager name, or give --secret-file.",
        )
    return secret


def _look_line(look: Look) -> str:
    more = look.error or (f"run {look.run} {look.page}" if look.run else "")
    return f"{look.outcome:10} {look.followed} at {look.commit_sha[:12] or 'an unknown commit'}  {more}".rstrip()
