"""The small columns of a spool in one file: two dozen files would cost more to open, flush and delete than to fill.

Values are gathered in memory and written as blocks: a line of JSON that says how many bytes of which columns follow,
then these. Nothing is known of what lies beyond the length that the journal gives, so a block cut short does no harm.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

#: Gathered bytes beyond which a block is written before the next flush, so that memory does not grow with large rows.
GATHERED_BYTES: Final = 1 << 20
#: The line of a block is far shorter, for a spool has a few dozen columns.
_LINE_BYTES: Final = 1 << 16


class ColumnBlocks:
    """Opens the file and finds the blocks that are there.

    Args:
        path: The file; made if it is not there.
        length: How much of it counts; the rest is cut away.
        sizes: Bytes of each column in that part.

    Raises:
        ValueError: If the file is shorter, or does not hold that.
    """

    def __init__(self, path: Path, length: int, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._gathered: dict[str, list[bytes]] = {name: [] for name in sizes}
        self._gathered_bytes = 0
        #: Offset and length of what each block holds of its columns.
        self._blocks: list[dict[str, tuple[int, int]]] = []
        self._end = self._synced = length
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(self._file).st_size < length:
                raise ValueError("shorter than the journal says")
            os.ftruncate(self._file, length)
            self._find_blocks()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Adds bytes at the end of one column."""
        if not data:
            return
        self._gathered[name].append(bytes(data))
        self._sizes[name] += len(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHERED_BYTES:
            self.write_block()

    def size(self, name: str) -> int:
        """Bytes of one column so far."""
        return self._sizes[name]

    @property
    def length(self) -> int:
        """Length of the file as far as it was written."""
        return self._end

    def write_block(self) -> None:
        """Writes what was gathered; done in vain, as on a full disk, it can be done again."""
        columns = {name: b"".join(parts) for name, parts in self._gathered.items() if parts}
        if not columns:
            return
        line = json.dumps({name: len(data) for name, data in columns.items()}).encode() + b"\n"
        assert len(line) <= _LINE_BYTES
        write_all(self._file, b"".join((line, *columns.values())), self._end)
        block, end = {}, self._end + len(line)
        for name, data in columns.items():
            block[name] = (end, len(data))
            end += len(data)
        gathered: dict[str, list[bytes]] = {name: [] for name in self._sizes}
        # No call from here on: Python handles a Ctrl-C before all of this or after it, and a half-done block could not
        # be written again.
        self._blocks += (block,)
        self._end, self._gathered, self._gathered_bytes = end, gathered, 0

    def flush(self) -> None:
        """Makes what was appended so far survive."""
        self.write_block()
        if self._end != self._synced:
            os.fsync(self._file)
            self._synced = self._end

    def read(self, name: str, least_bytes: int) -> Iterator[bytes]:
        """One column in pieces of at least so many bytes, the last excepted."""
        pieces: list[bytes] = []
        length = 0
        for offset, count in (block[name] for block in self._blocks if name in block):
            pieces.append(_read_all(self._file, count, offset))
            length += count
            if length >= least_bytes:
                yield b"".join(pieces)
                pieces, length = [], 0
        if last := b"".join((*pieces, *self._gathered[name])):
            yield last

    def close(self) -> None:
        """Lets go of the file; what is gathered is lost."""
        os.close(self._file)

    def _find_blocks(self) -> None:
        place, found = 0, dict.fromkeys(self._sizes, 0)
        while place < self._end:
            line, newline, _ = os.pread(self._file, _LINE_BYTES, place).partition(b"\n")
            try:
                counts = {name: int(count) for name, count in json.loads(line).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError("damaged") from error
            place += len(line) + len(newline)
            if not counts.keys() <= found.keys():
                raise ValueError("damaged")
            block = {}
            for name, count in counts.items():
                block[name] = (place, count)
                found[name] += count
                place += count
            self._blocks.append(block)
        if place != self._end or found != self._sizes:
            raise ValueError("damaged")


def write_all(file: int, data: bytes, offset: int) -> None:
    """Writes bytes at a place in a file, in as many calls as it takes."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done


def _read_all(file: int, count: int, offset: int) -> bytes:
    data = os.pread(file, count, offset)
    while len(data) < count:
        more = os.pread(file, count - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the source ended early")
        data += more
    return data
