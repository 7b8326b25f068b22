"""The rows of a file by training method: what an example must hold, and its parts in the one form of `messages`.

    supervised     {"messages": […], "tools"?, "parallel_tool_calls"?, "functions"?}
    dpo            {"input": {"messages": […], "tools"?, "parallel_tool_calls"?},
                    "preferred_output": [{assistant}, …], "non_preferred_output": [{assistant}, …]}
    reinforcement  {"messages": [… a user's last], "tools"?, any reference for graders}

A dpo row may say `_completion` for `_output`, as OpenAI's schema did until 2025. Words are OpenAI's where known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, NoReturn

from tuneway.dataset.images import MAX_IMAGES, check_images
from tuneway.dataset.messages import ROLES, InvalidMessages, Turn, normalise, quoted
from tuneway.dataset.tools import NO_TOOLS, InvalidTools, Tools, in_text, read_tools
from tuneway.types import Method

_CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
_INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})


class Fault(Enum):
    """What is to blame, which decides the code of the job's error."""

    FORMAT = auto()
    METHOD = auto()
    """The file has the form of another training method."""
    PROVIDER = auto()
    """The example is good, but not for the job's provider."""


class BadExample(Exception):
    """What is wrong with one example."""

    def __init__(self, message: str, fault: Fault = Fault.FORMAT) -> None:
        self.message = message
        self.fault = fault
        super().__init__(message)


class Place(NamedTuple):
    """Where a row stands; both count from 1."""

    example: int
    line: int


class Part(NamedTuple):
    """A list of messages in a row: as it was written under `key`, and in the one form."""

    key: str
    messages: Sequence[Mapping[str, Any]]
    turns: list[Turn]


class Row(NamedTuple):
    """One good example. `outputs` are the preferred and the other one of a dpo row, else none.

    `old_tools`: it has `functions`, the old name of `tools`. `old_outputs`: an output is spelt `_completion`.
    """

    conversation: Part
    tools: Tools
    outputs: tuple[Part, ...] = ()
    old_tools: bool = False
    old_outputs: bool = False

    def shown(self) -> list[Turn]:
        """All that a model sees of it, as text."""
        turns = in_text(self.conversation.turns, self.tools)
        for output in self.outputs:
            turns += in_text(output.turns, NO_TOOLS)
        return turns


def read_row(value: Mapping[str, Any], method: Method, place: Place) -> Row:
    """The row in `value`. Raises BadExample."""
    return _READERS[method](value, place)


def refuse_images(row: Row, place: Place) -> None:
    """Raises BadExample for images that no provider could read; rows of text alone pass."""
    try:
        count = check_images(row.conversation.messages, row.conversation.turns)
    except InvalidMessages as invalid:
        raise BadExample(located(invalid, place)) from None
    if count > MAX_IMAGES:
        raise BadExample(f"Example {place.example} has {count} images, but can have at most {MAX_IMAGES}.")


def located(invalid: InvalidMessages, place: Place, key: str = "messages") -> str:
    """In OpenAI's words: an error in a field names the line, any other the example; `key` holds the messages."""
    if invalid.index is None:
        return f'Line {place.line}, key "{key}": {invalid.reason}'
    message = f"{_of(key)}message {invalid.index + 1}"
    if invalid.key is None:
        return f"Example {place.example}, {message} {invalid.reason}"
    return f'Line {place.line}, {message}, key "{invalid.key}": {invalid.reason}'


def _supervised(value: Mapping[str, Any], place: Place) -> Row:
    if "messages" not in value:
        _refuse_format(value, Method.SUPERVISED, "messages", place)
    _refuse_extra(value, _CHAT_KEYS, f"Example {place.example}")
    conversation = _part(value["messages"], "messages", place)
    answers = [turn for turn in conversation.turns if turn.role == "assistant"]
    if not answers:
        raise BadExample(f"Example {place.example} must have at least one message from the assistant.")
    if not any(turn.weight for turn in answers):
        reason = 'has nothing to learn from: every assistant message has "weight": 0.'
        raise BadExample(f"Example {place.example} {reason}")
    return Row(conversation, _tools(value, place), old_tools=bool(value.get("functions")))


