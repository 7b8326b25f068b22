from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneway.dataset import convert
from tuneway.dataset.check import check
from tuneway.dataset.convert import BOM
from tuneway.types import Method

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ab"}


@given(chunks=st.lists(st.sampled_from([b"", b"\xef", b"\xbb", b"\xbf", b"\xef\xbb", BOM, b"{}", b"x\n"])))
def test_a_byte_order_mark_is_there_once_or_not_at_all(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    bare = whole.removeprefix(BOM)
    found = b"".join(convert.with_bom(iter(chunks)))
    assert found == BOM + bare
    assert convert.with_bom_size(len(whole), bom=whole.startswith(BOM)) == len(found)
    found = b"".join(convert.without_bom(chunks))
    assert found == bare
    assert convert.without_bom_size(len(whole), bom=whole.startswith(BOM)) == len(found)


def test_no_piece_is_empty() -> None:
    assert list(convert.without_bom([BOM])) == []
    assert list(convert.without_bom([])) == []
    assert list(convert.with_bom([])) == [BOM]
    assert list(convert.renamed_outputs([])) == []


def test_a_mark_is_put_before_a_stream_that_is_not_read_ahead() -> None:
    read = []

    def chunks() -> Any:
        for number in range(3):
            read.append(number)
            yield b"abc"

    made = convert.with_bom(chunks())
    assert [next(made), next(made)] == [BOM, b"abc"]
    assert read == [0]


NEW: dict[str, Any] = {
    "input": {"messages": [USER]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{**ANSWER, "content": 'the "preferred_completion": [] of it'}],
}
LINES: dict[str, tuple[bytes, bytes]] = {
    "both": (
        b'{"preferred_completion": [], "non_preferred_completion" :[]}\n',
        b'{"preferred_output": [], "non_preferred_output" :[]}\n',
    ),
    "white space as it was": (
        b' { "preferred_completion"\t:\t[ 1.50 ] }\r\n',
        b' { "preferred_output"\t:\t[ 1.50 ] }\r\n',
    ),
    "behind a mark": (BOM + b'{"preferred_completion":[]}', BOM + b'{"preferred_output":[]}'),
    "one of each": (
        b'{"non_preferred_completion": [], "preferred_output": []}',
        b'{"non_preferred_output": [], "preferred_output": []}',
    ),
    "escaped": (rb'{"preferred\u005fcompletion": []}', b'{"preferred_output": []}'),
    "behind a quote": (
        rb'{"input": "\\\"{", "preferred_completion": []}',
        rb'{"input": "\\\"{", "preferred_output": []}',
    ),
    "a value": (b'{"input": "preferred_completion"}', b'{"input": "preferred_completion"}'),
    "a list's": (b'{"input": ["preferred_completion"]}', b'{"input": ["preferred_completion"]}'),
    "an inner key": (b'{"input": {"preferred_completion": 1}}', b'{"input": {"preferred_completion": 1}}'),
    "in a text": (json.dumps(NEW).encode(), json.dumps(NEW).encode()),
    "another key": (b'{"preferred_completions": 1}', b'{"preferred_completions": 1}'),
    "nothing": (b"\n", b"\n"),
}


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES)
def test_outputs_are_renamed_and_nothing_else(line: bytes, expected: bytes) -> None:
    assert b"".join(convert.renamed_outputs([line])) == expected
    assert b"".join(convert.renamed_outputs([expected])) == expected


keys = st.sampled_from(["preferred_completion", "non_preferred_completion", "preferred_output", "input", "x"])
texts = keys | st.text() | st.sampled_from(['"', '\\"preferred_completion":', "{", "]"])
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(row=st.dictionaries(keys, values), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_renaming_is_what_it_is_in_json(row: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    line = json.dumps(row, ensure_ascii=ascii_only, indent=indent).encode(errors="surrogatepass")
    pairs = json.loads(convert.renamed_line(line), object_pairs_hook=list)
    names = {"preferred_completion": "preferred_output", "non_preferred_completion": "non_preferred_output"}
    assert [key for key, _ in pairs] == [names.get(key, key) for key in row]
    assert [value for _, value in pairs] == [value for _, value in json.loads(line, object_pairs_hook=list)]


def test_a_checked_file_in_the_form_of_a_provider(tmp_path: Path) -> None:
    """The sizes that a check foretells are those of the bytes, and what comes out is a good file of the same rows."""
    old = {"input": NEW["input"], "preferred_completion": [ANSWER], "non_preferred_completion": [ANSWER]}
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in [NEW, old] * 10]
    lines.append(lines[1].replace(b"preferred_completion", rb"\u0070referred_completio\u006e"))
    lines.append(lines[1].replace(b"ab", b"z" * 2**20, 1))
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\r\n".join([*lines, b"", lines[0]]))
    before = check(path, kind="training", renderer=None, context_length=64, method=Method.DPO)
    assert (before.error, before.n_examples, before.bom) == (None, 23, False)
    with path.open("rb") as file:
        pieces = list(convert.with_bom(convert.renamed_outputs(file)))
    assert len(pieces) == 3, "the mark, then pieces of a megabyte"
    made = b"".join(pieces)
    size = convert.renamed_outputs_size(path.stat().st_size, old_outputs=before.old_outputs)
    assert len(made) == convert.with_bom_size(size, bom=before.bom)
    path.write_bytes(made)
    after = check(path, kind="training", renderer=None, context_length=64, method=Method.DPO)
    assert (after.error, after.n_examples, after.bom, after.old_outputs) == (None, 23, True, 0)
    rows = [json.loads(line) for line in io.BytesIO(made.removeprefix(BOM)) if line.strip()]
    assert rows[1] == rows[20] == {**NEW, "non_preferred_output": [ANSWER]}
    assert rows[0] == rows[22] == NEW
