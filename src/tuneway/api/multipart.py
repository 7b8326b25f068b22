"""Forms, streamed: the bytes of their file go on as they come, and only the small fields are kept in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, NoReturn, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from tuneway.api.schema.files import EXPIRES_AFTER_SECONDS, MAX_NAME_LENGTH, PURPOSES, require_suffix
from tuneway.errors import InvalidRequest, PayloadTooLarge, UnknownField, UnsupportedMediaType
from tuneway.uploads import MAX_PART_BYTES

MAX_FIELD_BYTES = 1024
MAX_FRAMING_BYTES = 64 * 1024
"""What a form may hold besides the file: fields, headers, boundaries."""

_FILE = "file"
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)

_DATA = "data"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [_FILE, "purpose"],
                    "properties": {
                        _FILE: {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        _ANCHOR: {"type": "string", "enum": ["created_at"]},
                        _SECONDS: {
                            "type": "integer",
                            "minimum": EXPIRES_AFTER_SECONDS[0],
                            "maximum": EXPIRES_AFTER_SECONDS[-1],
                        },
                    },
                }
            }
        },
    }
}
"""The OpenAPI description of a file's form."""

PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [_DATA],
                    "properties": {_DATA: {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
"""The OpenAPI description of a part's form."""


class Sink(Protocol):
    """Where the bytes go."""

    async def write(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class UploadForm:
    """The form around the bytes. `expires_after` is in seconds."""

    filename: str
    purpose: str
    expires_after: int | None


class StreamedForm:
    """A form that is passed on while it comes, whole (`raw`) or as its file alone (`content`): one of the two, once.

    Fields may stand before and behind the file; they are all known when `content` has ended.
    """

    def __init__(self, request: Request) -> None:
        """Raises what a form of a wrong kind does."""
        self._boundary = _boundary(request)
        self._request = request
        self._reader = _Reader(self._boundary, _FILE, _FIELDS)
        self._chunks = request.stream()
        self._first = b""
        self.content_type = request.headers["content-type"]
        declared = request.headers.get("content-length", "")
        self.length = int(declared) if declared.isascii() and declared.isdecimal() else None

    def raw(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def filename(self) -> str:
        """Raises InvalidRequest for a form without a file."""
        while self._reader.filename is None:
            chunk = await anext(self._chunks, b"")
            self._first += self._reader.feed(chunk)
            if not chunk:
                self._reader.part()
                raise _missing(_FILE)
        return self._reader.filename

    async def content(self) -> AsyncIterator[bytes]:
        """The file's bytes. Raises InvalidRequest for a form that is none, or not complete."""
        await self.filename()
        if self._first:
            yield self._first
        async for chunk in self._chunks:
            data = self._reader.feed(chunk)
            if data:
                yield data
        self._reader.part()

    def fields(self) -> Mapping[str, str]:
        return self._reader.fields


async def read_upload(request: Request, sink: Sink, max_file_bytes: int) -> UploadForm:
    """Streams a form of `POST /v1/files`: the bytes of `file` into `sink`, fields in any order.

    Raises what `_stream` does.
    """
    reader = _Reader(_boundary(request), _FILE, _FIELDS)
    await _stream(request, reader, sink, max_file_bytes, "raise the setting `max_file_bytes`")
    return reader.upload()


async def read_part(request: Request, sink: Sink) -> None:
    """Streams a form of `POST /v1/uploads/{id}/parts`: the bytes of `data`, with a filename or without, into `sink`.

    Raises what `_stream` does.
    """
    reader = _Reader(_boundary(request), _DATA, ())
    await _stream(request, reader, sink, MAX_PART_BYTES, "send more parts")
    reader.part()


async def _stream(request: Request, reader: _Reader, sink: Sink, limit: int, remedy: str) -> None:
    """Reads the form, of which the file has at most `limit` bytes.

    Raises InvalidRequest that names the field, PayloadTooLarge, what `sink` raises, and ClientDisconnect.
    """
    too_large = PayloadTooLarge(
        f"The file is larger than the {limit} bytes that this URL accepts. Send less, or {remedy}.", param=reader.file
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit + MAX_FRAMING_BYTES:
        raise too_large
    received = file_bytes = 0
    async for chunk in request.stream():
        received += len(chunk)
        data = reader.feed(chunk)
        file_bytes += len(data)
        if file_bytes > limit:
            raise too_large
        if received - file_bytes > MAX_FRAMING_BYTES:
            raise PayloadTooLarge(f"The form has more than {MAX_FRAMING_BYTES} bytes besides its file. Send less.")
        if data:
            await sink.write(data)


def _boundary(request: Request) -> bytes:
    """Raises UnsupportedMediaType for a body that is no form, InvalidRequest for one without a boundary."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("A file must be sent with 'Content-Type: multipart/form-data'.")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The header Content-Type of a form must name its boundary.")
    return boundary


class _Reader:
    """Works off the parser's callbacks: gathers fields, and hands out what a chunk held of the file.

    `file` is the name of the part whose bytes are handed out, `fields` are those of the others that may be there.
    """

    def __init__(self, boundary: bytes, file: str, fields: Collection[str]) -> None:
        self.file = file
        self._known = fields
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            _malformed(error)
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._has_file = False
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._name = ""
        self._value = bytearray()
        self._file_data: list[bytes] = []
        self._ended = False

    @property
    def filename(self) -> str | None:
        """Of the file, once its part has begun."""
        return self._filename

    @property
    def fields(self) -> Mapping[str, str]:
        """Those that were read so far."""
        return self._fields

    def feed(self, chunk: bytes) -> bytes:
        """The bytes of the file in this chunk. Raises InvalidRequest."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            _malformed(error)
        data = b"".join(self._file_data)
        self._file_data.clear()
        return data

    def upload(self) -> UploadForm:
        """What was read, checked as a whole. Raises InvalidRequest."""
        self.part()
        if "purpose" not in self._fields:
            raise _missing("purpose")
        filename, purpose = _checked_filename(self._filename), self._fields["purpose"]
        require_suffix(filename, purpose, _FILE)
        return UploadForm(filename, purpose, self._expires_after())

    def part(self) -> None:
        """Raises InvalidRequest unless the form came whole and with its file."""
        if not self._ended:
            raise InvalidRequest("The form is not complete: its closing boundary is missing.")
        if not self._has_file:
            raise _missing(self.file)

    def _expires_after(self) -> int | None:
        if _ANCHOR not in self._fields and _SECONDS not in self._fields:
            return None
        for name in (_ANCHOR, _SECONDS):
            if name not in self._fields:
                raise _missing(name)
        if self._fields[_ANCHOR] != "created_at":
            raise InvalidRequest(
                f"Invalid value: '{self._fields[_ANCHOR]}'. Supported values are: 'created_at'.",
                param=_ANCHOR,
                code="invalid_value",
            )
        text = self._fields[_SECONDS]
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in EXPIRES_AFTER_SECONDS:
            raise InvalidRequest(
                f"Invalid '{_SECONDS}': expected a whole number of seconds from {EXPIRES_AFTER_SECONDS[0]} to "
                f"{EXPIRES_AFTER_SECONDS[-1]}, but got '{text}' instead.",
                param=_SECONDS,
                code="invalid_value",
            )
        return int(text)

    # ------------------------------------------------------------------------------------- callbacks of the parser

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._name = ""
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"7bit", b"8bit", b"binary"):
            raise InvalidRequest("A part of the form has a Content-Transfer-Encoding. Send its bytes as they are.")
        name, filename = _disposition(self._headers.get(b"content-disposition", b""), self.file)
        if name != self.file and name not in self._known:
            raise UnknownField(f"Unknown parameter: '{name[:100]}'. Remove it.", param=name[:100])
        if name in self._fields or (name == self.file and self._has_file):
            raise InvalidRequest(f"The form has the field '{name}' more than once.", param=name)
        if name == self.file:
            self._has_file = True
            # At once where it matters, so that a large file with a wrong name is refused before it is sent.
            self._filename = _checked_filename(filename) if self.file == _FILE else filename
        self._name = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.file:
            self._file_data.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"The form's field '{self._name}' is longer than any it may hold.", param=self._name)

    def _on_part_end(self) -> None:
        if self._name == self.file:
            return
        value = _text(bytes(self._value), self._name)
        # Here and not at the end, so that a large file behind a wrong purpose is refused before it is sent.
        if self._name == "purpose" and value not in PURPOSES:
            raise InvalidRequest(f"'{value}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
        self._fields[self._name] = value

    def _on_end(self) -> None:
        self._ended = True


def _disposition(header: bytes, file: str) -> tuple[str, str | None]:
    """Name and filename of a part. A name in `filename*` (RFC 5987) weighs more than one in `filename`.

    `file` is what an error about a filename names.
    """
    message = Message()
    message["content-disposition"] = header.decode("latin-1")
    # The module's own annotations leave out the triple that an extended value comes as.
    params: list[tuple[str, Any]] = message.get_params([], "content-disposition")
    kind = params[0][0].lower() if params else ""
    names = [value for key, value in params if key.lower() == "name" and isinstance(value, str)]
    if kind != "form-data" or len(names) != 1:
        raise InvalidRequest("Every part of the form needs the header 'Content-Disposition: form-data; name=…'.")
    filename: str | None = None
    for key, value in params:
        if key.lower() != "filename":
            continue
        if isinstance(value, tuple):
            charset, _, encoded = value
            if (charset or "utf-8").lower() != "utf-8":
                raise InvalidRequest("A filename* must be in UTF-8.", param=file)
            return _text(names[0].encode("latin-1"), "name"), _text(encoded.encode("latin-1"), file)
        filename = _text(value.encode("latin-1"), file)
    return _text(names[0].encode("latin-1"), "name"), filename


def _checked_filename(filename: str | None) -> str:
    if not filename:
        raise InvalidRequest("'file' must be sent as a file, with a filename.", param=_FILE)
    if _CONTROL.search(filename):
        raise InvalidRequest("The filename holds control characters. Rename the file.", param=_FILE)
    if len(filename) > MAX_NAME_LENGTH:
        raise InvalidRequest(f"The filename is longer than {MAX_NAME_LENGTH} characters. Rename the file.", param=_FILE)
    return filename


def _text(value: bytes, param: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{param}' is not valid UTF-8.", param=param) from None


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _malformed(error: FormParserError) -> NoReturn:
    raise InvalidRequest(f"The body is not a valid form: {error}.") from error
