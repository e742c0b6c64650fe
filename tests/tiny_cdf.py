"""Writes CDF files of versions 2.7 and 3, record by record, from NASA's "CDF Internal Format Description"."""

import gzip
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

REAL4, REAL8, INT4 = 44, 45, 4
NETWORK, IBMPC = 1, 6


def write_cdf(
    path: Path,
    arrays: dict[str, np.ndarray],
    version: int = 3,
    row_major: bool = False,
    encoding: int = IBMPC,
    compressed: bool = False,
    blocks: int = 1,
    r_variables: bool = False,
    whole_compressed: bool = False,
) -> Path:
    """Each array as a variable; axis 0 counts records. `blocks` pieces of the records, in an index of two levels."""
    wide, name_bytes = ("q", 256) if version == 3 else ("i", 64)
    body = bytearray(struct.pack(">II", 0xCDF30001 if version == 3 else 0xCDF26002, 0x0000FFFF))

    def record(kind: int, form: str, *numbers: int, tail: bytes = b"") -> int:
        """Appends a record and returns its place."""
        packed = struct.pack(">" + form.replace("L", wide), *numbers) + tail
        place = len(body)
        body.extend(struct.pack(f">{wide}i", len(packed) + struct.calcsize(f">{wide}i"), kind) + packed)
        return place

    shared = next(iter(arrays.values())).shape[1:] if r_variables else ()
    cdr_form = "Liiiiiiiii"
    cdr = record(1, cdr_form, 0, version, 7, encoding, 3 if row_major else 2, 0, 0, 0, 0, 0, tail=bytes(256))
    counts = (len(arrays), 0) if r_variables else (0, len(arrays))
    numbers = (0, 0, 0, 0, counts[0], 0, 0, len(shared), counts[1], 0, 0, 0, -1)
    gdr = record(2, "LLLLiiiiiLiii", *numbers, tail=struct.pack(f">{len(shared)}i", *shared))
    struct.pack_into(">" + wide, body, cdr + struct.calcsize(f">{wide}i"), gdr)
    places = []
    for number, (name, array) in enumerate(arrays.items()):
        kind = {"f4": REAL4, "f8": REAL8, "i4": INT4}[array.dtype.str[1:]]
        values = array if row_major else array.transpose(0, *range(array.ndim - 1, 0, -1))
        values = np.ascontiguousarray(values, array.dtype.newbyteorder(">" if encoding == NETWORK else "<"))
        compression = record(11, "iiii", 5, 0, 1, 6) if compressed else -1
        pieces = []
        for part in np.array_split(np.arange(len(values)), max(1, blocks))[:blocks]:
            data = values[part].tobytes()
            if compressed:
                packed = gzip.compress(data)
                place = record(13, "iL", 0, len(packed), tail=packed)
            else:
                place = record(7, "", tail=data)
            pieces.append((int(part[0]), int(part[-1]), place))
        # Each index has room for one entry more than it has.
        leaves = [
            (first, last, record(6, "LiiiiiiLL", 0, 2, 1, first, -1, last, -1, place, -1))
            for first, last, place in pieces
        ]
        count = len(leaves)
        entries = [entry[column] for column in range(3) for entry in leaves]
        form = "Lii" + "i" * 2 * count + "L" * count
        index = leaves[0][2] if count == 1 else 0 if not count else record(6, form, 0, count, count, *entries)
        sizes = array.shape[1:]
        dimensions = [] if r_variables else [len(sizes), *sizes]
        tail = struct.pack(f">{len(dimensions) + len(sizes)}i", *dimensions, *[-1] * len(sizes))
        tail = name.encode().ljust(name_bytes, b"\0") + tail
        flags = 1 | (4 if compressed else 0)
        head = (0, kind, len(array) - 1, index, index, flags, 0, 0, -1, -1, 1, number, compression, 0)
        places.append(record(3 if r_variables else 8, "LiiLLiiiiiiiLi", *head, tail=tail))
    for place, following in pairwise(places):
        struct.pack_into(">" + wide, body, place + struct.calcsize(f">{wide}i"), following)
    struct.pack_into(f">{wide * 2}", body, gdr + struct.calcsize(f">{wide}i"), *places[:1] * 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_whole_compressed(bytes(body), wide) if whole_compressed else bytes(body))
    return path


def _whole_compressed(plain: bytes, wide: str) -> bytes:
    head = struct.calcsize(f">{wide}i")
    packed = gzip.compress(plain[8:])
    size = head + struct.calcsize(f">{wide * 2}i") + len(packed)
    record = struct.pack(f">{wide}i{wide * 2}i", size, 10, 8 + size, len(plain) - 8, 0) + packed
    parameters = struct.pack(f">{wide}iiiii", head + 16, 11, 5, 0, 1, 6)
    return plain[:4] + struct.pack(">I", 0xCCCC0001) + record + parameters
