"""What an example may hold besides plain conversation, by name: providers say which of it they cannot train on.

A check reports the features that a file uses, and refuses those that the job's provider does not take, before a byte
is sent there.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tuneway.dataset.images import images, url_of
from tuneway.dataset.rows import BadExample, Fault, Place, Row


class Feature(StrEnum):
    """The names are those of a provider's declaration, of a check's request and of its report."""

    WEIGHT = "weight"
    """A message with `"weight": 0`: it is shown, not learnt."""
    TOOLS = "tools"
    """Tools, calls or results, in whatever form."""
    FUNCTIONS = "functions"
    """Tools in their old form: `functions`, `function_call`, the role `function`. Such a file uses `tools` as well."""
    PARALLEL_TOOL_CALLS = "parallel_tool_calls"
    """A message with more than one call. The key of that name alone is none: OpenAI's own examples have it."""
    IMAGES = "images"
    """Images in a user's message."""
    IMAGE_URLS = "image_urls"
    """Images that the provider must fetch by itself. Such a file uses `images` as well."""
    NAMES = "names"
    """A `name` of who speaks; the name of a function that answers is none."""
    DEVELOPER = "developer"
    """The role `developer`, the newer name of `system`."""


# What an example has, and what its owner can do where a provider does not take it.
_TOLD: Mapping[Feature, tuple[str, str]] = {
    Feature.WEIGHT: (
        'a message with "weight": 0',
        "Remove the weight, so that it is learnt too, or leave such examples out",
    ),
    Feature.TOOLS: ("tools or calls of tools", "Leave such examples out"),
    Feature.FUNCTIONS: ("functions, the old form of tools", 'Rewrite them as "tools" and "tool_calls"'),
    Feature.PARALLEL_TOOL_CALLS: ("a message with more than one tool call", "Make one message of each call"),
    Feature.IMAGES: ("an image", "Leave such examples out"),
    Feature.IMAGE_URLS: ("an image's address", "Put the image itself there, as a data URL"),
    Feature.NAMES: ('a message with a "name"', "Remove the name, or write it into the content"),
    Feature.DEVELOPER: ("a message from the developer", 'Give it the role "system"'),
}


def features_of(row: Row) -> set[Feature]:
    """All that the row uses."""
    found = set()
    if row.tools.functions:
        found.add(Feature.TOOLS)
    if row.old_tools:
        found.add(Feature.FUNCTIONS)
    for part in (row.conversation, *row.outputs):
        for message, turn in zip(part.messages, part.turns, strict=True):
            role = message["role"]
            if not turn.weight:
                found.add(Feature.WEIGHT)
            if turn.name and role != "function":
                found.add(Feature.NAMES)
            if turn.beyond_text is not None:
                found.add(Feature.IMAGES)
            if role == "developer":
                found.add(Feature.DEVELOPER)
            elif turn.calls or role == "tool" or role == "function":
                found.add(Feature.TOOLS)
                if role == "function" or message.get("function_call") is not None:
                    found.add(Feature.FUNCTIONS)
                if len(turn.calls) > 1:
                    found.add(Feature.PARALLEL_TOOL_CALLS)
    if Feature.IMAGES in found:
        urls = [url_of(image) or "" for _, _, image in images(row.conversation.messages, row.conversation.turns)]
        if any(url.startswith("http") for url in urls):
            found.add(Feature.IMAGE_URLS)
    return found


def refusal(feature: Feature, place: Place) -> BadExample:
    """That the provider does not train on this, and what to do."""
    has, advice = _TOLD[feature]
    message = (
        f"Example {place.example} has {has} (line {place.line}), and this job's provider does not train on that. "
        f"{advice}, or choose another provider."
    )
    return BadExample(message, Fault.PROVIDER)
