"""The run directory: the whole interface between a gateway and a trainer. Standard library only.

    spec.json         the gateway's, written once: data, base, hyperparameters, seed, threads, dtype, versions
    control.json      the gateway's, replaced at will: what is desired (run, pause, cancel) and the attempt
    data/             the gateway's: train.tokens and valid.tokens, tokenised once by the one renderer
    lock              held by the trainer (flock) as long as it lives; holds its pid
    events.jsonl      the trainer's, appended; every line has a natural key (`step:120`, `ckpt:240`)
    state/            the trainer's resume points, the newest two: state/step-00000120/
    checkpoints/      the trainer's published adapters, the newest three: checkpoints/step-00000240/
    adapter/          the trainer's final adapter, PEFT format
    result.csv        the trainer's, one row per step
    result.json       the trainer's, written last: that it exists means finished
    trainer.log       standard output and error of every attempt

Files and folders appear whole or not at all: they are written beside their place and renamed. A line of
`events.jsonl` counts only with its newline.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

SPEC = "spec.json"
CONTROL = "control.json"
LOCK = "lock"
EVENTS = "events.jsonl"
RESULT = "result.json"
RESULT_CSV = "result.csv"
LOG = "trainer.log"
STATE = "state"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
TRAIN_TOKENS = "data/train.tokens"
VALID_TOKENS = "data/valid.tokens"

STATE_KEPT = 2
CHECKPOINTS_KEPT = 3

EXIT_STOPPED = 75
"""Exit status of a trainer that was told to stop and left a resume point (EX_TEMPFAIL: try again later)."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that decides the result. Paths are absolute; `base` is a prepared base folder (see the catalogue).

    `learning_rate` is absolute and peak, decayed linearly to 0 over all steps. `threads` is the number of CPU threads:
    bit-equal resume holds for the same number on the same machine and versions.
    """

    job: str
    base: str
    method: str
    n_epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    r: int
    lora_alpha: int
    max_seq_length: int
    threads: int
    dtype: Literal["float32"]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    desired: Literal["run", "pause", "cancel"]
    attempt: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """`trained_tokens` counts every token of every example once per epoch, as a bill would.

    `error` is a sentence for the job's owner when training ended for a reason that another attempt cannot mend (the
    loss is not a number, say); there is no adapter then.
    """

    trained_tokens: int
    steps: int
    finished_at: int
    error: str | None = None


class RunDir:
    """A run directory at `path`; reading what is not there yet gives None, never an error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, spec: RunSpec, control: Control) -> None:
        """Makes the folder and its two gateway files; the spec last, so that a folder with a spec is whole."""
        for folder in (STATE, CHECKPOINTS, "data"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self.write_control(control)
        write_json(self.path / SPEC, asdict(spec))

    def spec(self) -> RunSpec | None:
        found = read_json(self.path / SPEC)
        return None if found is None else RunSpec(**found)

    def control(self) -> Control | None:
        found = read_json(self.path / CONTROL)
        return None if found is None else Control(**found)

    def write_control(self, control: Control) -> None:
        write_json(self.path / CONTROL, asdict(control))

    def result(self) -> RunResult | None:
        found = read_json(self.path / RESULT)
        return None if found is None else RunResult(**found)

    def write_result(self, result: RunResult) -> None:
        write_json(self.path / RESULT, asdict(result))

    def events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from byte `offset` on, and the offset behind the last of them.

        An offset that is no end of a line, since the machine lost what was not synced, starts again from 0.
        """
        try:
            with open(self.path / EVENTS, "rb") as file:
                if offset:
                    file.seek(offset - 1)
                    if file.read(1) != b"\n":
                        offset = 0
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        return [json.loads(line) for line in data[:end].splitlines()], offset + end

    def newest(self, folder: str) -> tuple[int, Path] | None:
        """The highest step in `state/` or `checkpoints/`, and its folder."""
        steps = list(self.steps(folder))
        return steps[-1] if steps else None

    def steps(self, folder: str) -> Iterator[tuple[int, Path]]:
        """All finished `step-N` folders, lowest step first."""
        try:
            names = sorted(name for name in os.listdir(self.path / folder) if name.startswith("step-"))
        except FileNotFoundError:
            return
        for name in names:
            yield int(name.removeprefix("step-")), self.path / folder / name

    def prune(self, folder: str, keep: int) -> None:
        """Deletes all but the newest `keep` step folders."""
        for _, path in list(self.steps(folder))[:-keep]:
            shutil.rmtree(path, ignore_errors=True)

    def owner(self) -> int | None:
        """The pid of the living trainer, or None when none holds the lock.

        The lock, not the pid, says that it lives: the kernel drops it with the process, and pids are used again.
        """
        try:
            file = open(self.path / LOCK, "r+b")
        except FileNotFoundError:
            return None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                return int(file.read() or b"0") or None
        return None

    def acquire(self) -> IO[bytes] | None:
        """Takes the trainer's lock; keep the returned file open. None when another trainer holds it."""
        file = open(self.path / LOCK, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        return file


def step_name(step: int) -> str:
    """Zero-padded, so that names sort as numbers do."""
    return f"step-{step:08d}"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` whole or not at all, and durably."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """fsync of a folder: makes the renames in it durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is no file."""
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------- tokenised examples

_MAGIC = b"TNWTOK1\n"


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One example. `weights[i]` is the weight of predicting `tokens[i]` from the tokens before it: 0 or 1."""

    tokens: Sequence[int]
    weights: Sequence[int]


class TokenWriter:
    """Appends examples to a `.tokens` file: per example a length (u32), the ids (i32) and the weights (u8).

    Little-endian behind an eight-byte mark. The file is renamed to its name by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # With the pid, since a check that outlived a killed gateway may still write the same file.
        self._beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._beside, "wb")
        self._file.write(_MAGIC)

    def write(self, example: TokenExample) -> None:
        assert len(example.tokens) == len(example.weights)
        self._file.write(len(example.tokens).to_bytes(4, "little"))
        self._file.write(_little(array("i", example.tokens)))
        self._file.write(bytes(example.weights))

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._beside, self._path)
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Gives the file up: nothing of it stays behind. After `close` it does nothing."""
        with suppress(OSError):  # what is still in the buffer may not fit on the disk
            self._file.close()
        self._beside.unlink(missing_ok=True)


def read_tokens(path: Path) -> list[TokenExample]:
    """All examples of a `.tokens` file. Raises ValueError for a file of another kind or one that was cut."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path} is not a token file")
    examples, at = [], len(_MAGIC)
    while at < len(data):
        n = int.from_bytes(data[at : at + 4], "little")
        at += 4
        end = at + 5 * n
        if end > len(data):
            raise ValueError(f"{path} was cut at byte {len(data)}")
        tokens = array("i", data[at : at + 4 * n])
        if sys.byteorder == "big":
            tokens.byteswap()
        examples.append(TokenExample(tokens, data[at + 4 * n : end]))
        at = end
    return examples


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
