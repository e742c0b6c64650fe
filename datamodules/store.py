"""The HDF5 store: frames files hold the rows of a dataset split, estimates files a regressor's results for them.

The layout is described in `datamodules.store_layout`, the one reader and the one writer are here by name.
"""

from datamodules.crops import Crop, ImageCamera
from datamodules.store_amend import amend_frames
from datamodules.store_checks import SkippedRow
from datamodules.store_reader import EstimateStore, FrameStore
from datamodules.store_records import (
    FrameRow,
    StoredEstimate,
    StoredFrame,
    StoredImage,
    StoredPiece,
    StoredTexture,
    SurfacePoints,
)
from datamodules.store_writer import EstimateWriter, FrameWriter

__all__ = [
    "Crop",
    "EstimateStore",
    "EstimateWriter",
    "FrameRow",
    "FrameStore",
    "FrameWriter",
    "ImageCamera",
    "SkippedRow",
    "StoredEstimate",
    "StoredFrame",
    "StoredImage",
    "StoredPiece",
    "StoredTexture",
    "SurfacePoints",
    "amend_frames",
]
