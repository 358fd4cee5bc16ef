"""Answers that must be JSON of a schema or calls of a tool: which tokens may come next.

The only file importing llguidance, which walks the grammar and the vocabulary's prefix tree
together. A schema from outside passes the bounds of wire/json_schema, then the compiler inside a
limited child with a deadline, and only then the compiler here; raw grammars are never taken.
Compiled grammars are kept, each for the renter who sent it, so that nobody learns from the time it
takes what others ask for, nor pushes theirs out; each answer walks a copy.
Measured on 49,152 tokens: a check 2-6 us, a mask 5-70 us (llama.cpp's own grammar: 8.1 ms).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.inference.child import LimitedChild
from nodeapp.wire.ipc_inference import GenerateRequest
from nodeapp.wire.json_schema import check_schema, tool_call_schema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # exists in the stub only

CACHE_GRAMMARS = 64
GRAMMARS_OF_ONE = 8
"""Kept for one renter."""
DEADLINE_SECONDS = 3.0
_LIMITS = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 50_000,
    "max_lexer_states": 8_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""Measured on patterns made to be slow: 20 ms for one mask, 10 MB for one grammar, then refused.
"""
_JSON_RULES: JsonCompileOptions = {
    "whitespace_pattern": r"[ \n]{0,16}",
    "coerce_one_of": True,
    "lenient": False,
}
"""Bounded white space: small models otherwise go on indenting until the limit."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of every token (none for control tokens), and those that end an answer."""

    pieces: tuple[bytes, ...]
    end_token_ids: frozenset[int]
    tokenise: Callable[[str], list[int]]


class _Tokens:
    """The vocabulary as llguidance reads it: these names are its interface."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = min(vocabulary.end_token_ids, default=0)
        self.tokens = vocabulary.pieces
        self.special_token_ids = [
            index for index, piece in enumerate(vocabulary.pieces) if not piece
        ]
        self._tokenise = vocabulary.tokenise

    def __call__(self, text: str) -> list[int]:
        return self._tokenise(text)


class GrammarConstraint:
    """One answer's walk through a grammar; used by the decode thread only."""

    def __init__(self, matcher: LLMatcher, end_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = end_token_ids

    @property
    def is_finished(self) -> bool:
        """Nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next; an end token when the answer is whole."""
        if token_id in self._ends:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token_id]))

    def restrict(self, logits: NDArray[np.float32]) -> None:
        """Put minus infinity on every token that may not come next, in place.

        Raises:
            Unavailable: the grammar became too large to follow, or allows no token.
        """
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise Unavailable("the schema became too complex to follow")
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(logits)]
        allowed = bits.astype(bool)
        allowed[list(self._ends)] = self._matcher.is_accepting()
        if not allowed.any():
            raise Unavailable("the schema allows no further token")
        logits[: len(allowed)][~allowed] = -np.inf

    def accept(self, token_id: int) -> None:
        """The token was chosen.

        Raises:
            Unavailable: it does not fit, which `allows` would have said.
        """
        if token_id not in self._ends and not self._matcher.consume_token(token_id):
            raise Unavailable(f"token {token_id} does not fit the schema")


class ConstraintMaker:
    """Compiles what requests ask for; owned by the engine."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._ends: frozenset[int] = frozenset()
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        """By renter and grammar, the one used last at the end."""
        self._child = LimitedChild("JSON schema", module="llguidance", max_answer_bytes=1 << 16)

    @property
    def compiled(self) -> int:
        """Grammars that are kept."""
        return len(self._compiled)

    async def make(self, request: GenerateRequest) -> GrammarConstraint | None:
        """The constraint of a request; None when it asks for none.

        Raises:
            InvalidRequest: a schema over its bounds, not supported, or too slow to compile.
            Busy: too many others have theirs compiled.
        """
        grammar = _grammar(request)
        if not grammar:
            return None
        key = (request.renter, grammar)
        matcher = self._compiled.get(key) or await self._compile(grammar, request.renter)
        self._keep(key, matcher)
        constraint = GrammarConstraint(matcher.deep_copy(), self._ends)
        try:
            for token_id in request.continue_token_ids:
                constraint.accept(token_id)
        except Unavailable as error:
            raise InvalidRequest(
                f"the answer to be continued does not fit: {error.message}",
                param="response_format",
            ) from error
        return constraint

    async def close(self) -> None:
        """End the child."""
        await self._child.close()

    def _keep(self, key: tuple[str, str], matcher: LLMatcher) -> None:
        self._compiled[key] = matcher
        self._compiled.move_to_end(key)
        own = [one for one in self._compiled if one[0] == key[0]]
        if len(own) > GRAMMARS_OF_ONE:
            del self._compiled[own[0]]
        if len(self._compiled) > CACHE_GRAMMARS:
            self._compiled.popitem(last=False)

    async def _compile(self, grammar: str, renter: str) -> LLMatcher:
        question = msgspec.json.encode({"grammar": grammar, "limits": _LIMITS})
        try:
            reply = await self._child.ask(question, deadline_seconds=DEADLINE_SECONDS, asker=renter)
        except Unavailable as error:
            raise InvalidRequest(
                "JSON schema needs more memory than it may have", param="response_format"
            ) from error
        if reply.error:
            raise _refused(reply.error)
        return await asyncio.to_thread(self._compile_here, grammar)

    def _compile_here(self, grammar: str) -> LLMatcher:
        if self._tokenizer is None:
            vocabulary = self._vocabulary()
            self._ends = vocabulary.end_token_ids
            self._tokenizer = LLTokenizer(
                _Tokens(vocabulary),  # type: ignore[arg-type]  # duck-typed, see is_tokenizer_wrapper
                n_vocab=len(vocabulary.pieces),
                eos_token=sorted(vocabulary.end_token_ids),
            )
        limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]  # one dict for both places
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return matcher


def _refused(error: str) -> InvalidRequest:
    reason = error.partition("\n")[0][:300]
    return InvalidRequest(f"JSON schema: {reason}", param="response_format")


def _grammar(request: GenerateRequest) -> str:
    """The grammar of a request, "" for none; JSON text, the key of the cache."""
    for tool in request.tools:
        if tool.parameters:
            check_schema(tool.parameters, "tools")
    if request.json_schema:
        check_schema(request.json_schema)
    if request.tools and request.tool_choice == "required":
        return LLMatcher.grammar_from_lark(_call_rule(request))
    if not request.json_schema:
        return ""
    if request.tools and request.tool_choice == "auto":
        schema = _with_rules(msgspec.json.decode(request.json_schema, type=dict[str, object]))
        return LLMatcher.grammar_from_lark(
            _call_rule(request).replace("start: call", "start: call | answer", 1)
            + f"answer: %json {schema}\n"
        )
    return LLMatcher.grammar_from_json_schema(request.json_schema, overrides=_JSON_RULES)


def _call_rule(request: GenerateRequest) -> str:
    """One call, in the format of Hermes, which every reader of an answer knows."""
    wanted = [tool for tool in request.tools if request.tool_name in ("", tool.name)]
    schema = _with_rules(tool_call_schema(wanted))
    return f'start: call\ncall: "<tool_call>\\n" object "\\n</tool_call>"\nobject: %json {schema}\n'


def _with_rules(schema: dict[str, object]) -> str:
    return msgspec.json.encode({**schema, "x-guidance": _JSON_RULES}).decode()
