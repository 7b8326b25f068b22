"""Images in the messages of an example: where they are, which may be there, and lines without their data.

No renderer shows images; a provider that renders by itself may. Only users send them, as OpenAI's API has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneway.dataset.messages import InvalidMessages, Turn

MAX_IMAGES = 10
MAX_IMAGE_BYTES = 10 * 2**20
"""OpenAI's bounds, of one example and of one image. A file of an address is not fetched, so it is not measured."""

MAX_LINE_DATA = MAX_IMAGES * 14 * 2**20
"""As many images in base64, a third longer, and with the `\\/` for `/` that some write."""

_URL = re.compile(r"https?://\S+|data:image/(?:jpe?g|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
_DATA = re.compile(rb'"(data:image\\?/(?:jpe?g|png|webp);base64,)((?:[A-Za-z0-9+/=]++|\\/)*+)"')


class ImageTooLarge(ValueError):
    """The message says so."""


def images(messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn]) -> Iterator[tuple[int, str, Any]]:
    """Of each image: the message's index, the key that leads to it, and its `image_url`, which may be anything."""
    for index, (message, turn) in enumerate(zip(messages, turns, strict=True)):
        if turn.beyond_text is None:
            continue
        for at, part in enumerate(message["content"]):
            if part["type"] == "image_url":
                yield index, f"content[{at}].image_url", part.get("image_url")


def url_of(image: Any) -> str | None:
    """The URL of an `image_url`, where there is one."""
    url = image.get("url") if isinstance(image, Mapping) else None
    return url if isinstance(url, str) else None


def check_images(messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn]) -> int:
    """How many images there are. Raises InvalidMessages for the first one that no provider could read."""
    count = 0
    for index, key, image in images(messages, turns):
        count += 1
        if not isinstance(image, Mapping):
            raise InvalidMessages("Input should be a valid dictionary", index, key)
        if not _URL.fullmatch(url_of(image) or ""):
            reason = "Input should be an http(s) URL, or a data URL with a JPEG, PNG or WEBP image in base64"
            raise InvalidMessages(reason, index, f"{key}.url")
    return count


def without_data(line: bytes) -> bytes:
    """A line of JSON whose images are still images, of a few bytes each. Raises ImageTooLarge."""
    return _DATA.sub(_shortened, line)


def _shortened(found: re.Match[bytes]) -> bytes:
    size = (found.end(2) - found.start(2) - found[2].count(b"\\")) * 3 // 4
    if size > MAX_IMAGE_BYTES + 2:  # up to two bytes of padding
        raise ImageTooLarge(f"line holds an image of more than {MAX_IMAGE_BYTES:,} bytes; make it smaller")
    return b'"%sAAAA"' % found[1]
