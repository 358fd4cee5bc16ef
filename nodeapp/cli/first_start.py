"""What a node fetches before its first start: the model that its settings name."""

from __future__ import annotations

import stamina

from nodeapp.cli.model_text import progress_bar, say
from nodeapp.core.errors import Unavailable
from nodeapp.inference.adding import Report, add_model, configured_addition
from nodeapp.inference.model_store import ModelStore, model_store, verdicts_file
from nodeapp.inference.probe import Prober
from nodeapp.service.clock import SystemClock
from nodeapp.service.download import Progress
from nodeapp.service.lifecycle import notify_starting
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import Settings

RETRY_SECONDS = 60.0
EXTENSION_SECONDS = 600.0
"""systemd goes on waiting for so long after each word of progress."""


async def fetch_model(settings: Settings) -> None:
    """Take `inference.model` into the store where it is missing and has a source.

    A source that cannot be reached is asked again for ever: the network of a machine that was
    just switched on may be late, and nothing can be sold without the model.

    Raises:
        InvalidRequest, NotFound, Rejected, TooLarge: as add_model; trying again is of no use.
    """
    inference = settings.inference
    is_asked = inference.model and inference.model_source and not inference.model_path
    if "inference" not in settings.node.processes or not is_asked:
        return
    store = model_store(inference, resolve_paths(settings.node))
    if store.has(inference.model):
        return
    say(f"model {inference.model} is not here yet: fetching {inference.model_source}")
    notify_starting(EXTENSION_SECONDS)
    with progress_bar() as show:
        async for attempt in stamina.retry_context(
            on=Unavailable, attempts=None, timeout=None, wait_max=RETRY_SECONDS
        ):
            with attempt:
                if attempt.num > 1:
                    say(f"try {attempt.num}")
                await _fetch(settings, store, _heard(show))


def _heard(show: Report) -> Report:
    def report(progress: Progress) -> None:
        notify_starting(EXTENSION_SECONDS)
        show(progress)

    return report


async def _fetch(settings: Settings, store: ModelStore, report: Report) -> None:
    if store.has(settings.inference.model):
        return  # `fabstir-node model add` was quicker
    addition = configured_addition(
        settings.inference, settings.p2p.portal_url, now=int(SystemClock().unix_seconds())
    )
    prober = Prober(verdicts_file(resolve_paths(settings.node)))
    try:
        added = await add_model(addition, store, prober, report=report, say=say)
    except Unavailable as error:
        notify_starting(EXTENSION_SECONDS)
        say(f"model {settings.inference.model}: {error.message}")
        raise
    say(f"model {added.entry.name}: {added.entry.size_bytes} bytes, sha256 {added.entry.sha256}")
