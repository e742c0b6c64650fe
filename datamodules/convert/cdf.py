"""Reads one variable of numbers out of a CDF file (NASA's Common Data Format), as Human3.6M keeps its joints.

Read are single-file CDFs of versions 2.6, 2.7 and 3 of either majority and byte order, plain or compressed by gzip, by
variable or as a whole. What such files of joints never have is refused by name: text, sparse records, multiple files,
VAX floats, other compressions.

Records are linked by their places in the file: CDR (the file) -> GDR (its lists) -> zVDR or rVDR (a variable) -> VXR
(an index, maybe a tree of them) -> VVR or CVVR (values). Every number of these records is big-endian.

Source: NASA, "CDF Internal Format Description", versions 2.7 and 3.4.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from bodies.errors import InputError, one_line

_PLAIN, _WHOLE_COMPRESSED = 0x0000FFFF, 0xCCCC0001
_CDR, _GDR, _RVDR, _VXR, _VVR, _ZVDR, _CCR, _CPR, _CVVR = 1, 2, 3, 6, 7, 8, 10, 11, 13
_GZIP: Final = 5
_ROW_MAJOR, _SINGLE_FILE = 1, 2
_COMPRESSED_VARIABLE: Final = 4
#: Bytes before the first record.
_MAGIC_BYTES: Final = 8
#: By the encoding's code: network, Sun, NeXT, PPC, SGi, RS6000, HP are big-endian; DEC, IBM-PC, Alpha are little.
_BYTE_ORDER: Final = {**dict.fromkeys((1, 2, 5, 7, 9, 11, 12, 18), ">"), **dict.fromkeys((4, 6, 13, 16, 17), "<")}
_DTYPES: Final = {
    1: "i1", 2: "i2", 4: "i4", 8: "i8", 11: "u1", 12: "u2", 14: "u4", 21: "f4", 22: "f8", 41: "i1", 44: "f4", 45: "f8",
}  # fmt: skip
#: More would be no pose: an hour of 32 joints at 50 Hz is 0.14 GB.
_MAX_BYTES: Final = 1 << 30


class _Damaged(Exception):
    """What is wrong with the file, without its name."""


class _Block(NamedTuple):
    first: int
    last: int
    place: int


@dataclass(frozen=True)
class _Variable:
    place: int
    next: int
    dtype: int
    last_record: int
    index: int
    flags: int
    sparse: int
    compression: int
    shape: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class _File:
    data: bytes
    long: str
    """struct's letter of an offset: 4 bytes in version 2, 8 in version 3."""

    @property
    def name_bytes(self) -> int:
        return 64 if self.long == "i" else 256

    def fields(self, place: int, form: str) -> tuple[int, ...]:
        """The numbers of a record behind its size and type; `L` stands for an offset, `i` for 4 bytes."""
        return struct.unpack_from(">" + form.replace("L", self.long), self.data, place + self.head_bytes)

    @property
    def head_bytes(self) -> int:
        return struct.calcsize(">" + self.long) + 4

    def head(self, place: int, *types: int) -> tuple[int, int]:
        """Size and type of a record, which is one of the given types and lies within the file."""
        if place < _MAGIC_BYTES:
            raise _Damaged("a record that it needs is missing")
        size, kind = struct.unpack_from(f">{self.long}i", self.data, place)
        if kind not in types:
            raise _Damaged(f"a record is of type {kind}, expected was {types[0]}")
        if size < self.head_bytes or place + size > len(self.data):
            raise _Damaged("it is cut off")
        return size, kind


def read_cdf_variable(path: Path, name: str) -> Float64[ndarray, "records ..."]:
    """All records of a variable.

    Raises:
        InputError: If the file is missing, is no whole CDF, has no such variable, or the variable holds no numbers.
    """
    try:
        file = _open(path.read_bytes())
        return _values(file, name)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except _Damaged as error:
        raise InputError(f"{path}: {error}") from error
    except (struct.error, RecursionError) as error:
        raise InputError(f"{path}: not a whole CDF file (it ends too early)") from error
    except zlib.error as error:
        raise InputError(f"{path}: its compressed data is damaged ({one_line(error)})") from error


def _open(data: bytes) -> _File:
    version, compression = struct.unpack_from(">II", data)
    match version:
        case 0xCDF30001:
            file = _File(data, "q")
        case 0xCDF26002:
            file = _File(data, "i")
        case _:
            raise _Damaged("not a CDF file of version 2.6 or later")
    if compression == _PLAIN:
        return file
    if compression != _WHOLE_COMPRESSED:
        raise _Damaged("not a CDF file")
    size, _ = file.head(_MAGIC_BYTES, _CCR)
    parameters, whole, _ = file.fields(_MAGIC_BYTES, "LLi")
    _check_gzip(file, parameters)
    start = _MAGIC_BYTES + file.head_bytes + struct.calcsize(f">{file.long * 2}i")
    return _File(data[:_MAGIC_BYTES] + _inflated(data[start : _MAGIC_BYTES + size], whole), file.long)


def _check_gzip(file: _File, place: int) -> None:
    file.head(place, _CPR)
    if file.fields(place, "i")[0] != _GZIP:
        raise _Damaged("it is compressed by something else than gzip")


def _inflated(data: bytes, size: int) -> bytes:
    if not 0 <= size <= _MAX_BYTES:
        raise _Damaged(f"it claims to hold {size} bytes")
    undone = zlib.decompressobj(wbits=31).decompress(data, size + 1)
    if len(undone) != size:
        raise _Damaged("its compressed data is of another length than it says")
    return undone


