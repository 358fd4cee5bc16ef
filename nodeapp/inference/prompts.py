"""Prompts: from what is asked, messages or text, to the token ids of the loaded model.

What looks like a control token in somebody's text stays text. A text that is too long is refused by
its beginning, before it costs anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nodeapp.core.errors import InvalidRequest, TooLarge
from nodeapp.core.model_card import ModelCard
from nodeapp.inference.chat import MAX_PROMPT_CHARACTERS, ChatRenderer, ControlText
from nodeapp.inference.constraint import Vocabulary
from nodeapp.inference.kv import common_prefix
from nodeapp.inference.llama import LlamaModel
from nodeapp.wire.ipc_inference import ChatMessage, GenerateRequest

_FIRST_LOOK_CHARACTERS = 1 << 15
"""A longer text is refused by its beginning when that alone is too long: tokenising takes a second
a megabyte."""


class Prompts:
    """Of one loaded model; owns the child that renders its chat template."""

    def __init__(self, card: ModelCard, model: LlamaModel, context_length: int) -> None:
        self._card = card
        self._model = model
        self._context_length = context_length
        self._control = ControlText(model.control_texts)
        self._renderer = ChatRenderer(
            card.chat_template,
            bos_text=model.bos_text,
            eos_text=model.eos_text,
            control=self._control,
        )

    async def warm_up(self) -> None:
        """Start the child, so that the first renter does not wait for it."""
        await self._renderer.warm_up()

    async def close(self) -> None:
        """End the child."""
        await self._renderer.close()

    async def ids(self, request: GenerateRequest) -> list[int]:
        """Token ids of the request's prompt.

        Raises:
            InvalidRequest: no prompt, two prompts, bad token id, or the template refuses.
            TooLarge: it is longer than the context.
        """
        prompts = (request.messages, request.prompt_token_ids, request.prompt_text)
        if sum(map(bool, prompts)) != 1:
            raise InvalidRequest(
                "empty prompt: give messages, prompt_token_ids or prompt_text, one of them"
            )
        self.check_ids((*request.prompt_token_ids, *request.continue_token_ids))
        if request.prompt_token_ids:
            return list(request.prompt_token_ids)
        request.check_unicode()
        if request.prompt_text:
            return await self.tokenise(request.prompt_text, limit=self._context_length)
        if not any(message.content.strip() for message in request.messages):
            raise InvalidRequest("empty prompt: every message is blank")
        size = sum(len(message.content) for message in request.messages)
        if size > MAX_PROMPT_CHARACTERS // 2:
            raise TooLarge(
                f"prompt of {size} characters, limit {MAX_PROMPT_CHARACTERS // 2} characters"
            )
        tools = request.tools if request.tool_choice != "none" else ()
        parts = await self._renderer.render(request.messages, tools, asker=request.renter)
        return await asyncio.to_thread(self._tokenise, parts, limit=self._context_length)

    async def beginning(self, system: str) -> tuple[int, ...]:
        """The tokens that every conversation with this system prompt begins with."""
        message = ChatMessage("system", system)
        one, other = [
            await self.ids(GenerateRequest("-", messages=(message, ChatMessage("user", said))))
            for said in ("a", "1")
        ]
        return tuple(one[: common_prefix(one, other)])

    async def tokenise(
        self, text: str, *, add_special: bool = True, limit: int | None = None
    ) -> list[int]:
        """Ids of a text; `add_special` puts a beginning token before it where the model has one.

        Raises:
            TooLarge: more than `limit` tokens, seen before all of a long text was looked at.
        """
        parts = self._control.parts(text)
        return await asyncio.to_thread(self._tokenise, parts, add_special=add_special, limit=limit)

    def detokenise(self, token_ids: Sequence[int]) -> str:
        """The text of ids; control tokens have none.

        Raises:
            InvalidRequest: an id outside the vocabulary.
        """
        self.check_ids(token_ids)
        return b"".join(map(self._model.piece, token_ids)).decode(errors="replace")

    def check_ids(self, token_ids: Sequence[int]) -> None:
        """Raise InvalidRequest for an id outside the vocabulary."""
        highest = max(token_ids, default=0)
        if highest >= self._card.vocabulary_size:
            raise InvalidRequest(
                f"token id {highest} is not below the vocabulary's {self._card.vocabulary_size}"
            )

    def vocabulary(self) -> Vocabulary:
        """What schemas are compiled against; reads every token's text."""
        model = self._model
        pieces = tuple(model.piece(index) for index in range(model.vocabulary_size))
        return Vocabulary(
            pieces, model.end_token_ids, lambda text: model.tokenise(text, add_special=False)
        )

    def _tokenise(
        self, parts: tuple[str, ...], *, add_special: bool = True, limit: int | None = None
    ) -> list[int]:
        """A beginning-of-sequence token is added unless the template wrote it itself."""
        model = self._model
        ids: list[int] = []
        for index, part in enumerate(parts):
            is_written = bool(model.bos_text) and part.startswith(model.bos_text)
            is_begin = add_special and index == 0 and not is_written
            if limit is not None:
                self._require_short(part, limit - len(ids))
            ids += model.tokenise(part, add_special=is_begin)
        return ids

    def _require_short(self, text: str, room: int) -> None:
        """Raise TooLarge when the beginning of a long text has more tokens than `room`."""
        size = _FIRST_LOOK_CHARACTERS
        while size < len(text):
            count = len(self._model.tokenise(text[:size], add_special=False))
            if count > room + 1:  # where it was cut one token may have become two
                raise TooLarge(
                    f"prompt of over {count - 1} tokens does not fit the context of "
                    f"{self._context_length} tokens"
                )
            size *= 4
