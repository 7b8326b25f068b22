"""Files and uploads of OpenAI's shape: kept when small, counted and hashed when large, and lists by the page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote

from tests.simulators import openai_bodies as bodies
from tests.simulators.base import Answer, Handler, Refused, Request, Simulator, as_json
from tests.simulators.multipart import KEPT, Part
from tests.simulators.openai_training import File, new_id, now

PURPOSES = ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
FILE_FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
MAX_PART = 64 * 1024**2
Wire = dict[str, Any]


@dataclass
class Upload:
    wire: Wire
    parts: dict[str, Part] = field(default_factory=dict)


class FilesSimulator(Simulator):
    """The half of a vendor that holds files."""

    max_file: ClassVar = 512 * 1024**2

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.uploads: dict[str, Upload] = {}
        self.base64_results = False
        self.file_status = "processed"

    def file_routes(self, root: str) -> list[tuple[str, str, str, Handler]]:
        upload = f"{root}/uploads/{{upload}}"
        return [
            ("POST", f"{root}/files", "create_file", self.create_file),
            ("GET", f"{root}/files", "files", self.list_files),
            ("GET", f"{root}/files/{{file}}", "file", self.get_file),
            ("GET", f"{root}/files/{{file}}/content", "file_content", self.get_content),
            ("DELETE", f"{root}/files/{{file}}", "delete_file", self.delete_file),
            ("POST", f"{root}/uploads", "create_upload", self.create_upload),
            ("POST", f"{upload}/parts", "add_part", self.add_part),
            ("POST", f"{upload}/complete", "complete_upload", self.complete_upload),
            ("POST", f"{upload}/cancel", "cancel_upload", self.cancel_upload),
        ]

    def create_file(self, request: Request) -> Answer:
        form = request.form
        if form is None or not form.whole:
            raise Refused(400, "Could not parse multipart form")
        for part in form.parts:
            if part.name not in FILE_FIELDS:
                raise Refused(400, f"Unrecognized request argument supplied: {part.name}")
        file, purpose = form.part("file"), form.part("purpose")
        if file is None or file.filename is None:
            raise Refused(400, "'file' is a required property", param="file")
        if purpose is None:
            raise Refused(400, "'purpose' is a required property", param="purpose")
        self.check_file(file.filename, purpose.text, file.size)
        seconds = form.part("expires_after[seconds]")
        if seconds is not None:
            bodies.EXPIRY({"anchor": "created_at", "seconds": int(seconds.text)}, "expires_after")
        content = None if file.content is None else bytes(file.content)
        made = self.add_file(file.filename, purpose.text, file.size, content, file.rows, file.sha256.hexdigest())
        return as_json(self.file_wire(made))

    def check_file(self, filename: str, purpose: str, size: int) -> None:
        if purpose not in PURPOSES:
            raise Refused(400, f"'{purpose}' is not one of {PURPOSES} - 'purpose'", param="purpose")
        if purpose == "fine-tune" and not filename.endswith(".jsonl"):
            raise Refused(400, "Invalid file format for Fine-Tuning API. Must be .jsonl")
        if size > self.max_file:
            raise Refused(413, f"Maximum file size is {self.max_file} bytes")

    def add_file(self, name: str, purpose: str, size: int, content: bytes | None, rows: int, sha256: str) -> File:
        wire: Wire = {"object": "file", "id": self.new_file_id(), "purpose": purpose, "filename": name, "bytes": size}
        wire |= {"created_at": now(), "expires_at": None, "status": self.file_status, "status_details": None}
        self.files[wire["id"]] = file = File(wire, content, rows, sha256)
        return file

    def find_file(self, request: Request) -> File:
        name = request.params["file"]
        if name not in self.files:
            raise Refused(404, f"No such File object: {name}", param="id")
        file: File = self.files[name]
        return file

    def get_file(self, request: Request) -> Answer:
        return as_json(self.file_wire(self.find_file(request)))

    def list_files(self, request: Request) -> Answer:
        purpose, order = request.seen.query.get("purpose"), request.seen.query.get("order", "desc")
        found = [self.file_wire(file) for file in self.files.values() if purpose in (None, file.wire["purpose"])]
        return as_json(page(found if order == "asc" else found[::-1], request, 10000, 10000, ends=True))

    def get_content(self, request: Request) -> Answer:
        file = self.find_file(request)
        if file.content is None:
            raise Refused(400, f"The simulator keeps no content beyond {KEPT} bytes.")
        content = file.content
        if self.base64_results and file.wire["purpose"] == "fine-tune-results":
            content = base64.b64encode(content)
        shown = f"attachment; filename*=UTF-8''{quote(file.wire['filename'])}"
        return Answer([content], headers={"content-type": "application/octet-stream", "content-disposition": shown})

    def delete_file(self, request: Request) -> Answer:
        file = self.files.pop(self.find_file(request).wire["id"])
        return as_json({"object": "file", "id": file.wire["id"], "deleted": True})

    def create_upload(self, request: Request) -> Answer:
        body = request.object()
        bodies.UPLOAD(body, "")
        self.check_file(body["filename"], body["purpose"], 0)
        wire: Wire = {"object": "upload", "id": new_id("upload_", 32), "created_at": now(), "status": "pending"}
        wire |= {name: body[name] for name in ("filename", "bytes", "purpose")} | {"expires_at": now() + 3600}
        self.uploads[wire["id"]] = Upload(wire)
        return as_json(wire)

    def find_upload(self, request: Request) -> Upload:
        name = request.params["upload"]
        if name not in self.uploads:
            raise Refused(404, f"No such Upload object: {name}", param="id")
        if self.uploads[name].wire["status"] != "pending":
            raise Refused(400, f"Upload {name} is {self.uploads[name].wire['status']}.")
        return self.uploads[name]

    def add_part(self, request: Request) -> Answer:
        upload = self.find_upload(request)
        data = request.form.part("data") if request.form and request.form.whole else None
        if data is None or data.size > MAX_PART:
            raise Refused(400, f"'data' is required, with at most {MAX_PART} bytes", param="data")
        name = new_id("part_", 32)
        upload.parts[name] = data
        return as_json({"object": "upload.part", "id": name, "created_at": now(), "upload_id": upload.wire["id"]})

    def complete_upload(self, request: Request) -> Answer:
        upload, body = self.find_upload(request), request.object()
        bodies.COMPLETE_UPLOAD(body, "")
        unknown = [name for name in body["part_ids"] if name not in upload.parts]
        if unknown:
            raise Refused(400, f"No such part: {unknown[0]}", param="part_ids")
        parts = [upload.parts[name] for name in body["part_ids"]]
        size = sum(part.size for part in parts)
        if size != upload.wire["bytes"]:
            raise Refused(400, f"The parts have {size} bytes, but the upload was for {upload.wire['bytes']}.")
        whole = b"".join(bytes(part.content or b"") for part in parts)
        content = whole if len(whole) == size <= KEPT else None
        if content is not None and body.get("md5") not in (None, hashlib.md5(content).hexdigest()):
            raise Refused(400, "The md5 does not match.", param="md5")
        rows = sum(part.lines for part in parts) + (parts[-1].rows - parts[-1].lines if parts else 0)
        sha256 = "" if content is None else hashlib.sha256(content).hexdigest()
        file = self.add_file(upload.wire["filename"], upload.wire["purpose"], size, content, rows, sha256)
        upload.wire |= {"status": "completed", "file": self.file_wire(file)}
        return as_json(upload.wire)

    def cancel_upload(self, request: Request) -> Answer:
        upload = self.find_upload(request)
        upload.wire["status"] = "cancelled"
        return as_json(upload.wire)

    def file_wire(self, file: File) -> Wire:
        return file.wire

    def new_file_id(self) -> str:
        return new_id("file-", 22)


def page(found: list[Wire], request: Request, default: int, most: int | None = None, *, ends: bool = False) -> Wire:
    """One page of a list that is already in order."""
    query = request.seen.query
    try:
        limit = int(query.get("limit", default))
    except ValueError:
        message = "Invalid type for 'limit': expected an integer, but got a string instead."
        raise Refused(400, message, param="limit", code="invalid_type") from None
    if limit < 1 or (most is not None and limit > most):
        raise Refused(400, f"{limit} is not between 1 and {most} - 'limit'", param="limit")
    if "after" in query:
        places = [at for at, item in enumerate(found) if item["id"] == query["after"]]
        if not places:
            raise Refused(400, f"invalid after: {query['after']}", param="after")
        found = found[places[0] + 1 :]
    shown = found[:limit]
    answer: Wire = {"object": "list", "data": shown, "has_more": len(found) > limit}
    if ends:
        answer |= {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return answer
