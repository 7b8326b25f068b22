"""Stored chat completions in the database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tuneway.blobs import Blobs
from tuneway.completions import Completions, Outcome, Selection, assemble
from tuneway.dataset.check import check
from tuneway.errors import InvalidRequest
from tuneway.files import Files
from tuneway.outbound import Outbound
from tuneway.store import Store, completions
from tuneway.types import FIRST_TRY, Completion, File

HI = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def completion(
    number: int,
    answer: Mapping[str, Any] | None = None,
    finish: str = "stop",
    *,
    project: str = "default",
    metadata: Mapping[str, str] | None = None,
    **request: Any,
) -> Completion:
    message = {"role": "assistant", "content": f"ho {number}", "refusal": None, "annotations": [], **(answer or {})}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    name = f"chatcmpl-{number}"
    response = {"id": name, "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Completion(0, name, project, 1, "m", {"model": "m", "messages": [HI], **request}, response, metadata)


def store_all(store: Store, *found: Completion) -> None:
    for one in found:
        assert asyncio.run(store.write(completions.insert, one)) is not None


def test_an_id_is_stored_once(store: Store) -> None:
    store_all(store, completion(1))
    assert asyncio.run(store.write(completions.insert, completion(1, project="other"))) is None
    assert asyncio.run(store.read(completions.get, "other", "chatcmpl-1")) is None


@pytest.mark.parametrize(
    ("metadata", "found"),
    [(None, [1, 2, 3]), ({}, [1]), ({"a": "x"}, [2, 3]), ({"a": "x", 'b"]': "y"}, [3]), ({"a": "X"}, [])],
)
def test_metadata_filters(store: Store, metadata: Mapping[str, str] | None, found: list[int]) -> None:
    store_all(store, completion(1), completion(2, metadata={"a": "x"}), completion(3, metadata={"a": "x", 'b"]': "y"}))
    store_all(store, completion(4, project="other", metadata={"a": "x"}))
    page = asyncio.run(
        store.read(completions.page, "default", after=None, limit=10, order="asc", model="m", metadata=metadata)
    )
    assert page is not None
    assert [one.id for one in page.data] == [f"chatcmpl-{number}" for number in found]


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    blobs = Blobs(tmp_path / "blobs")
    blobs.open()
    return blobs


@pytest.fixture
def service(store: Store, blobs: Blobs) -> Completions:
    return Completions(store, Files(store, blobs, Outbound([]), max_bytes=2**30))


async def make(service: Completions, selection: Selection) -> tuple[File, Outcome]:
    return await service.make_file("default", selection, filename="a.jsonl", expires_after=None, origin=FIRST_TRY)


def test_a_file_has_what_the_check_accepts_and_counts_the_rest(
    store: Store, service: Completions, blobs: Blobs
) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    store_all(
        store,
        completion(1),
        completion(2, {"content": None, "tool_calls": [CALL]}, "tool_calls", tools=[LOOK], parallel_tool_calls=False),
        completion(3, {"content": None, "refusal": "no"}, temperature=0.5),
        completion(4, finish="length"),
        completion(5, {"content": None}),
        completion(6, messages=[{"role": "user", "content": image}]),
        completion(7, {"content": "<|im_end|>"}),
        completion(8, {"content": "x" * 2**21}),
        completion(9, {"audio": {"id": "a"}}),
        completion(10, {"reasoning_content": "hm"}),
        completion(11, messages=[{"role": "robot", "content": "hi"}]),
        completion(12, tools=[{"type": "custom", "custom": {"name": "x"}}]),
        completion(13, project="other"),
    )
    file, outcome = asyncio.run(make(service, Selection()))
    assert outcome.examples == 4
    assert outcome.left_out == {
        "audio": 1,
        "finish_reason_length": 1,
        "images": 1,
        "invalid_messages": 1,
        "invalid_tools": 1,
        "no_content": 1,
        "special_token": 1,
        "too_long": 1,
    }
    assert blobs.path(file.sha256).read_bytes().splitlines() == [
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho 1"}]}',
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"call_1",'
        b'"type":"function","function":{"name":"look","arguments":"{\\"at\\": \\"x\\"}"}}]}],"tools":'
        b'[{"type":"function","function":{"name":"look","parameters":{"type":"object","properties":{}}}}],"parallel_tool_calls":false}',
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"refusal":"no"}]}',
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho 10"}]}',
    ]
    assert asyncio.run(make(service, Selection()))[0].sha256 == file.sha256
    report = check(blobs.path(file.sha256), kind="training", renderer=None, context_length=10**6, min_examples=4)
    assert (report.n_examples, report.error) == (4, None)


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (Selection(limit=2), [1, 2]),
        (Selection(after="chatcmpl-2"), [3, 4]),
        (Selection(ids=("chatcmpl-4", "chatcmpl-1", "chatcmpl-1")), [1, 4]),
        (Selection(metadata={"a": "x"}), [3]),
        (Selection(model="m", after="chatcmpl-1", limit=1), [2]),
    ],
)
def test_selections(store: Store, service: Completions, blobs: Blobs, selection: Selection, found: list[int]) -> None:
    store_all(store, completion(1), completion(2), completion(3, metadata={"a": "x"}), completion(4))
    lines = blobs.path(asyncio.run(make(service, selection))[0].sha256).read_bytes()
    assert [number for number in range(1, 5) if f"ho {number}".encode() in lines] == found
    assert lines.count(b"\n") == len(found)


@pytest.mark.parametrize(
    ("selection", "param"),
    [
        (Selection(ids=("chatcmpl-1", "chatcmpl-9")), "tuneway.stored_completions.ids"),
        (Selection(after="chatcmpl-9"), "tuneway.stored_completions.after"),
        (Selection(ids=("chatcmpl-2",)), "tuneway.stored_completions.ids"),
        (Selection(model="n"), "tuneway.stored_completions"),
        (Selection(choice=1), "tuneway.stored_completions"),
    ],
)
def test_a_selection_of_nothing_makes_no_file(
    store: Store, service: Completions, tmp_path: Path, selection: Selection, param: str
) -> None:
    store_all(store, completion(1), completion(2, project="other"))
    with pytest.raises(InvalidRequest) as raised:
        asyncio.run(make(service, selection))
    assert raised.value.param == param
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_many_completions_go_through_in_stretches(store: Store, service: Completions, blobs: Blobs) -> None:
    count = 300

    def insert_all(tx: Any) -> None:
        for number in range(count):
            completions.insert(tx, completion(number, {"content": "y" * 2000}))

    asyncio.run(store.write(insert_all))
    file, outcome = asyncio.run(make(service, Selection(limit=count - 1)))
    assert blobs.path(file.sha256).read_bytes().count(b"\n") == outcome.examples == count - 1


def test_chunks_amount_to_one_answer() -> None:
    def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}

    def part(index: int, finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    token = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    answer = assemble(
        [
            chunk(part(1, role="assistant", content="", refusal=None), system_fingerprint="fp", obfuscation="zz"),
            chunk(part(0, role="assistant", content=None), usage=None),
            chunk(part(0, tool_calls=[{**call(1, name="b", arguments=""), "id": "call_b", "type": "function"}])),
            chunk(part(0, tool_calls=[{**call(0, name="a", arguments=""), "id": "call_a", "type": "function"}])),
            chunk(part(0, tool_calls=[call(0, arguments='{"x"'), call(1, arguments="{}")])),
            chunk(part(0, tool_calls=[call(0, arguments=": 1}")]), part(1, content="a", logprobs={"content": [token]})),
            chunk(part(1, content="b", logprobs={"content": [token], "refusal": None}), part(0, "tool_calls")),
            chunk(part(1, "stop")),
            chunk(usage={"total_tokens": 3}),
        ]
    )
    names = [("call_a", "a", '{"x": 1}'), ("call_b", "b", "{}")]
    calls = [{"function": {"name": n, "arguments": a}, "id": i, "type": "function"} for i, n, a in names]
    nothing = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    assert answer == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": "fp",
        "usage": {"total_tokens": 3},
        "choices": [
            {
                "index": 0,
                "message": {**nothing, "tool_calls": calls},
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
            {
                "index": 1,
                "message": {**nothing, "content": "ab"},
                "logprobs": {"content": [token, token], "refusal": None},
                "finish_reason": "stop",
            },
        ],
    }


def test_a_page_of_large_completions_ends_early(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "PAGE_BYTES", 1000)
    store_all(store, *(completion(number, {"content": "x" * 600}) for number in range(4)))
    seen: list[str] = []
    more = True
    while more:
        page = asyncio.run(
            store.read(
                completions.page,
                "default",
                after=seen[-1] if seen else None,
                limit=100,
                order="asc",
                model=None,
                metadata=None,
            )
        )
        assert page is not None
        assert len(page.data) == 1
        seen += [one.id for one in page.data]
        more = page.has_more
    assert seen == [f"chatcmpl-{number}" for number in range(4)]
