"""A small Human3.6M in each of the forms it is kept in, from known bodies and cameras, by code of its own.

S1 (training) and S9 (testing) walk 12 frames of two trials. Their bodies are known in the world; everything else
(joints in millimetres, masks, videos, MoSh pickles, JSON, .npz) follows from them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import body_oracle
import cv2
import h5py
import numpy as np
import tiny
import torch
from scipy.spatial.transform import Rotation
from tiny_cdf import write_cdf
from tiny_threedpw import write_python2

from bodies import BodyParameters, load_body_model
from datamodules.store import FrameStore

FRAMES = 12
IDS = ("54138969", "55011271", "58860488", "60457274")
SIZES = {"54138969": (1000, 1002), "55011271": (1000, 1000), "58860488": (1000, 1000), "60457274": (1000, 1002)}
FOCAL = {"54138969": (1145.049, 1143.781), "55011271": (1149.676, 1147.592), "58860488": (1149.141, 1148.799),
         "60457274": (1145.511, 1144.774)}  # fmt: skip
CENTER = {"54138969": (512.542, 515.451), "55011271": (508.849, 508.065), "58860488": (519.816, 501.403),
          "60457274": (514.968, 501.882)}  # fmt: skip
DISTORTION = (-0.1984, 0.2183, -0.0018, -0.00059, -0.00895)
TRIALS = {1: ("Directions 1", "Walking"), 9: ("Directions 1", "Greeting"), 11: ("Posing", "Waiting 2")}
#: Places of the 17 scored joints among 32, and among SPIN's 24.
OF_32 = (11, 6, 7, 8, 1, 2, 3, 12, 24, 14, 15, 17, 18, 19, 25, 26, 27)
OF_24 = (14, 3, 4, 5, 2, 1, 0, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6)
#: Joints that are drawn: an ankle, the head's top, the wrists.
SPOTS = (3, 10, 13, 16)
RIGHT_LEG_FIRST = (0, 4, 5, 6, 1, 2, 3, *range(7, 17))


@dataclass
class Shot:
    """One frame of one recording by one camera."""

    pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    vertices_px: np.ndarray
    joints: np.ndarray
    """17 in the camera, in metres."""


@dataclass
class World:
    """What is true: by subject and trial in the world, by subject, trial, camera and frame in the camera."""

    arrays: dict
    regressor: np.ndarray
    poses: dict = field(default_factory=dict)
    shots: dict = field(default_factory=dict)


def extrinsics(subject: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """R and t in millimetres; those of S9's frontal camera are the real ones."""
    if (subject, name) == (9, "60457274"):
        given = np.array([(0.91546, -0.39735, 0.06362), (-0.04941, -0.26789, -0.96218), (0.39936, 0.87770, -0.26488)])
        left, _, right = np.linalg.svd(given)
        return left @ right, np.array([-69.27, 422.18, 4457.89])
    angle = 0.4 + np.pi / 2 * IDS.index(name) + 0.05 * subject
    place = np.array([4.6 * np.cos(angle), 4.6 * np.sin(angle), 1.5])
    forward = np.array([0, 0, 0.8]) - place
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -1000 * rotation @ place


def project(points: np.ndarray, name: str) -> np.ndarray:
    return points[..., :2] / points[..., 2:] * FOCAL[name] + CENTER[name]


def distort(points: np.ndarray, name: str) -> np.ndarray:
    """Where the real lens shows camera-frame points (Brown's model, term by term)."""
    k1, k2, p1, p2, k3 = DISTORTION
    x, y = points[..., 0] / points[..., 2], points[..., 1] / points[..., 2]
    square = x * x + y * y
    radial = 1 + k1 * square + k2 * square**2 + k3 * square**3
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return np.stack([bent_x, bent_y], axis=-1) * FOCAL[name] + CENTER[name]


