"""A model on its way into the store: fetch, hash, header, sandboxed load, template, take in.

Nothing native sees the bytes before the header was checked, and then only the shut-in child.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeapp.core.errors import NotFound, Rejected, TooLarge, Unavailable
from nodeapp.inference.catalogue import (
    CatalogueEntry,
    checked_digest,
    checked_name,
    name_of_file,
)
from nodeapp.inference.chat import ChatRenderer, ControlText
from nodeapp.inference.gguf import GgufHeader, read_header
from nodeapp.inference.model_source import FileSource, Source, WebSource, parse_source
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.probe import Prober, Verdict
from nodeapp.service.download import (
    CHUNK_BYTES,
    Fetched,
    Progress,
    Wanted,
    download,
    refuse_if_full,
)
from nodeapp.service.settings import InferenceSettings
from nodeapp.store.digest import sha256_of
from nodeapp.store.lock import FileLock
from nodeapp.wire.ipc_inference import ChatMessage

MAX_MODEL_BYTES = 2 << 40

Report = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Addition:
    """What to add; "" where the source decides. `now` is Unix seconds."""

    text: str
    source: Source
    now: int
    name: str = ""
    repo: str = ""
    file_name: str = ""
    sha256: str = ""
    pinned: bool = False


def registry_names(addition: Addition) -> tuple[str, str]:
    """Repository and file name that the model will be listed with."""
    _, repo, file_name = _names(addition)
    return repo, file_name


def configured_addition(settings: InferenceSettings, portal_url: str, *, now: int) -> Addition:
    """What `inference.model_source` says; a hub knows repository and file itself.

    Raises:
        InvalidRequest: a source of no known form.
    """
    text = settings.model_source
    source = parse_source(text, hub_url=settings.hub_url, portal_url=portal_url)
    told = isinstance(source, WebSource) and bool(source.repo)
    return Addition(
        text,
        source,
        now,
        name=settings.model,
        repo="" if told else settings.model_repo,
        file_name="" if told else settings.model_file,
        sha256=checked_digest(settings.model_sha256) if settings.model_sha256 else "",
    )


@dataclass(frozen=True, slots=True)
class Added:
    """The new entry, and the names of those that made room for it."""

    entry: CatalogueEntry
    removed: tuple[str, ...]


async def add_model(
    addition: Addition, store: ModelStore, prober: Prober, *, report: Report, say: Say
) -> Added:
    """Fetch, check and list a model; an interrupted download goes on at the next call.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: not a model this node serves, or its name is none.
        TooLarge: no room.
        Rejected: another hash than expected, or the name is taken.
        Unavailable: the connection broke again and again.
    """
    store.check_room(0)
    _check_name(addition, store)
    mark = hashlib.sha256(addition.text.encode()).hexdigest()[:16]
    part = store.parts / f"{name_of_file(_names(addition)[2])}.{mark}.part"
    lock = FileLock(part.with_suffix(".lock"))
    lock.acquire(f"download of {addition.text[:200]}")
    try:
        fetched = await _fetch(addition, store, part, report)
        entry = await _checked(addition, fetched, prober, say)
        removed = await asyncio.to_thread(store.take_in, fetched.path, entry)
        if fetched.path == part:
            part.unlink(missing_ok=True)
    except TooLarge:
        raise  # room can be made: what has come is kept
    except Rejected:
        # Whatever it is, it is not a model: going on with it later makes no sense.
        part.unlink(missing_ok=True)
        raise
    finally:
        lock.release()
    return Added(entry, removed)


async def check_template(header: GgufHeader, verdict: Verdict) -> None:
    """Render a greeting by the model's own template, in its sandbox.

    Raises:
        InvalidRequest: it refuses, does not end, or writes without end.
    """
    if not header.chat_template:
        return
    renderer = ChatRenderer(
        header.chat_template,
        bos_text=verdict.bos_text,
        eos_text=verdict.eos_text,
        control=ControlText(()),
    )
    try:
        await renderer.render((ChatMessage(role="user", content="hello"),))
    finally:
        await renderer.close()


def _check_name(addition: Addition, store: ModelStore) -> None:
    """Before anything is fetched."""
    name = checked_name(_names(addition)[0])
    for entry in store.entries():
        if entry.name == name and entry.sha256 != addition.sha256:
            raise Rejected(f"model {name} is there already: remove it first or give another --name")


def _names(addition: Addition) -> tuple[str, str, str]:
    """Name in the catalogue, repo and file of the registry."""
    source = addition.source
    own = source.path.name if isinstance(source, FileSource) else source.file_name
    file_name = addition.file_name or own
    told = source.repo if isinstance(source, WebSource) else ""
    return addition.name or name_of_file(file_name), addition.repo or told or "local", file_name


async def _fetch(addition: Addition, store: ModelStore, part: Path, report: Report) -> Fetched:
    if addition.sha256:
        there = store.blob(addition.sha256)
        if await asyncio.to_thread(there.is_file):
            # Left over from a lost catalogue: hash it, it is as good as a download.
            return await asyncio.to_thread(_hash, there)
    match addition.source:
        case FileSource(path):
            return await asyncio.to_thread(_copy, path, part, store, addition.sha256)
        case WebSource() as source:
            wanted = Wanted(source.url, MAX_MODEL_BYTES, addition.sha256, source.blake3)
            return await download(wanted, part, report=report, check_room=store.check_room)


async def _checked(
    addition: Addition, fetched: Fetched, prober: Prober, say: Say
) -> CatalogueEntry:
    if addition.sha256 and fetched.sha256 != addition.sha256:
        raise Rejected(f"{fetched.path.name} has sha256 {fetched.sha256}: {addition.sha256} wanted")
    say("checking the header")
    header = await asyncio.to_thread(read_header, fetched.path)
    say("loading it in the sandbox")
    verdict = await prober.probe(fetched.path, fetched.sha256)
    say("rendering its chat template")
    await check_template(header, verdict)
    name, repo, file_name = _names(addition)
    return CatalogueEntry(
        name=name,
        source=addition.text,
        repo=repo,
        file_name=file_name,
        sha256=fetched.sha256,
        size_bytes=fetched.size_bytes,
        architecture=header.architecture,
        quantisation=header.quantisation,
        context_length=header.context_length,
        licence=header.licence,
        added_at=addition.now,
        pinned=addition.pinned,
    )


def _copy(source: Path, part: Path, store: ModelStore, expected: str) -> Fetched:
    """Into the store's file system, hashed on the way; checked first, it may be no model at all."""
    try:
        size = source.stat().st_size
    except FileNotFoundError as error:
        raise NotFound(f"model file {source} does not exist") from error
    read_header(source)
    store.check_room(size)
    try:
        found, copied = _copy_bytes(source, part)
    except OSError as error:
        part.unlink(missing_ok=True)
        refuse_if_full(error, part)
        raise Unavailable(
            f"{source} cannot be copied to {part.parent}: {error.strerror}"
        ) from error
    if expected and found != expected:
        raise Rejected(f"{source} has sha256 {found}, expected {expected}")
    return Fetched(part, found, copied)


def _copy_bytes(source: Path, part: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    with source.open("rb") as reader, part.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        return digest.hexdigest(), writer.tell()


def _hash(path: Path) -> Fetched:
    return Fetched(path, sha256_of(path), path.stat().st_size)
