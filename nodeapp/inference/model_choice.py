"""Which model file is served: the operator's remembered choice, else what the settings name.

The choice is remembered, so that a restart serves the same. It holds as long as the settings name
the model they named when it was made: an operator who edits them means it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeapp.core.errors import NotFound
from nodeapp.inference.model_store import ModelStore
from nodeapp.inference.models import ModelFile
from nodeapp.service.logs import get_logger
from nodeapp.service.settings import InferenceSettings
from nodeapp.store.atomic import write_whole

_log = get_logger(__name__)


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model of the catalogue, and what the settings named then."""

    name: str
    instead_of: str


class ModelChoice:
    """Which file to serve: the remembered choice, else what the settings say."""

    def __init__(self, settings: InferenceSettings, store: ModelStore, memory: Path) -> None:
        self._settings = settings
        self._store = store
        self._memory = memory

    def first(self) -> ModelFile:
        """For the start of the process; blocks on small files.

        Raises:
            NotFound: the settings name a model that is not in the catalogue.
        """
        choice = self._recall()
        if choice is not None:
            try:
                return self.named(choice.name)
            except NotFound:
                _log.warning("chosen model is gone, serving the configured one", name=choice.name)
        return self.configured()

    def configured(self) -> ModelFile:
        """What the settings name."""
        settings = self._settings
        if settings.model and not settings.model_path:
            return self.named(settings.model)
        return ModelFile(
            Path(settings.model_path),
            settings.model_sha256,
            settings.model_repo,
            settings.model_file,
        )

    def named(self, name: str) -> ModelFile:
        """A model of the catalogue.

        Raises:
            NotFound: no such name.
        """
        entry = self._store.find(name)
        path = self._store.blob(entry.sha256)
        return ModelFile(path, entry.sha256, entry.repo, entry.file_name, name)

    def remember(self, model: ModelFile) -> None:
        """For the next start; a model without a name is the configured one."""
        if not model.name:
            self._memory.unlink(missing_ok=True)
            return
        choice = _Choice(model.name, self._configured_text())
        write_whole(self._memory, msgspec.json.encode(choice))

    def _recall(self) -> _Choice | None:
        try:
            choice = msgspec.json.decode(self._memory.read_bytes(), type=_Choice)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            _log.warning("remembered model choice is damaged", error=str(error))
            return None
        return choice if choice.instead_of == self._configured_text() else None

    def _configured_text(self) -> str:
        settings = self._settings
        return f"{settings.model_path or settings.model} {settings.model_sha256}"