def make_world(first_beta: float = 0.4) -> World:
    arrays = tiny.model_arrays(96, seed=5)
    world = World(arrays, tiny.joint_regressor_near(arrays["v_template"], tiny.NEAR_H36M17))
    for subject, trials in TRIALS.items():
        for trial in trials:
            rng = np.random.default_rng(subject * 100 + len(trial))
            betas = np.array([first_beta, *rng.normal(scale=0.7, size=9)])
            poses, transl = rng.normal(scale=0.2, size=(FRAMES, 72)), np.zeros((FRAMES, 3))
            for frame in range(FRAMES):
                upright = Rotation.from_euler("z", 40 * frame, degrees=True) * Rotation.from_euler(
                    "x", 90, degrees=True
                )
                poses[frame, :3] = (upright * Rotation.from_rotvec(poses[frame, :3])).as_rotvec()
                transl[frame] = (0.3 - 0.05 * frame, 0.2 + 0.03 * frame, 1.2)
            world.poses[subject, trial] = poses, betas, transl
            for frame in range(FRAMES):
                _add_shots(world, (subject, trial, frame), poses[frame], betas, transl[frame])
    return world


def _add_shots(world: World, key: tuple, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> None:
    vertices, joints = body_oracle.posed(world.arrays, pose, betas, transl)
    pelvis = body_oracle.rest_joints(world.arrays, betas)[0]
    for name in IDS:
        rotation, shift_mm = extrinsics(key[0], name)
        seen = vertices @ rotation.T + shift_mm / 1000
        root = (Rotation.from_matrix(rotation) * Rotation.from_rotvec(pose[:3])).as_rotvec()
        world.shots[(*key[:2], name, key[2])] = Shot(
            np.concatenate([root, pose[3:]]),
            betas,
            rotation @ joints[0] + shift_mm / 1000 - pelvis,
            project(seen, name),
            world.regressor @ seen,
        )


def write_body(folder: Path, world: World) -> Path:
    folder.mkdir(parents=True)
    tiny.write_pkl(folder / "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl", world.arrays)
    np.save(folder / "J_regressor_h36m.npy", world.regressor)
    return folder


def write_karfly(path: Path, distortion: tuple = DISTORTION) -> None:
    inner = {
        name: {
            "calibration_matrix": [
                [FOCAL[name][0], 0, CENTER[name][0]],
                [0, FOCAL[name][1], CENTER[name][1]],
                [0, 0, 1],
            ],
            "distortion": list(distortion),
        }
        for name in IDS
    }
    outer = {}
    for subject in range(1, 12):
        outer[f"S{subject}"] = {}
        for name in IDS:
            rotation, shift_mm = extrinsics(subject, name)
            outer[f"S{subject}"][name] = {"R": rotation.tolist(), "t": shift_mm[:, None].tolist()}
    path.write_text(json.dumps({"intrinsics": inner, "extrinsics": outer}))


def joints_32_mm(world: World, subject: int, trial: str, name: str) -> np.ndarray:
    """(T, 96) with numbers of no meaning where there are no scored joints."""
    joints = np.random.default_rng(3).normal(scale=900, size=(FRAMES, 32, 3))
    for frame in range(FRAMES):
        joints[frame, list(OF_32)] = 1000 * world.shots[subject, trial, name, frame].joints
    return joints.reshape(FRAMES, 96)


def write_joints(root: Path, world: World, subject: int, trial: str, name: str, **form) -> None:
    path = root / f"S{subject}" / "MyPoseFeatures" / "D3_Positions_mono" / f"{trial}.{name}.cdf"
    write_cdf(path, {"Pose": joints_32_mm(world, subject, trial, name)[None]}, **form)


def write_world_joints(root: Path, world: World, subject: int, trial: str) -> None:
    rotation, shift_mm = extrinsics(subject, IDS[0])
    seen = joints_32_mm(world, subject, trial, IDS[0]).reshape(FRAMES, 32, 3)
    path = root / f"S{subject}" / "MyPoseFeatures" / "D3_Positions" / f"{trial}.cdf"
    write_cdf(path, {"Pose": ((seen - shift_mm) @ rotation).reshape(1, FRAMES, 96)})


def gray(frame: int) -> int:
    return 20 * frame


def picture(shot: Shot, name: str, frame: int) -> np.ndarray:
    """The frame's gray, and white spots where the lens shows the joints of `SPOTS`."""
    width, height = SIZES[name]
    pixels = np.full((height, width, 3), gray(frame), np.uint8)
    for x, y in distort(shot.joints[list(SPOTS)], name):
        # OpenCV's pixel (0, 0) has its centre at (0, 0), ours at (0.5, 0.5); positions in 1/16 px.
        place = (round((x - 0.5) * 16), round((y - 0.5) * 16))
        cv2.circle(pixels, place, 8 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return pixels


def write_video(root: Path, world: World, subject: int, trial: str, name: str, frames: int = FRAMES) -> Path:
    path = root / f"S{subject}" / "Videos" / f"{trial}.{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 50, SIZES[name])
    for frame in range(frames):
        writer.write(picture(world.shots[subject, trial, name, frame], name, frame))
    writer.release()
    return path


def write_masks(root: Path, world: World, subject: int, trial: str, name: str, edges: tuple) -> Path:
    """MATLAB 7.3: a cell array of masks, each stored column by column; frame 10 of it is empty."""
    left, top, right, bottom = edges
    path = root / f"S{subject}" / "MySegmentsMat" / "ground_truth_bb" / f"{trial}.{name}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        references = file.create_dataset("Masks", (FRAMES, 1), h5py.ref_dtype)
        for frame in range(FRAMES):
            mask = np.zeros(SIZES[name][::-1], np.uint8)
            mask[top : bottom + frame, left:right] = frame != 10
            stored = file.create_dataset(f"#refs#/{frame}", data=mask.T, compression="gzip", compression_opts=1)
            references[frame, 0] = stored.ref
    return path


def write_camera_mosh(folder: Path, world: World, subject: int, trial: str, name: str) -> Path:
    """10 Hz, in the camera's frame, upside down."""
    path = folder / f"S{subject}" / f"{trial}_cam{IDS.index(name)}_aligned.pkl"
    shots = [world.shots[subject, trial, name, frame] for frame in range(0, FRAMES, 5)]
    poses = np.stack([shot.pose for shot in shots])
    turn = Rotation.from_matrix(np.diag([1.0, -1, -1]))
    poses[:, :3] = (Rotation.from_rotvec(poses[:, :3]) * turn.inv()).as_rotvec()
    write_python2(path, {"new_poses": poses, "betas": shots[0].betas, "poses": np.zeros((FRAMES, 72)), "gender": "m"})
    return path


def write_world_mosh(folder: Path, world: World, subject: int, trial: str) -> Path:
    """200 Hz, in the world, with a translation in metres."""
    poses, betas, transl = world.poses[subject, trial]
    junk = np.random.default_rng(1).normal(size=(4 * FRAMES, 75))
    junk[::4, :72], junk[::4, 72:] = poses, transl
    path = folder / f"S{subject}" / f"{trial}.pkl"
    write_python2(path, {"poses": junk[:, :72], "trans": junk[:, 72:], "betas": betas})
    return path


def write_annotations(root: Path, world: World, subject: int, names: tuple = IDS, neural: bool = False) -> None:
    """I2L-MeshNet's files. Action 2 is the first trial; frame 5 of action 3 has no SMPL parameters."""
    images, annotations, joints, smpl = [], [], {}, {}
    for action, trial in enumerate(TRIALS[subject], start=2):
        poses, betas, transl = world.poses[subject, trial]
        joints[str(action)] = {"1": {}}
        smpl[str(action)] = {"1": {}}
        rotation, shift_mm = extrinsics(subject, IDS[0])
        for frame in range(FRAMES):
            seen = world.shots[subject, trial, IDS[0], frame].joints
            in_world = (seen * 1000 - shift_mm) @ rotation
            joints[str(action)]["1"][str(frame)] = in_world[list(RIGHT_LEG_FIRST)].tolist()
            if (action, frame) != (3, 5):
                fit = {"pose": poses[frame].tolist(), "shape": betas.tolist(), "trans": transl[frame].tolist()}
                smpl[str(action)]["1"][str(frame)] = fit
        for name in names:
            number = IDS.index(name) + 1
            stem = f"s_{subject:02d}_act_{action:02d}_subact_01_ca_{number:02d}"
            for frame in range(0, FRAMES, 5):
                identity = 1000 * subject + len(images)
                file_name = f"{stem}/{stem}_{frame + 1:06d}.jpg"
                width, height = SIZES[name]
                indices = {"action_idx": action, "subaction_idx": 1, "cam_idx": number, "frame_idx": frame}
                size = {"width": width, "height": height, "subject": subject}
                images.append({"id": identity, "file_name": file_name, **size, **indices})
                annotations.append({"id": 7 * identity, "image_id": identity, "bbox": [400.0, 300.0, 120.0, 360.0]})
                path = root / "images" / file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.full((height, width, 3), gray(frame), np.uint8))
    cameras = {}
    for number, name in enumerate(IDS, start=1):
        rotation, shift_mm = extrinsics(subject, name)
        cameras[number] = {"R": rotation.tolist(), "t": shift_mm.tolist(), "f": FOCAL[name], "c": CENTER[name]}
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    fits = "SMPL_NeuralAnnot" if neural else "smpl_param"
    contents = {
        "data": {"images": images, "annotations": annotations},
        "camera": cameras,
        "joint_3d": joints,
        fits: smpl,
    }
    for kind, content in contents.items():
        (folder / f"Human36M_subject{subject}_{kind}.json").write_text(json.dumps(content))


def spin_arrays(world: World, subject: int, trial: str, name: str) -> dict[str, np.ndarray]:
    """What SPIN's script for training writes of a recording, with the SMPL parameters that it keeps to itself."""
    shots = [world.shots[subject, trial, name, frame] for frame in range(0, FRAMES, 5)]
    stem = f"S{subject}_{trial.replace(' ', '_')}.{name}"
    joints, part = np.zeros((len(shots), 24, 4)), np.zeros((len(shots), 24, 3))
    for row, shot in enumerate(shots):
        joints[row, OF_24, :3], joints[row, OF_24, 3] = shot.joints - shot.joints[0], 1
        part[row, OF_24, :2], part[row, OF_24, 2] = distort(shot.joints, name), 1
    return {
        "imgname": np.array([f"images/{stem}_{frame + 1:06d}.jpg" for frame in range(0, FRAMES, 5)]),
        "center": np.tile((500.0, 480.0), (len(shots), 1)),
        "scale": np.full(len(shots), 1.5),
        "S": joints,
        "part": part,
        "pose": np.stack([shot.pose for shot in shots]),
        "shape": np.stack([shot.betas for shot in shots]),
        "has_smpl": np.array([1, 1, 0]),
    }


def write_images(root: Path, names: list[str], camera: str) -> None:
    for row, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        width, height = SIZES[camera]
        cv2.imwrite(str(root / name), np.full((height, width, 3), 40 + row, np.uint8))


def rows_of(path: Path) -> dict:
    """The rows by trial, camera and frame."""
    store, result = FrameStore(path), {}
    for index in range(len(store)):
        row = store.read(index)
        sequence, frame, _ = row.row_id.split("/")[1:]
        result[sequence, int(frame)] = row, store.read_image(index).pixels
    return result


def shot_of(world: World, sequence: str, frame: int) -> Shot:
    subject, _, rest = sequence[1:].partition("_")
    trial, _, name = rest.rpartition(".")
    return world.shots[int(subject), trial.replace("_", " "), name, frame]


def check_against_truth(row, shot: Shot, body: Path, name: str) -> None:
    """The bound that converters promise is 0.5 px; single precision at 5 m leaves hundredths."""
    numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
    mesh = load_body_model(body, "neutral")(BodyParameters.from_axis_angle(*numbers))
    projected = row.camera.batched().project(mesh.vertices)[0].numpy()
    np.testing.assert_allclose(projected, shot.vertices_px, atol=0.05, err_msg=name)
    turned = Rotation.from_rotvec(row.pose[:3]).as_matrix()
    np.testing.assert_allclose(turned, Rotation.from_rotvec(shot.pose[:3]).as_matrix(), atol=1e-4)
    np.testing.assert_allclose(row.pose[3:], shot.pose[3:], atol=1e-4)
    np.testing.assert_allclose(row.betas, shot.betas, atol=1e-4)
    np.testing.assert_allclose(row.transl, shot.transl, atol=1e-4)
    np.testing.assert_allclose(row.joints_m[:, :3], shot.joints, atol=1e-4)
    assert (row.joints_m[:, 3] == 1).all()


def reasons(summary) -> dict[str, str]:
    return {entry.name: entry.reason for entry in summary.skipped}
