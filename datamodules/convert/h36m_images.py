"""The images of Human3.6M: frames of its videos or image files extracted from them, with the distortion undone.

The store's cameras are pinhole cameras. Those of Human3.6M move what they see by 30 px in the corners and by a
few pixels where people are, so images are resampled to what a pinhole camera of the same focal lengths and principal
point sees. Image files that need no change are stored byte for byte.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from bodies.errors import InputError
from datamodules.convert.h36m_cameras import Camera
from datamodules.convert.run import Job, JobPlan, PlannedFrame
from datamodules.crops import jpeg_size_px
from datamodules.store import StoredImage

JPEG_QUALITY: Final = 95
#: Our pixel (0, 0) has its centre at (0.5, 0.5), OpenCV's at (0, 0).
_TO_OPENCV_PX: Final = -0.5


class Lens:
    """Undoes a camera's distortion, if it has one.

    Args:
        camera: The camera that took the images.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera

    @cached_property
    def _maps(self) -> tuple[ndarray, ndarray]:
        matrix = self.camera.matrix(_TO_OPENCV_PX)
        size_px = self.camera.size_px
        first, second = cv2.initUndistortRectifyMap(
            matrix, self.camera.distortion, np.eye(3), matrix, size_px, cv2.CV_16SC2
        )
        return first, second

    def undistorted(self, pixels: UInt8[ndarray, "height width 3"]) -> UInt8[ndarray, "height width 3"]:
        """What a pinhole camera would have seen; black where this one has not looked."""
        if not self.camera.distorts:
            return pixels
        # Linear, for cubic takes longer than all else that is done with a frame.
        return np.asarray(cv2.remap(pixels, *self._maps, cv2.INTER_LINEAR))


class VideoJob(Job):
    """One recording by one camera, out of its video.

    Args:
        video: The file.
        lens: Of the camera.
        plan: Makes the rows.
    """

    def __init__(self, video: Path, lens: Lens, plan: Callable[[], JobPlan]) -> None:
        self._video, self._lens, self._plan = video, lens, plan

    def plan(self) -> JobPlan:
        """The rows."""
        return self._plan()

    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """The wanted frames: row i of the annotations is frame i of the video, both from 0."""
        found, count = video_jpegs(self._video, {frame.frame for frame in frames}, self._lens)
        size_px = self._lens.camera.size_px
        for frame in frames:
            if frame.frame in found:
                yield StoredImage(frame.name, found[frame.frame], size_px)
            elif frame.frame >= count:
                yield "its video is damaged or ends before" if count else "its video is damaged or missing"
            else:
                yield f"its video is damaged or not {size_px[0]} x {size_px[1]}"


def video_jpegs(video: Path, wanted: set[int], lens: Lens) -> tuple[dict[int, bytes], int]:
    """The wanted frames as JPEGs, and how many frames were gone through."""
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    found: dict[int, bytes] = {}
    count, last = 0, max(wanted, default=-1)
    width, height = lens.camera.size_px
    try:
        while count <= last and capture.grab():
            if count in wanted:
                whole, pixels = capture.retrieve()
                if whole and pixels.shape == (height, width, 3):
                    found[count] = _encoded(lens.undistorted(np.asarray(pixels)))
            count += 1
    finally:
        capture.release()
    return found, count


class ImageJob(Job):
    """Frames of one camera that were extracted as image files.

    Args:
        paths: The file of each name.
        lens: Of the camera.
        plan: Makes the rows.
    """

    def __init__(self, paths: Callable[[str], Path], lens: Lens, plan: Callable[[], JobPlan]) -> None:
        self._paths, self._lens, self._plan = paths, lens, plan

    def plan(self) -> JobPlan:
        """The rows."""
        return self._plan()

    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """The files, one after the other."""
        for frame in frames:
            yield read_image(self._paths(frame.name), frame.name, self._lens)


def read_image(path: Path, name: str, lens: Lens) -> StoredImage | str:
    """An image file as it is to be stored, or what is wrong with it.

    Raises:
        InputError: If it is there and cannot be read.
    """
    try:
        jpeg = path.read_bytes()
        size_px = jpeg_size_px(jpeg)
    except FileNotFoundError:
        return "there is no image file"
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    except ValueError as error:
        return f"its image is damaged: {error}"
    expected = lens.camera.size_px
    if size_px != expected:
        return f"its image is not {expected[0]} x {expected[1]}"
    if lens.camera.distorts:
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            return "its image is damaged: it cannot be decoded"
        jpeg = _encoded(lens.undistorted(np.asarray(pixels)))
    return StoredImage(name, jpeg, size_px)


def _encoded(pixels: UInt8[ndarray, "height width 3"]) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
