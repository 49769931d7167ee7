"""Writing files: a kill, a full disk or a power cut leaves the old or the new file, never half of one."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """A new file, on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Replace a file by a new one, atomically."""
    scratch = path.with_name(f"{path.name}.writing")
    try:
        write(scratch, content)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    move(scratch, path)


def move(source: Path, target: Path) -> None:
    """Rename a file, or a folder to a name that is free, for good."""
    os.replace(source, target)
    with suppress(OSError):  # not every file system, and no Windows, can sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append(path: Path, content: bytes) -> None:
    """Append to a file. If there is no room for all of it, the file stays unchanged."""
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content):]
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """What was appended is on the disk when this returns."""
    if path.exists():
        with open(path, "ab") as file:
            os.fsync(file.fileno())


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def rows(path: Path, start: int = 0, step: int | None = None) -> Iterator[tuple[int, dict]]:
    """(where it ends, row) of each line of JSON from byte `start` on. A last line without its end is left out: it is being
    written, or was torn by a kill. With `step`, other steps' lines are left out, unparsed. ValueError names a line that is no
    JSON."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        end = start
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            if step is not None and line.startswith(b'{"step": ') and not line.startswith(b'{"step": %d,' % step):
                continue
            try:
                yield end, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}); remove that line.") from None


def lines(rows: list[dict]) -> bytes:
    """Rows as JSON, one per line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pack(path: Path, rows: list[dict]) -> None:
    """Rows as JSON, one per line, compressed; the same rows make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines(rows), mtime=0))


def unpack(path: Path) -> list[dict]:
    """The rows that `pack` wrote."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def sha256(path: Path) -> str:
    """Of a file, however large."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes | memoryview) -> str:
    """Of what is in memory."""
    return hashlib.sha256(content).hexdigest()


def why(error: OSError) -> str:
    """The reason, in words, why a file can't be read or written."""
    return (error.strerror or str(error)).lower()


def is_whole(path: Path, checksum: Path) -> bool:
    """Whether a file still matches the checksum beside it."""
    return checksum.exists() and path.exists() and sha256(path) == checksum.read_text()


def read_toml(path: Path) -> dict:
    """A TOML file as a dict. ValueError, in one sentence: it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {why(error) if isinstance(error, OSError) else error}.") from None
