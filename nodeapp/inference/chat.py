"""Conversation -> prompt text by the model's own template, rendered in a limited child process.

A renter's text must never become a control token. Where it holds the text of one
(`<|im_start|>`), a mark is put after that text's first character; the rendered prompt is cut at
the marks and the parts are tokenised one by one, so the control text is never whole. Text
without control tokens is untouched and tokenises exactly as the template's author meant.

Tools go to templates that know them; for others they are described in the system message, and
calls and their results are put into the text, in the format of Hermes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.inference.child import LimitedChild
from nodeapp.service.logs import get_logger
from nodeapp.wire.ipc_inference import ChatMessage, Tool
from nodeapp.wire.json_schema import ANY_OBJECT, is_deeper

MARK = "\ufdd0"
"""A Unicode noncharacter: reserved for use inside a program, never text."""
MAX_PROMPT_CHARACTERS = 4 << 20
DEADLINE_SECONDS = 5.0
MAX_ARGUMENT_DEPTH = 64
_KNOWS_TOOLS = re.compile(r"\btools\b")
_TOOL_RULES = """You may call these functions to help with the user's request; each is one line:
<tools>
{tools}
</tools>
To call one, answer with only its name and arguments as JSON:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>"""
_log = get_logger(__name__)


class ControlText:
    """The texts of a vocabulary's control tokens, and how to defuse them in a renter's text."""

    def __init__(self, texts: Sequence[str]) -> None:
        longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def defuse(self, text: str) -> str:
        """Break every control text; marks that came with the text are replaced by U+FFFD."""
        clean = text.replace(MARK, "\ufffd")
        return self._pattern.sub(lambda hit: f"{hit[0][0]}{MARK}{hit[0][1:]}", clean)

    def defuse_all(self, value: object) -> object:
        """The same for every text and key inside a JSON value."""
        if isinstance(value, str):
            return self.defuse(value)
        if isinstance(value, dict):
            return {self.defuse(str(key)): self.defuse_all(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.defuse_all(inner) for inner in value]
        return value

    def parts(self, text: str) -> tuple[str, ...]:
        """A text as parts to be tokenised one by one: none of them holds a control text."""
        return split_at_marks(self.defuse(text))


def split_at_marks(text: str) -> tuple[str, ...]:
    """The parts between marks; empty ones left out."""
    return tuple(part for part in text.split(MARK) if part)


class ChatRenderer:
    """Renders with one child, which is kept from one conversation to the next."""

    def __init__(
        self, template: str, *, bos_text: str, eos_text: str, control: ControlText
    ) -> None:
        self._template = template
        self._knows_tools = _KNOWS_TOOLS.search(template) is not None
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._control = control
        self._child = LimitedChild(
            "chat template", module="jinja2.sandbox", max_answer_bytes=MAX_PROMPT_CHARACTERS * 6
        )

    async def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        asker: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> tuple[str, ...]:
        """The prompt as parts to be tokenised one by one, control tokens parsed in each.

        `asker` is whose turn at the child it counts as.

        Raises:
            InvalidRequest: no template, refused by it, over its bounds or its deadline.
            Busy: too many others have theirs rendered.
            Unavailable: the child could not be started or was killed from outside.
        """
        if not self._template:
            raise InvalidRequest("this model has no chat template: send a prompt, not messages")
        values: dict[str, object] = {
            "add_generation_prompt": True,
            "tools": None,  # templates ask `is none` or `is defined`; authors tried with None
            "documents": None,
            **self._tokens,
        }
        if self._knows_tools:
            values["messages"] = [self._turn(message) for message in messages]
            if tools:
                values["tools"] = [self._control.defuse_all(_tool(tool)) for tool in tools]
        else:
            values["messages"] = self._plain_turns(messages, tools)
        question = msgspec.json.encode(
            {
                "template": self._template,
                "values": values,
                "max_characters": MAX_PROMPT_CHARACTERS,
            }
        )
        reply = await self._child.ask(question, deadline_seconds=deadline_seconds, asker=asker)
        if reply.error:
            raise InvalidRequest(f"chat template: {reply.error}")
        return split_at_marks(reply.text)

    async def warm_up(self) -> None:
        """Start the child and compile the template, so that the first renter does not wait.

        Raises:
            Unavailable: the child could not be started.
        """
        if not self._template:
            return
        try:
            await self.render((ChatMessage(role="user", content="hello"),))
        except InvalidRequest as refusal:
            # Its affair: what a renter sends may please the template better.
            _log.warning("chat template refuses a greeting", error=refusal.message)

    async def close(self) -> None:
        """End the child."""
        await self._child.close()

    def _turn(self, message: ChatMessage) -> dict[str, object]:
        """As templates that know tools expect it: arguments are objects."""
        turn: dict[str, object] = {
            "role": message.role,
            "content": self._control.defuse(message.content),
        }
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._control.defuse(call.call_id),
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": self._control.defuse_all(_arguments(call.arguments)),
                    },
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            turn["tool_call_id"] = self._control.defuse(message.tool_call_id)
        return turn

    def _plain_turns(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool]
    ) -> list[dict[str, object]]:
        turns = [(message.role, _plain_text(message)) for message in messages]
        if tools:
            lines = "\n".join(msgspec.json.encode(_tool(tool)).decode() for tool in tools)
            rules = _TOOL_RULES.format(tools=lines)
            if turns and turns[0][0] == "system":
                rules = f"{turns.pop(0)[1]}\n\n{rules}"
            turns.insert(0, ("system", rules))
        return [
            {"role": "user" if role == "tool" else role, "content": self._control.defuse(text)}
            for role, text in turns
        ]


def _plain_text(message: ChatMessage) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    calls = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'
        for call in message.tool_calls
    ]
    return "\n".join((*([message.content] if message.content else ()), *calls))


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = msgspec.json.decode(tool.parameters or ANY_OBJECT)
    return {"type": "function", "function": function}


def _arguments(text: str) -> object:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"arguments of a tool call are not JSON: {error}", param="messages"
        ) from error
    if is_deeper(value, MAX_ARGUMENT_DEPTH):
        raise InvalidRequest(
            f"arguments of a tool call are nested over {MAX_ARGUMENT_DEPTH} deep", param="messages"
        )
    return value
