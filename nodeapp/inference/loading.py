"""ModelLoader: from a checked file to a running engine, placed on the GPUs or cores there are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import psutil

from nodeapp.core.audit import AuditSink, Unrecorded
from nodeapp.core.errors import Corrupt, InvalidRequest, NodeError, NotFound, Rejected, Unavailable
from nodeapp.core.model_card import ModelCard
from nodeapp.inference.engine import Engine, EngineOptions
from nodeapp.inference.gguf import read_header
from nodeapp.inference.gpu import Gpu
from nodeapp.inference.gpu_guard import GpuGuard
from nodeapp.inference.host import Report, Served
from nodeapp.inference.llama import LoadOptions
from nodeapp.inference.metrics import InferenceMetrics
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.models import (
    FileIdentity,
    ModelFile,
    check_model,
    file_sha256,
    identity_of,
    require_same,
)
from nodeapp.inference.placement import Needs, Placement, back_off, needs_of, place
from nodeapp.inference.probe import Prober
from nodeapp.service.clock import Clock
from nodeapp.service.logs import get_logger
from nodeapp.service.replicas import replica_count
from nodeapp.service.settings import InferenceSettings

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoaderFiles:
    """What is remembered of files: their digests, and what the sandboxed loader said of them."""

    digests: Path
    verdicts: Path


class ModelLoader:
    """The host.Loader of the inference process."""

    def __init__(  # noqa: PLR0913  # each is one thing that a load needs
        self,
        settings: InferenceSettings,
        gpus: GpuGuard,
        metrics: InferenceMetrics,
        clock: Clock,
        *,
        store: ModelStore,
        files: LoaderFiles,
        audit: AuditSink | None = None,
    ) -> None:
        self._settings = settings
        self._gpus = gpus
        self._metrics = metrics
        self._clock = clock
        self._store = store
        self._digests = files.digests
        self._prober = Prober(files.verdicts, audit=audit or Unrecorded())

    async def check(self, model: ModelFile, report: Report) -> ModelCard:
        """See host.Loader."""
        report(f"checking {model.file_name}")
        card = await asyncio.to_thread(check_model, model, self._digests)
        report(f"loading {model.file_name} in the sandbox first")
        await self._prober.probe(model.path, card.sha256)
        return card

    async def load(self, model: ModelFile, card: ModelCard, report: Report) -> Served:
        """See host.Loader."""
        report(f"loading {model.file_name}, {card.size_bytes >> 20} MiB")
        hold = await asyncio.to_thread(self._store.hold, card.sha256) if model.name else None
        try:
            identity = await asyncio.to_thread(self._checked_identity, model, card)
            engine, load = await self._place_and_start(model, card, report)
            try:
                # llama.cpp opened the path itself: what it opened must be what was checked.
                await asyncio.to_thread(require_same, model.path, identity)
            except NodeError:
                await engine.stop()
                raise
        except BaseException:
            if hold is not None:
                hold.close()
            raise
        if model.name:
            used_at = int(self._clock.unix_seconds())
            await asyncio.to_thread(self._store.change, model.name, used_at=used_at)
        return Served(model, card, engine, _describe(card, engine, load), identity, hold)

    async def look_again(self, served: Served) -> None:
        """See host.Loader; a file whose bytes are still the same is taken as it is now."""
        path = served.model.path
        try:
            await asyncio.to_thread(require_same, path, served.identity)
        except NotFound as error:
            # What is mapped stays; only the next load will miss it.
            _log.warning("served model file is gone", error=error.message)
        except Rejected:
            found = await asyncio.to_thread(file_sha256, path, self._digests)
            if found != served.card.sha256:
                raise Corrupt(
                    f"model file {path} changed while it is served: sha256 {found}, "
                    f"verified was {served.card.sha256}"
                ) from None

    async def _engine(self, card: ModelCard, load: LoadOptions) -> Engine:
        engine = Engine(card, load, engine_options(self._settings), clock=self._clock)
        try:
            await engine.start(self._metrics)
        except BaseException:
            await engine.stop()
            raise
        return engine

    def _checked_identity(self, model: ModelFile, card: ModelCard) -> FileIdentity:
        """Of the file whose digest is the card's; hashes again only when it changed."""
        identity = identity_of(model.path)
        found = file_sha256(model.path, self._digests)
        require_same(model.path, identity)
        if found != card.sha256:
            raise Rejected(f"model file {model.path} was replaced since it was verified")
        return identity

    async def _place_and_start(
        self, model: ModelFile, card: ModelCard, report: Report
    ) -> tuple[Engine, LoadOptions]:
        """Try the best placement, and less of it after each failure."""
        needs = needs_of(self._settings, await asyncio.to_thread(read_header, model.path))
        gpus: tuple[Gpu, ...] = ()
        self._gpus.use(())
        if self._settings.gpu_layers:
            gpus = await self._gpus.usable(needs)
        placement = place(self._settings.gpu_layers, needs, gpus)
        while True:
            load = self._load_options(model.path, needs, placement)
            try:
                engine = await self._engine(card, load)
            except (InvalidRequest, Unavailable) as error:
                if not placement.gpu_layers:
                    raise
                placement = back_off(placement, needs)
                _log.warning("load failed, trying less", error=error.message, next=str(placement))
                report(f"trying {placement.gpu_layers} layers on GPU: {error.message}")
            else:
                self._gpus.use(placement.devices if placement.gpu_layers else ())
                return engine, load

    def _load_options(self, path: Path, needs: Needs, placement: Placement) -> LoadOptions:
        settings = self._settings
        return LoadOptions(
            path=path,
            kv_tokens=placement.kv_tokens,
            sequences=2 * settings.max_sequences,
            batch_tokens=needs.batch_tokens,
            threads=settings.threads or physical_cores(replica_count(settings)),
            decode_threads=settings.threads or decode_cores(replica_count(settings)),
            gpu_layers=placement.gpu_layers,
            devices=tuple(self._gpus.ordinal(index) for index in placement.devices),
            split=placement.split,
        )


def engine_options(settings: InferenceSettings) -> EngineOptions:
    """The engine's share of the settings."""
    return EngineOptions(
        context_length=settings.context_length,
        max_sequences=settings.max_sequences,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        queue_requests=settings.queue_requests,
        queue_seconds=settings.queue_seconds,
        slow_reader_seconds=settings.slow_reader_seconds,
        has_speculation=settings.speculation,
        public_prefixes=tuple(_text_of(Path(name)) for name in settings.public_prefixes),
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"inference.public_prefixes names {path}, which cannot be read as text: {error}"
        ) from error


def physical_cores(replicas: int = 1) -> int:
    """Cores this process may use beside so many like it, hyper-threads not counted, >= 1."""
    usable = len(psutil.Process().cpu_affinity())
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable) // replicas)


def decode_cores(replicas: int = 1) -> int:
    """One core of all is left to the processes that carry the tokens away.

    Threads that wait for each other some 500 times a token are all stopped by what stops one: on
    two cores one thread gives 70 tokens/s alone and beside other work, two give 75 and 45 (135M
    model).
    """
    return max(1, (physical_cores() - 1) // replicas)


def _describe(card: ModelCard, engine: Engine, load: LoadOptions) -> str:
    return (
        f"{card.file_name} {card.quantisation}, context {engine.context_length}, "
        f"{load.threads} threads, {load.gpu_layers} layers on GPU"
    )
