"""Everything that docs/data.md asks for, small and in the real formats: body models, data sets, regressors' results.

The bodies are the small stand-in written as SMPL's files, so people look and stand like people.
"""

import functools
from pathlib import Path

import body_oracle
import cv2
import numpy as np
import pytest
import test_convert_rich as rich
import tiny
import tiny_h36m
import tiny_regressors
import tiny_smplx
import tiny_surreal
import tiny_threedpw
from scipy.spatial.transform import Rotation

from bodies import load_body_model
from bodies.joints import SMPL24_PARENTS
from bodies.model_files import STAND_INS, read_body_model
from datamodules.store import FrameStore
from fitting import GmmPrior

#: How much the template of each gender is larger.
SIZES = {"neutral": 1.0, "male": 1.03, "female": 0.97}
H36M_TRIAL, H36M_CAMERAS = "Walking", ("54138969", "60457274")


@functools.cache
def arrays(gender: str) -> dict[str, object]:
    """A body under SMPL's names, with a rest pelvis that is not the origin."""
    data = read_body_model(STAND_INS["standin-tiny"])
    vertices = len(data.template)
    on_vertices = {name: data.keypoint_regressors[name][:, :vertices] for name in ("openpose25", "h36m17")}
    return {
        "v_template": SIZES[gender] * data.template.astype(float) - (0.002, 0.23, 0),
        "shapedirs": data.shape_directions.astype(float),
        "posedirs": np.zeros((vertices, 3, 207)),
        "weights": data.skin_weights.astype(float),
        "J_regressor": data.joint_regressor.tocsc(),
        "kintree_table": np.array([SMPL24_PARENTS, range(24)], np.int64).astype(np.uint32),
        "f": data.faces.astype(np.uint32),
        "bs_type": "lrotmin",
        "bs_style": "lbs",
        **{name: np.asarray(matrix.todense(), float) for name, matrix in on_vertices.items()},
    }


def write_downloads(folder: Path) -> None:
    """All that is there before the first command: `body_models`, `priors`, and `downloads` with the data sets."""
    write_models(folder)
    downloads = folder / "downloads"
    write_threedpw(downloads / "3DPW")
    for clip, gender in (("run0/01_01/01_01_c0001", "female"), ("run1/ung_122_57/ung_122_57_c0002", "male")):
        tiny_surreal.write_clip(downloads / "SURREAL" / "data" / "cmu" / "train", clip, gender, 3, arrays)
    write_h36m(downloads / "h36m")
    write_rich(downloads / "RICH")


def write_models(folder: Path) -> None:
    models = folder / "body_models"
    models.mkdir(parents=True)
    for gender in SIZES:
        tiny.write_pkl(models / f"SMPL_{gender.upper()}.pkl", arrays(gender))
    np.save(models / "J_regressor_h36m.npy", arrays("neutral")["h36m17"])
    for gender in ("male", "female"):
        tiny_smplx.write_model(models / "smplx" / f"SMPLX_{gender.upper()}.npz", smplx_arrays(gender))
    prior = GmmPrior.load("standin")
    factors = prior.factors.double().numpy()
    # The prior keeps the inverse of the covariances' roots.
    covariances = np.linalg.inv(factors @ factors.transpose(0, 2, 1))
    weights = np.full(len(covariances), 1 / len(covariances))
    content = {"means": prior.means.double().numpy(), "covars": covariances, "weights": weights}
    tiny_threedpw.write_python2(folder / "priors" / "gmm_08.pkl", content)


@functools.cache
def smplx_arrays(gender: str) -> dict[str, object]:
    return tiny_smplx.model_arrays(arrays(gender), columns={"female": 20, "male": 400}[gender])


def write_threedpw(root: Path) -> None:
    truth = tiny_threedpw.Truth({}, {})
    for name, split, genders, frames in (
        ("courtyard_two_00", "train", "mf", 2),
        ("outdoors_other_00", "validation", "m", 2),
        ("downtown_one_01", "test", "fm", 2),
    ):
        size = tiny_threedpw.LANDSCAPE
        tiny_threedpw.write_sequence(root, name, split, genders, frames, size, truth, arrays, lifelike=True)


def write_h36m(root: Path) -> None:
    """The raw tree with the camera file and MoSh's pickles: one trial of S1 and S9, of whose six frames two count."""
    neutral = arrays("neutral")
    world = tiny_h36m.World(neutral, neutral["h36m17"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_h36m, "FRAMES", 6)
        patch.setattr(tiny_h36m, "picture", colourful)
        for subject, cameras in ((1, H36M_CAMERAS), (9, H36M_CAMERAS[-1:])):
            rng = np.random.default_rng(subject)
            poses, betas = rng.normal(scale=0.15, size=(6, 72)), rng.normal(scale=0.7, size=10)
            for frame, pose in enumerate(poses):
                pose[:3] = Rotation.from_euler("xz", [90, 40 * frame], degrees=True).as_rotvec()
                tiny_h36m._add_shots(world, (subject, H36M_TRIAL, frame), pose, betas, np.array([0.2, 0.1, 1.2]))
            for camera in cameras:
                tiny_h36m.write_joints(root, world, subject, H36M_TRIAL, camera)
                tiny_h36m.write_video(root, world, subject, H36M_TRIAL, camera, 6)
                if subject == 1:
                    tiny_h36m.write_camera_mosh(root / "mosh", world, subject, H36M_TRIAL, camera)
    for frame in range(6):
        shot = world.shots[9, H36M_TRIAL, H36M_CAMERAS[-1], frame]
        name = f"S9_{H36M_TRIAL}.{H36M_CAMERAS[-1]}_{frame + 1:06d}.jpg"
        parts = (shot.pose, shot.betas, shot.transl)
        tiny_regressors.BODILESS[name] = tuple(part.astype(np.float32) for part in parts)
    tiny_h36m.write_karfly(root / "camera-parameters.json")


def colourful(shot: object, camera: str, frame: int) -> np.ndarray:
    """A picture in place of the spots that the converter's tests look for: nothing in it is blank."""
    coarse = np.random.default_rng(frame).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, tiny_h36m.SIZES[camera], interpolation=cv2.INTER_CUBIC)


def write_rich(root: Path) -> None:
    """Two people before one camera."""
    rng, recording, frame = np.random.default_rng(5), "ParkingLot2_009_014_dance1", 7
    rich.write_calibration(root / "scan_calibration/ParkingLot2/calibration/000.xml", rich.camera(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_oracle, "model", arrays)
        patch.setattr(rich, "smplx_arrays", smplx_arrays)
        for subject, pelvis in {9: (-0.5, 0.1, 5.0), 14: (0.6, 0.0, 5.6)}.items():
            parameters, _ = rich.person_at(rng, rich.GENDERS[subject], pelvis)
            rich.write_body(root, recording, frame, subject, parameters)
    rich.write_image(rich.image_path(root, recording, frame, 0, ".jpeg"), rich.EIGHTH)


def write_results(kind: str, source: Path, frames: FrameStore) -> None:
    """What a regressor or detector would write about a frames file that was converted before."""
    match kind:
        case "pare":
            tiny_regressors.write_pare(source, frames)
        case "prohmr":
            tiny_regressors.write_prohmr(source, frames)
        case "hmr-plus":
            tiny_regressors.write_hmr_plus(source, frames)
        case "openpose":
            models = functools.cache(lambda gender: load_body_model(frames.body_model, gender))
            tiny_regressors.write_openpose(source, frames, models)
        case _:
            raise AssertionError(f"nobody writes {kind}")
