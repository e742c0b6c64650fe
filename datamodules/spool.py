"""Append-only files that a killed process can go on with.

A spool is a folder `<target>.partial/` with a file for each large column, one for all small ones, and a journal. The
journal says how long each was at the last flush; whatever lies beyond is cut away when the spool is opened again, so
what is there is always a whole number of records, as they were before the last flush, however the process ended.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy import ndarray

from bodies.errors import InputError
from bodies.safe_write import whole_file
from datamodules.spool_columns import ColumnBlocks, write_all

_JOURNAL: Final = "journal.json"
_LOCK: Final = "lock"
_COLUMNS: Final = "columns"
#: Files are copied in blocks of about this many bytes.
COPY_BYTES: Final = 16 << 20
#: Gathered before it is written.
_BUFFER_BYTES: Final = 1 << 18
#: How many pieces one system call takes (POSIX: at least 16, everywhere 1024).
_PIECES: Final = 1024
#: Copies between files within the kernel, where there is such a thing.
_copy_file_range = getattr(os, "copy_file_range", None)


class Spool:
    """Opens the spool of a target file, or goes on with the one that is there.

    Args:
        target: The file that will be made of it; the folder is put beside it.
        header: What is being written. Only a spool begun with the same header is gone on with.
        names: Large columns, one file each.
        resume: Go on with what is there; otherwise it is thrown away.
        columns: Small columns, which share a file and are read as a whole.

    Raises:
        InputError: If the spool is in use by another process, was begun with another header, or is damaged.
    """

    def __init__(
        self,
        target: Path,
        header: Mapping[str, str | int],
        names: Iterable[str],
        resume: bool,
        columns: Iterable[str] = (),
    ) -> None:
        self.target = target
        self.folder = target.with_name(f"{target.name}.partial")
        self._header = dict(header)
        self._names, self._column_names = tuple(names), tuple(columns)
        self._columns: ColumnBlocks | None = None
        self._files: dict[str, BinaryIO] = {}
        self._unflushed: set[str] = set()
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            with self._disk_errors():
                if not resume:
                    (self.folder / _JOURNAL).unlink(missing_ok=True)
                sizes, length = self._journaled()
                for name in self._names:
                    self._files[name] = self._opened(name, sizes[name])
                if self._column_names:
                    self._columns = self._opened_columns({name: sizes[name] for name in self._column_names}, length)
            # From here on the folder has a journal, so that another header is noticed.
            self.flush()
        except BaseException:
            self.close()
            raise

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Adds bytes at the end of one file."""
        with self._disk_errors():
            if name not in self._files:
                self._small.append(name, data)
            elif data:
                self._files[name].write(data)
                self._unflushed.add(name)

    def extend(self, name: str, parts: Sequence[bytes]) -> None:
        """Adds several pieces at the end of one large column; joining or buffering them would take longer."""
        if not parts:
            return
        file = self._files[name]
        self._unflushed.add(name)
        with self._disk_errors():
            file.flush()
            for first in range(0, len(parts), _PIECES):
                pieces = parts[first : first + _PIECES]
                done = os.writev(file.fileno(), pieces)
                file.seek(0, os.SEEK_END)  # the buffer has to learn where the file ends now
                for piece in pieces if done < sum(map(len, pieces)) else ():
                    file.write(piece[min(done, len(piece)) :])
                    done -= min(done, len(piece))
                file.flush()

    def size(self, name: str) -> int:
        """Bytes of one column so far."""
        return self._files[name].tell() if name in self._files else self._small.size(name)

    def flush(self) -> None:
        """Makes what was appended so far survive: first the data, then the journal that counts on it."""
        with self._disk_errors():
            for name in sorted(self._unflushed):
                self._files[name].flush()
                os.fsync(self._files[name].fileno())
            self._unflushed.clear()
            if self._columns is not None:
                self._columns.flush()
            sizes = {name: self.size(name) for name in (*self._names, *self._column_names)}
            length = 0 if self._columns is None else self._columns.length
            journal = {"header": self._header, "sizes": sizes, _COLUMNS: length}
            with whole_file(self.folder / _JOURNAL) as temporary:
                temporary.write_text(json.dumps(journal))

    def read(self, name: str) -> bytes:
        """All bytes of one column; for the small ones."""
        if name not in self._files:
            return b"".join(self._small.read(name, COPY_BYTES))
        self._files[name].flush()
        return self._path(name).read_bytes()

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> ndarray:
        """One column as rows of numbers; a large one is mapped and not read."""
        if self.size(name) == 0:
            return np.zeros((0, *shape), dtype)
        if name not in self._files:
            return np.frombuffer(self.read(name), dtype).reshape(-1, *shape)
        self._files[name].flush()
        flat: ndarray = np.memmap(self._path(name), np.dtype(dtype), "r")
        return flat.reshape(-1, *shape)

    def copied(self, name: str, target: int, offset: int) -> Iterator[int]:
        """Copies one column to a place in another file, block by block.

        Args:
            name: Which column.
            target: Descriptor of the file to write into.
            offset: Where in it the first byte belongs.

        Yields:
            The number of bytes that were copied, about `COPY_BYTES`.
        """
        if name not in self._files:
            for block in self._small.read(name, COPY_BYTES):
                write_all(target, block, offset)
                offset += len(block)
                yield len(block)
            return
        file, size = self._files[name], self.size(name)
        file.flush()
        for start in range(0, size, COPY_BYTES):
            count = min(COPY_BYTES, size - start)
            _copy_bytes(file.fileno(), start, target, offset + start, count)
            yield count

    @property
    def path_for_result(self) -> Path:
        """Where to assemble the target before it is renamed: in the folder, so a killed attempt leaves no litter."""
        return self.folder / "assembled"

    def close(self) -> None:
        """Lets go of the files, without flushing the journal."""
        for file in self._files.values():
            # What could not be written on a full disk is tried once more by `close`, and the journal does not count it.
            with suppress(OSError):
                file.close()
        if self._columns is not None:
            self._columns.close()
        os.close(self._lock)

    def remove(self) -> None:
        """Closes the spool and deletes it; its content is in the target by now."""
        # The journal first: without it, what is left after a kill right here counts as nothing.
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        self.close()
        shutil.rmtree(self.folder)

    @property
    def _small(self) -> ColumnBlocks:
        assert self._columns is not None, "this spool was opened without small columns"
        return self._columns

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.target}: it cannot be written ({error.strerror})") from error

    def _path(self, name: str) -> Path:
        return self.folder / name.replace("/", ".")

    def _locked(self) -> int:
        # A record lock ends with the process, however that ends; a forked worker that outlives it has no part in it.
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise InputError(f"{self.target}: another process is writing it") from error
        return lock

    def _journaled(self) -> tuple[dict[str, int], int]:
        """Lengths of the columns, and of the file of the small ones, at the last flush; zeros if there was none."""
        path, names = self.folder / _JOURNAL, (*self._names, *self._column_names)
        if not path.exists():
            return dict.fromkeys(names, 0), 0
        advice = f"delete {self.folder} to begin anew"
        try:
            journal = json.loads(path.read_text())
            header, sizes = journal["header"], {name: int(journal["sizes"][name]) for name in names}
            length = int(journal[_COLUMNS])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: the journal is damaged; {advice}") from error
        for key in {**header, **self._header}:
            before, now = header.get(key), self._header.get(key)
            if before != now:
                raise InputError(f"{self.folder}: it was begun with {key} {before!r}, now it is {now!r}; {advice}")
        return sizes, length

    def _opened_columns(self, sizes: Mapping[str, int], length: int) -> ColumnBlocks:
        path = self.folder / _COLUMNS
        try:
            return ColumnBlocks(path, length, sizes)
        except ValueError as error:
            raise InputError(f"{path}: {error}; delete {self.folder} to begin anew") from error

    def _opened(self, name: str, size: int) -> BinaryIO:
        path = self._path(name)
        # Neither cut off when it is opened, as by "w", nor appended to wherever one seeks, as by "a".
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", _BUFFER_BYTES)
        if os.fstat(file.fileno()).st_size < size:
            file.close()
            raise InputError(f"{path}: shorter than the journal says; delete {self.folder} to begin anew")
        file.truncate(size)
        file.seek(size)
        return file


def _copy_bytes(source: int, start: int, target: int, offset: int, count: int) -> None:
    """Copies part of a file to a place in another, past Python and its buffers if the kernel and the disk can."""
    while count:
        done = 0
        if _copy_file_range is not None:
            with suppress(OSError):  # not on every file system; where the disk is full the next line says so
                done = _copy_file_range(source, target, count, start, offset)
        done = done or os.pwrite(target, os.pread(source, count, start), offset)
        if not done:
            raise OSError(errno.EIO, "the source ended early")
        start, offset, count = start + done, offset + done, count - done
