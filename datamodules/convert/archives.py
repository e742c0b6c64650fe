"""Reads the two archives that regressors dump into, numpy's .npz and joblib's files, without running what they name.

An .npz with object arrays (mmhuman3d's HumanData) and a joblib file are pickles; both go through `bodies.safe_pickle`.
joblib writes each array behind the opcode that sets the state of its `NumpyArrayWrapper`: a byte that says how much
padding follows, the padding, then the array's bytes; before joblib 1.2 there is no padding. Arrays of objects follow
as a pickle of their own. Compressed files are the same stream in zlib, gzip, bz2 or xz.

Sources: joblib `numpy_pickle.py` (`NumpyArrayWrapper.write_array`, `NumpyPickler.save`), numpy `lib/format.py`.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, final

import numpy as np
from numpy import ndarray

from bodies.errors import InputError, one_line
from bodies.safe_pickle import Admitted, Stub, load_pickle
from datamodules.convert import mapped_npz

#: First bytes of compressed files and what undoes it; joblib's default is zlib. Its lz4 needs a package of its own.
_COMPRESSIONS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x78", zlib.decompress),
    (b"\x1f\x8b", gzip.decompress),
    (b"BZ", bz2.decompress),
    (b"\xfd7zXZ", lzma.decompress),
    (b"\x5d\x00", lzma.decompress),
)


def read_joblib(path: Path) -> Any:
    """What `joblib.dump` wrote to a file, compressed or not, as plain values.

    Raises:
        InputError: If it cannot be read, is not whole, or names anything but arrays.
    """
    try:
        data = path.read_bytes()
        for magic, undo in _COMPRESSIONS:
            if data.startswith(magic):
                data = undo(data)
                break
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.strerror is None:  # what gzip and bz2 say of damaged data
            raise InputError(f"{path}: it is damaged ({one_line(error)})") from error
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise InputError(f"{path}: it is damaged ({one_line(error)})") from error
    stream = io.BytesIO(data)
    return load_pickle(stream, name=str(path), admit=_array_stubs(stream, data, str(path)))


def _array_stubs(stream: io.BytesIO, data: bytes, name: str) -> Admitted:
    @final
    class Wrapper(Stub):
        """`NumpyArrayWrapper`: when its state is set, the stream stands before the array's bytes."""

        __slots__ = ()

        def __setstate__(self, state: object) -> None:
            """Takes the array out of the stream."""
            if not isinstance(state, dict):
                raise UnpicklingError("an array without shape and dtype")
            self.state = _inline_array(stream, data, state, name)

        def plain(self, resolve: Callable[[Any], Any]) -> object:
            """The array."""
            return self.state

    return {(f"joblib.{module}", "NumpyArrayWrapper"): Wrapper for module in ("numpy_pickle", "numpy_pickle_compat")}


def _inline_array(stream: io.BytesIO, data: bytes, state: dict[str, Any], name: str) -> ndarray:
    shape, dtype = tuple(int(n) for n in state["shape"]), state["dtype"]
    dtype = dtype.plain(lambda value: value) if isinstance(dtype, Stub) else None
    if not isinstance(dtype, np.dtype) or min(shape, default=0) < 0:
        raise UnpicklingError("an array without shape and dtype")
    if dtype.hasobject:
        return np.asarray(load_pickle(stream, name=name))
    if state.get("numpy_array_alignment_bytes") is not None:
        padding = stream.read(1)
        stream.seek(padding[0] if padding else 0, io.SEEK_CUR)
    start, count = stream.tell(), int(np.prod([int(n) for n in shape], dtype=object))
    size = count * dtype.itemsize
    if start + size > len(data):
        raise EOFError
    stream.seek(size, io.SEEK_CUR)
    # A view of the file's bytes: vertices, which nobody asks for, are never copied.
    flat: ndarray = np.frombuffer(data, dtype, count, start) if size else np.empty(count, dtype)
    return flat.reshape(shape, order="F" if state["order"] == "F" else "C")


def read_npz(path: Path, names: Iterable[str], mapped: bool = False) -> dict[str, Any]:
    """Those of the named arrays that an .npz has; an array that holds one object comes as that object.

    Args:
        path: The file.
        names: Names of arrays.
        mapped: Leave large arrays on disk, read-only (`datamodules.convert.mapped_npz`).

    Raises:
        InputError: If the file is missing, is no .npz, is damaged, or names anything but arrays in an object array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            return {name: _member(archive, name, path, mapped) for name in names if f"{name}.npy" in members}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: is not a whole .npz ({one_line(error)})") from error


def _member(archive: zipfile.ZipFile, name: str, path: Path, mapped: bool) -> Any:
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        *_, dtype = header(stream)
        if dtype.hasobject:
            value = load_pickle(stream.read(), name=f"{path} ({name})")
            return value.item() if isinstance(value, ndarray) and value.ndim == 0 else value
    if mapped and archive.getinfo(f"{name}.npy").file_size > mapped_npz.MAPPED_BYTES:
        return mapped_npz.mapped_member(archive, f"{name}.npy", path)
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
