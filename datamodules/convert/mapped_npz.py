"""Large arrays of an .npz that stay on disk: mapped where they lie in the file, so that memory does not grow with them.

numpy's own mapping is not for archives. A member that is stored, as `numpy.savez` does it, is an .npy file somewhere in
the archive; one that is compressed is unpacked into a temporary file without a name, which goes with the array.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy import ndarray

#: Smaller arrays are simply read.
MAPPED_BYTES: Final = 32 << 20
_BLOCK_BYTES: Final = 1 << 20
#: Local header of a member (APPNOTE.TXT 4.3.7): its size, and where the lengths of what follows it stand.
_HEADER_BYTES, _LENGTHS_AT = 30, 26


def mapped_member(archive: zipfile.ZipFile, name: str, path: Path) -> ndarray:
    """A member that holds an array of numbers, mapped.

    Args:
        archive: The open archive.
        name: Name of the member.
        path: The archive's file.

    Raises:
        zipfile.BadZipFile: If its checksum is another one; so do errors of zlib and of numpy's header mean damage.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member, tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(member, unpacked, _BLOCK_BYTES)
            unpacked.seek(0)
            return _mapped(unpacked)
    with archive.open(info) as member:
        # Read once from end to end for its checksum, which mapping does not look at.
        while member.read(_BLOCK_BYTES):
            pass
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = np.frombuffer(file.read(_HEADER_BYTES), "<u2", 2, _LENGTHS_AT)
        file.seek(info.header_offset + _HEADER_BYTES + int(lengths.sum()))
        return _mapped(file)


def _mapped(file: BinaryIO) -> ndarray:
    """The array of an .npy file that begins here."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    # The mapping outlives the file object.
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