def _values(file: _File, name: str) -> Float64[ndarray, "records ..."]:
    file.head(_MAGIC_BYTES, _CDR)
    gdr, _, _, encoding, flags = file.fields(_MAGIC_BYTES, "Liiii")
    if not flags & _SINGLE_FILE:
        raise _Damaged("its values are in other files")
    if encoding not in _BYTE_ORDER:
        raise _Damaged(f"its numbers are in encoding {encoding}, which is not IEEE 754")
    variable = next((variable for variable in _variables(file, gdr) if variable.name == name), None)
    if variable is None:
        raise _Damaged(f"it has no variable {name}")
    if variable.dtype not in _DTYPES or variable.sparse:
        raise _Damaged(f"{name} is not a variable of plain numbers")
    if variable.flags & _COMPRESSED_VARIABLE:
        _check_gzip(file, variable.compression)
    dtype = np.dtype(_BYTE_ORDER[encoding] + _DTYPES[variable.dtype])
    records = variable.last_record + 1
    data = _records(file, variable, records, dtype.itemsize)
    shape = variable.shape if flags & _ROW_MAJOR else variable.shape[::-1]
    array = np.frombuffer(data, dtype).reshape(records, *shape)
    if not flags & _ROW_MAJOR:
        array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    return np.ascontiguousarray(array, dtype=np.float64)


def _records(file: _File, variable: _Variable, records: int, value_bytes: int) -> bytes:
    """All values of a variable, end to end."""
    size = value_bytes * int(np.prod(variable.shape, dtype=object))
    if not 0 <= records * size <= _MAX_BYTES or min(variable.shape, default=1) < 1:
        raise _Damaged(f"{variable.name} has {records} records of shape {variable.shape}")
    parts, filled = [], 0
    for block in sorted(set(_blocks(file, variable.index, set()))):
        # Blocks may hold room for records that are not there yet.
        used = min(block.last + 1, records)
        if block.first != filled or used < filled:
            raise _Damaged(f"records of {variable.name} are missing")
        parts.append(_block(file, block, size, used - filled))
        filled = used
    if filled != records:
        raise _Damaged(f"records of {variable.name} are missing")
    return b"".join(parts)


def _variables(file: _File, gdr: int) -> Iterator[_Variable]:
    """All variables; those of kind r share the dimensions that the file's own record states."""
    file.head(gdr, _GDR)
    first_r, first_z, _, _, count_r, _, _, rank, count_z, _, _, _, _ = file.fields(gdr, "LLLLiiiiiLiii")
    place = gdr + file.head_bytes + struct.calcsize(">" + f"{file.long * 5}iiiiiiii")
    if not 0 <= rank <= 10:
        raise _Damaged(f"its variables have {rank} dimensions")
    shared = struct.unpack_from(f">{rank}i", file.data, place)
    seen: set[int] = set()
    for first, count, kind in ((first_z, count_z, _ZVDR), (first_r, count_r, _RVDR)):
        place = first
        for _ in range(count):
            if place in seen:
                raise _Damaged("its list of variables runs in a circle")
            seen.add(place)
            variable = _variable(file, place, kind, shared)
            yield variable
            place = variable.next


def _variable(file: _File, place: int, kind: int, shared: tuple[int, ...]) -> _Variable:
    file.head(place, kind)
    form = "LiiLLiiiiiiiLi"
    next_, dtype, last, index, _, flags, sparse, _, _, _, _, _, compression, _ = file.fields(place, form)
    at = place + file.head_bytes + struct.calcsize(">" + form.replace("L", file.long))
    name = file.data[at : at + file.name_bytes].rstrip(b"\0 ").decode("ascii", "replace")
    at += file.name_bytes
    sizes = shared
    if kind == _ZVDR:
        (rank,) = struct.unpack_from(">i", file.data, at)
        if not 0 <= rank <= 10:
            raise _Damaged(f"{name} has {rank} dimensions")
        sizes = struct.unpack_from(f">{rank}i", file.data, at + 4)
        at += 4 + 4 * rank
    varies = struct.unpack_from(f">{len(sizes)}i", file.data, at)
    shape = tuple(size for size, does in zip(sizes, varies, strict=True) if does)
    return _Variable(place, next_, dtype, last, index, flags, sparse, compression, shape, name)


def _blocks(file: _File, place: int, seen: set[int]) -> Iterator[_Block]:
    """The blocks of values that an index, the indices below it and those after it point at."""
    while place > 0:
        if place in seen:
            raise _Damaged("its index runs in a circle")
        seen.add(place)
        file.head(place, _VXR)
        next_, room, used = file.fields(place, "Lii")
        if not 0 <= used <= room <= len(file.data):
            raise _Damaged("its index is damaged")
        at = place + file.head_bytes + struct.calcsize(f">{file.long}ii")
        entries = struct.unpack_from(f">{room}i{room}i{room}{file.long}", file.data, at)
        for first, last, below in zip(entries[:used], entries[room:], entries[2 * room :], strict=False):
            if file.head(below, _VVR, _CVVR, _VXR)[1] == _VXR:
                yield from _blocks(file, below, seen)
            else:
                yield _Block(first, last, below)
        place = next_


def _block(file: _File, block: _Block, record_bytes: int, records: int) -> bytes:
    """The first records of a block."""
    size, kind = file.head(block.place, _VVR, _CVVR)
    start = block.place + file.head_bytes
    if kind == _VVR:
        data = file.data[start : block.place + size]
    else:
        _, packed = file.fields(block.place, "iL")
        start += struct.calcsize(f">i{file.long}")
        data = _inflated(file.data[start : start + packed], (block.last - block.first + 1) * record_bytes)
    if len(data) < records * record_bytes:
        raise _Damaged("it is cut off")
    return data[: records * record_bytes]