def _dpo(value: Mapping[str, Any], place: Place) -> Row:
    if "input" not in value:
        _refuse_format(value, Method.DPO, "input", place)
    outputs = [_output_key(value, side, place) for side in ("preferred", "non_preferred")]
    _refuse_extra(value, {"input", *outputs}, f"Example {place.example}")
    prompt = value["input"]
    if not isinstance(prompt, Mapping):
        raise BadExample(f'Line {place.line}, key "input": Input should be a valid dictionary')
    if "messages" not in prompt:
        raise BadExample(f"Example {place.example}, input is missing key 'messages'")
    _refuse_extra(prompt, _INPUT_KEYS, f"Example {place.example}, input")
    conversation = _part(prompt["messages"], "input.messages", place)
    for index, turn in enumerate(conversation.turns):
        if turn.beyond_text is not None:
            reason = f"has {turn.beyond_text}, but 'dpo' trains on text only."
            raise BadExample(f"Example {place.example}, input message {index + 1} {reason}")
    return Row(
        conversation,
        _tools(prompt, place, "input."),
        tuple(_output(value[name], name, place) for name in outputs),
        old_outputs=any(name.endswith("_completion") for name in outputs),
    )


def _reinforcement(value: Mapping[str, Any], place: Place) -> Row:
    if "messages" not in value:
        _refuse_format(value, Method.REINFORCEMENT, "messages", place)
    conversation = _part(value["messages"], "messages", place)
    last = conversation.turns[-1].role
    if last != "user":
        if last == "assistant" and value.keys() <= _CHAT_KEYS:
            _refuse_method("fine-tune-chat", Method.SUPERVISED, Method.REINFORCEMENT)
        raise BadExample(f"Example {place.example} must end with a message from the user.")
    # OpenAI reserves these two keys; all others, `functions` too, are the graders'.
    return Row(conversation, _tools({"tools": value.get("tools")}, place))


_READERS: Mapping[Method, Callable[[Mapping[str, Any], Place], Row]] = {
    Method.SUPERVISED: _supervised,
    Method.DPO: _dpo,
    Method.REINFORCEMENT: _reinforcement,
}


def _output_key(value: Mapping[str, Any], side: str, place: Place) -> str:
    key = f"{side}_output"
    found = next((name for name in (key, f"{side}_completion") if name in value), None)
    if found is None:
        raise BadExample(f"Example {place.example} is missing key '{key}'")
    return found


def _part(messages: Any, key: str, place: Place) -> Part:
    try:
        return Part(key, messages, normalise(messages))
    except InvalidMessages as invalid:
        raise BadExample(located(invalid, place, key)) from None


def _output(messages: Any, key: str, place: Place) -> Part:
    """An output of a dpo row: messages of the assistant, which all count."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, Mapping):
            break
        role = message.get("role")
        where = f"Example {place.example}, {_of(key)}message {index + 1}"
        if role in ROLES and role != "assistant":
            raise BadExample(f"{where} is from the {role}, but an output has messages from the assistant only.")
        if message.get("weight") is not None:
            raise BadExample(f'{where} contains an extra "weight".')
    return _part(messages, key, place)


def _tools(value: Mapping[str, Any], place: Place, within: str = "") -> Tools:
    try:
        return read_tools(value)
    except InvalidTools as invalid:
        raise BadExample(f'Line {place.line}, key "{within}{invalid.param}": {invalid.reason}') from None


def _of(key: str) -> str:
    """Says of a message where it stands, unless that goes without saying."""
    part = key.removesuffix("messages").removesuffix(".")
    return f"{part} " if part else ""


def _refuse_extra(value: Mapping[str, Any], known: frozenset[str] | set[str], where: str) -> None:
    if not value.keys() <= known:
        extra = next(key for key in value if key not in known)
        raise BadExample(f"{where} contains an extra {quoted(extra)}.")


def _refuse_format(value: Mapping[str, Any], method: Method, needed: str, place: Place) -> NoReturn:
    """An example without the key that it needs: of another training method, or of none."""
    if method is Method.DPO and "messages" in value:
        _refuse_method("fine-tune-chat", Method.SUPERVISED, method)
    sides = ("preferred_", "non_preferred_")
    if method is not Method.DPO and "input" in value and any(key.startswith(sides) for key in value):
        _refuse_method("fine-tune-preference", Method.DPO, method)
    if "prompt" in value and "completion" in value:
        raise BadExample(
            "Input file is in the fine-tune-completions format, but the base model of the specified fine-tuning job is "
            f"a chat model; every line needs '{needed}'.",
            Fault.METHOD,
        )
    raise BadExample(f"Example {place.example} is missing key '{needed}'")


def _refuse_method(found: str, its: Method, provided: Method) -> NoReturn:
    raise BadExample(
        f"Input file is in the {found} format, but the specified fine-tuning job is not using '{its.value}' as the "
        f"training method (provided method={provided.value}).",
        Fault.METHOD,
    )
