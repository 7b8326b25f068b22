"""What a trainer writes is read whole lines at a time, also after the machine lost some of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneway.rundir import EVENTS, RunDir, TokenExample, TokenWriter, read_tokens


def append(run: RunDir, text: str) -> None:
    with open(run.path / EVENTS, "a") as file:
        file.write(text)


def keys(lines: list[dict[str, object]]) -> list[object]:
    return [line["key"] for line in lines]


def test_only_whole_lines_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.events(0) == ([], 0)
    append(run, json.dumps({"key": "a"}) + "\n" + '{"key": ')
    lines, offset = run.events(0)
    assert keys(lines) == ["a"]
    assert run.events(offset) == ([], offset)
    append(run, '"b"}\n')
    lines, offset = run.events(offset)
    assert keys(lines) == ["b"]


def test_an_offset_beyond_what_survived_starts_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    append(run, '{"key": "a"}\n{"key": "b"}\n')
    _, offset = run.events(0)
    (tmp_path / EVENTS).write_text('{"key": "a"}\n')
    assert keys(run.events(offset)[0]) == ["a"]
    append(run, '{"key": "something longer"}\n')
    assert keys(run.events(offset)[0]) == ["a", "something longer"]


def test_the_lock_names_the_living_trainer(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.owner() is None
    lock = run.acquire()
    assert lock is not None
    assert RunDir(tmp_path).acquire() is None
    assert run.owner() is not None
    lock.close()
    assert run.owner() is None


def test_tokens_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.tokens"
    writer = TokenWriter(path)
    writer.write(TokenExample([1, 2, 49151], [0, 1, 1]))
    writer.write(TokenExample([], []))
    writer.close()
    first, second = read_tokens(path)
    assert (list(first.tokens), list(first.weights)) == ([1, 2, 49151], [0, 1, 1])
    assert (list(second.tokens), list(second.weights)) == ([], [])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="was cut"):
        read_tokens(path)
