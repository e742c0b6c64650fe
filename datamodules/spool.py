"""Append-only files that a killed process can go on with.

A spool is a folder `<target>.partial/` with one file per column and a journal. The journal says how long each file was
at the last flush; whatever lies beyond is cut away when the spool is opened again, so what is there is always a whole
number of records, as they were before the last flush, however the process ended.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy import ndarray

from bodies.errors import InputError
from bodies.safe_write import whole_file

_JOURNAL: Final = "journal.json"
_LOCK: Final = "lock"
#: Files are copied in blocks of about this many bytes.
COPY_BYTES: Final = 16 << 20


class Spool:
    """Opens the spool of a target file, or goes on with the one that is there.

    Args:
        target: The file that will be made of it; the folder is put beside it.
        header: What is being written. Only a spool begun with the same header is gone on with.
        names: One file each.
        resume: Go on with what is there; otherwise it is thrown away.

    Raises:
        InputError: If the spool is in use by another process, was begun with another header, or is damaged.
    """

    def __init__(self, target: Path, header: Mapping[str, str | int], names: Iterable[str], resume: bool) -> None:
        self.target = target
        self.folder = target.with_name(f"{target.name}.partial")
        self._header = dict(header)
        self._names = tuple(names)
        self._files: dict[str, BinaryIO] = {}
        self._unflushed: set[str] = set()
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            with self._disk_errors():
                if not resume:
                    (self.folder / _JOURNAL).unlink(missing_ok=True)
                for name, size in self._journaled().items():
                    self._files[name] = self._opened(name, size)
            # From here on the folder has a journal, so that another header is noticed.
            self.flush()
        except BaseException:
            self.close()
            raise

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Adds bytes at the end of one file."""
        with self._disk_errors():
            self._files[name].write(data)
        if data:
            self._unflushed.add(name)

    def size(self, name: str) -> int:
        """Bytes in one file so far."""
        return self._files[name].tell()

    def flush(self) -> None:
        """Makes what was appended so far survive: first the data, then the journal that counts on it."""
        with self._disk_errors():
            for name in sorted(self._unflushed):
                self._files[name].flush()
                os.fsync(self._files[name].fileno())
            self._unflushed.clear()
            journal = {"header": self._header, "sizes": {name: self.size(name) for name in self._names}}
            with whole_file(self.folder / _JOURNAL) as temporary:
                temporary.write_text(json.dumps(journal))

    def read(self, name: str) -> bytes:
        """All bytes of one file; for the small ones."""
        self._files[name].flush()
        return self._path(name).read_bytes()

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> ndarray:
        """One file as rows of numbers, mapped and not read."""
        self._files[name].flush()
        if self.size(name) == 0:
            return np.zeros((0, *shape), dtype)
        flat: ndarray = np.memmap(self._path(name), np.dtype(dtype), "r")
        return flat.reshape(-1, *shape)

    def blocks(self, name: str, size: int = COPY_BYTES) -> Iterator[bytes]:
        """The bytes of one file in blocks of `size`; the last one may be shorter."""
        self._files[name].flush()
        with self._path(name).open("rb") as file:
            while block := file.read(size):
                yield block

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
        os.close(self._lock)

    def remove(self) -> None:
        """Closes the spool and deletes it; its content is in the target by now."""
        # The journal first: without it, what is left after a kill right here counts as nothing.
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        self.close()
        shutil.rmtree(self.folder)

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

    def _journaled(self) -> dict[str, int]:
        """Lengths at the last flush; zeros if nothing was flushed yet."""
        path = self.folder / _JOURNAL
        if not path.exists():
            return dict.fromkeys(self._names, 0)
        advice = f"delete {self.folder} to begin anew"
        try:
            journal = json.loads(path.read_text())
            header, sizes = journal["header"], {name: int(journal["sizes"][name]) for name in self._names}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: the journal is damaged; {advice}") from error
        for key in {**header, **self._header}:
            before, now = header.get(key), self._header.get(key)
            if before != now:
                raise InputError(f"{self.folder}: it was begun with {key} {before!r}, now it is {now!r}; {advice}")
        return sizes

    def _opened(self, name: str, size: int) -> BinaryIO:
        path = self._path(name)
        path.touch()
        if path.stat().st_size < size:
            raise InputError(f"{path}: shorter than the journal says; delete {self.folder} to begin anew")
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file
