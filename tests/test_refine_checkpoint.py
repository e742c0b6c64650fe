"""`snugfit refine --checkpoint`: what the network is shown, what becomes of its answer, and what is said of bad input.

An oracle in the network's place, which knows the truth and the bodies that were just rendered, proves the way from the
photo to the refined body and back to the next round.
"""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_refinement import BODY, write_tiny_checkpoint
from tiny_store import fill, write_frames
from torch import nn

import commands._network_refiner
from bodies import BodyParameters, InputError, PinholeCamera, load_body_model
from commands._fit_cases import disturb, draw_people
from commands._person_textures import read_textures
from datamodules.crops import ImageCamera
from datamodules.estimates import read_estimate, write_estimate
from datamodules.initial import NoiseScale
from datamodules.mixture import MixtureDataModule
from datamodules.person_layer import body_box_px as layer_box_px
from datamodules.sources import DatasetSource, Loading
from datamodules.store import FrameWriter
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import BOX_MARGIN, SyntheticSettings
from fitting import FitStatus
from lightning_modules.checkpoints import load_refinement
from lightning_modules.photo_rounds import PhotoPeople, body_box_px, predict_displacement, refine_in_rounds
from main import main
from renderers import VertexColors, make_rasterizer, render_maps, unique_vertex_colors
from renderers.correspondence import displacement_supervision

SIZE = (400, 320)
PEOPLE = 2
ABSENT = Path("absent")


@pytest.fixture(scope="module")
def body():
    return load_body_model(BODY)


@pytest.fixture(scope="module")
def truth():
    truth = draw_people(PEOPLE, seed=4)
    truth.transl[:, 0] = torch.tensor([-0.7, 0.7])
    return truth


@pytest.fixture(scope="module")
def initial(truth):
    return disturb(truth, seed=5)


@pytest.fixture(scope="module")
def camera():
    return PinholeCamera.from_image_size(torch.tensor([list(map(float, SIZE))]))


@pytest.fixture(scope="module")
def photo(body, truth, camera):
    """The people, each vertex in the colour of its place on the body."""
    image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    vertices, colors = body(truth).vertices, unique_vertex_colors(body.template)
    fragments = make_rasterizer("cpu")(vertices, body.faces, camera.expand(PEOPLE), SIZE[1], SIZE[0])
    texture = VertexColors(colors.expand(PEOPLE, -1, -1))
    maps = render_maps(fragments, vertices, body.faces, texture, colors)
    for mask, rgb in zip(fragments.mask.numpy(), maps[:, :3].permute(0, 2, 3, 1).numpy(), strict=True):
        image[mask] = np.rint(rgb[mask] * 255)
    return image


@pytest.fixture
def folder(tmp_path, body, truth, initial, camera, photo):
    """two.png, its keypoints, initial estimate and true bodies, and a checkpoint of a network that predicts zero."""
    cv2.imwrite(str(tmp_path / "two.png"), photo[..., ::-1])
    points = camera.expand(PEOPLE).project(body.keypoints(body(truth), "openpose25")).numpy()
    people = [np.concatenate([person, np.full((25, 1), 0.9)], axis=1).flatten().tolist() for person in points]
    text = json.dumps({"people": [{"pose_keypoints_2d": person} for person in people]})
    (tmp_path / "two_keypoints.json").write_text(text)
    write_estimate(tmp_path / "two.npz", initial, camera, body.name)
    write_estimate(tmp_path / "one.npz", initial[[0]], camera, body.name)
    write_tiny_checkpoint(tmp_path / "zero.ckpt")
    return tmp_path


@pytest.fixture
def module(tmp_path):
    return load_refinement(write_tiny_checkpoint(tmp_path / "module.ckpt", crop_px=96))


class Oracle(nn.Module):
    """Answers with the true displacement of the bodies that were rendered last, times `share`."""

    def __init__(self, module, truth: BodyParameters, share: float = 1.0) -> None:
        super().__init__()
        self.prepare, self.truth, self.share = module.prepare, module.body(truth).vertices, share
        self.render, self.shown = module.prepare.render, []
        module.prepare.render = self._render
        module.network = self

    def _render(self, bodies, crop_camera, texture, crop_px):
        rendered = self.render(bodies, crop_camera, texture, crop_px)
        self.last = rendered, crop_camera
        return rendered

    def forward(self, images, renderings):
        self.shown.append((images, renderings))
        rendered, crop_camera = self.last
        bodies = (rendered.vertices, crop_camera), (self.truth, crop_camera)
        answer = displacement_supervision(rendered.fragments, self.prepare.body.faces, *bodies)
        return self.share * answer.displacement_px[:, None]


def people_of(photo, camera, body, *more) -> PhotoPeople:
    colors = unique_vertex_colors(body.template)
    return PhotoPeople(photo, camera.expand(PEOPLE), VertexColors(colors.expand(PEOPLE, -1, -1)), more)


def error_mm(body, parameters: BodyParameters, truth: BodyParameters) -> torch.Tensor:
    """Mean distance of the vertices relative to the pelvis."""
    meshes = [body(each) for each in (parameters, truth)]
    centred = [mesh.vertices - mesh.joints[:, :1] for mesh in meshes]
    return 1000 * torch.linalg.vector_norm(centred[0] - centred[1], dim=-1).mean(dim=1)


def run(folder: Path, *words: object) -> int:
    return main(["refine", str(folder / "two.png"), *map(str, words), "--out", str(folder / "out")])


def report_of(folder: Path, person: int) -> dict:
    return json.loads((folder / "out" / "two" / f"person_{person}" / "report.json").read_text())


# ---- what the network is shown, and what its answer means


def test_photo_and_renderings_lie_on_each_other(module, photo, camera, body, truth):
    oracle = Oracle(module, truth)
    predicted = predict_displacement(module, people_of(photo, camera, body), truth)
    ((images, renderings),) = oracle.shown
    for person in range(PEOPLE):
        # Off the silhouettes, where the photo's own pixels mix the body and what is behind it.
        inner = cv2.erode(predicted.mask[person].numpy().astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert inner.sum() > 200
        apart = (images[person] - renderings[person, 7:10]).abs()[:, torch.from_numpy(inner)]
        # Photo pixels are as large as the crop's: neighbouring colours differ by about a hundredth.
        assert apart.median() < 0.01
        assert apart.quantile(0.95) < 0.05
        # The texture is the same colours, told the other way.
        assert torch.allclose(renderings[person, :3], renderings[person, 7:10])
    assert predicted.mean_length_px().max() < 1e-3


def test_the_network_is_shown_what_training_shows_it(module, body, tmp_path):
    """The same frames of a synthetic set, through the data module and as photos, from the true bodies."""
    path = tmp_path / "set.h5"
    settings = SyntheticSettings(frames=3, subjects=1, split="test", body=BODY, image_size=(160, 140))
    store = synthesize(path, settings, workers=0, quiet=True)
    data = MixtureDataModule(
        test={"set": DatasetSource(path)}, crop_px=module.crop_px, body_model=BODY, loading=Loading(workers=0)
    )
    data.setup("test")
    module.prepare.noise = NoiseScale(root_deg=0, spine_deg=0, limb_deg=0, betas=0, shift_m=0, depth=0, focal=0)
    (batch,) = (module.prepare(sample) for sample in data.test_dataloader())
    rgba = read_textures(path, None).of_photo(ABSENT, 1, body.num_vertices)
    for place in range(len(batch)):
        oracle = Oracle(module, batch.truth[[place]])
        pixels = store.read_image(int(batch.row[place])).pixels
        people = PhotoPeople(pixels, batch.camera[[place]], module.prepare.texture(rgba))
        predicted = predict_displacement(module, people, batch.truth[[place]])
        module.prepare.render = oracle.render
        ((images, renderings),) = oracle.shown
        torch.testing.assert_close(predicted.box_px[0], batch.box_px[place])
        # The corner of the crop, computed in another order, may round to the next colour of a pixel, and a pixel on an
        # edge of the mesh to the next triangle.
        assert ((images[0] - batch.images[place]).abs() > 1.5 / 255).float().mean() < 1e-3
        assert ((renderings[0] - batch.renderings[place]).abs() > 1e-3).float().mean() < 1e-3


def test_boxes_are_those_of_the_synthetic_set(body, truth, camera):
    truth = BodyParameters(truth.rotations, truth.betas, truth.transl + torch.tensor([0.8, 0.0, -1.0]))
    vertices = body(truth).vertices
    boxes = body_box_px(vertices, camera.expand(PEOPLE))
    one = ImageCamera(*(part[0].numpy() for part in (camera.focal_px, camera.center_px, camera.size_px)))
    for person in range(PEOPLE):
        left, top, right, bottom = layer_box_px(vertices[person].numpy(), one)
        expected = [(left + right) / 2, (top + bottom) / 2, BOX_MARGIN * max(right - left, bottom - top)]
        np.testing.assert_allclose(boxes[person].numpy(), expected, rtol=1e-5)
    assert right == SIZE[0]  # one of them leaves the image, or the test shows little


def test_displacement_is_told_in_pixels_of_the_photo(module, photo, camera, body, truth, initial):
    Oracle(module, truth)
    predicted = predict_displacement(module, people_of(photo, camera, body), initial)
    true_px = camera.expand(PEOPLE).project(body(truth).vertices)
    off_px = torch.linalg.vector_norm(predicted.position_px - true_px, dim=-1)
    initial_px = camera.expand(PEOPLE).project(body(initial).vertices)
    moved_px = torch.linalg.vector_norm(initial_px - true_px, dim=-1)
    for person in range(PEOPLE):
        seen = predicted.weight[person] > 0
        # A vertex reads the mean over its triangles, at most as far apart as the displacements of its neighbours.
        assert off_px[person, seen].mean() < 0.15 * moved_px[person, seen].mean()
        length = predicted.mean_length_px()[person]
        assert length == pytest.approx(float(moved_px[person, seen].mean()), rel=0.25)


# ---- rounds


def test_the_true_displacement_leads_to_the_true_body_and_no_round_spoils_it(
    module, photo, camera, body, truth, initial
):
    Oracle(module, truth)
    fit = module.fitting.fit(module.body, module.fitting.load_prior())
    rounds = refine_in_rounds(module, fit, people_of(photo, camera, body), initial, 3)
    errors = torch.stack([error_mm(body, each, truth) for each in (initial, *(done.fit.parameters for done in rounds))])
    assert len(rounds) == 3
    # Depth and the hidden side are not seen; the priors and the first body decide about them.
    assert (errors[1] < 0.5 * errors[0]).all(), errors
    # 2 mm is what the sampling of the displacement by some thousand pixels is worth.
    assert (errors[2:] < errors[1:-1] + 2).all(), errors
    lengths = torch.stack([done.predicted.mean_length_px() for done in rounds])
    assert (lengths[1:] < 0.35 * lengths[0]).all(), lengths
    for done, later in itertools.pairwise(rounds):
        assert torch.equal(later.start.rotations, done.fit.parameters.rotations)


def test_half_the_way_needs_more_rounds(module, photo, camera, body, truth, initial):
    Oracle(module, truth, share=0.5)
    fit = module.fitting.fit(module.body, module.fitting.load_prior())
    rounds = refine_in_rounds(module, fit, people_of(photo, camera, body), initial, 3)
    lengths = torch.stack([done.predicted.mean_length_px() for done in rounds])
    assert (lengths[1:] < 0.75 * lengths[:-1]).all(), lengths


class Broken(nn.Module):
    """Answers for the first person only."""

    def forward(self, images, renderings):
        answer = torch.zeros(len(images), 1, 2, *images.shape[2:])
        answer[1:] = torch.nan
        return answer


def test_who_cannot_be_fitted_keeps_the_body_and_costs_nobody_else(module, photo, camera, body, initial):
    module.network = Broken()
    fit = module.fitting.fit(module.body, None)
    rounds = refine_in_rounds(module, fit, people_of(photo, camera, body), initial, 2)
    for done in rounds:
        assert done.fit.status[0].accepted
        assert done.fit.status[1] is FitStatus.NO_EVIDENCE
        assert torch.equal(done.fit.parameters.rotations[1], initial.rotations[1])
    # Nobody in the picture: one round tells it all.
    away = BodyParameters(initial.rotations, initial.betas, initial.transl + torch.tensor([50.0, 0.0, 0.0]))
    (only,) = refine_in_rounds(module, fit, people_of(photo, camera, body), away, 3)
    assert only.fit.status == (FitStatus.NO_EVIDENCE, FitStatus.NO_EVIDENCE)
    assert only.predicted.mean_length_px().isnan().all()


def test_batch_mates_do_not_matter(module, photo, camera, body, truth, initial):
    many = torch.arange(6) % PEOPLE  # more than go through the network at once
    colors = unique_vertex_colors(body.template).expand(6, -1, -1)
    people = PhotoPeople(photo, camera.expand(6), VertexColors(colors))
    for parameter in module.network.outputs[-1].parameters():
        nn.init.normal_(parameter, std=0.3)
    together = predict_displacement(module, people, initial[many])
    alone = predict_displacement(module, people_of(photo, camera, body), initial)
    assert alone.displacement_px.abs().max() > 0.5
    torch.testing.assert_close(together.displacement_px, alone.displacement_px[many], rtol=1e-3, atol=1e-3)


# ---- the command


def test_refines_without_keypoints_in_rounds_and_tells_of_each(folder, monkeypatch, module, body, truth, initial):
    Oracle(module, truth)
    monkeypatch.setattr(commands._network_refiner, "load_refinement", lambda *_, **__: module)
    assert run(folder, "--checkpoint", "oracle.ckpt", "--init", folder / "two.npz", "--rounds", 2) == 0
    for person in range(PEOPLE):
        place = folder / "out" / "two" / f"person_{person}"
        assert sorted(f.name for f in place.iterdir()) == ["mesh.glb", "overlay.png", "parameters.npz", "report.json"]
        refined = read_estimate(place / "parameters.npz").parameters
        before, after = (error_mm(body, each, truth[[person]]) for each in (initial[[person]], refined))
        assert after < 0.5 * before
        report = report_of(folder, person)
        first, second = report["rounds"]
        assert first["accepted"]
        assert second["predicted_displacement_px"] < first["predicted_displacement_px"]
        assert report["initial_error_px"] == first["initial_error_px"]
        assert report["final_error_px"] == (second if second["accepted"] else first)["final_error_px"]
        assert first["vertices_seen"] > 100
        assert "keypoints" not in report
        picture = cv2.imread(str(place / "overlay.png"))
        assert picture.shape[1] > 3.5 * picture.shape[0] / 2  # four panels in each of two rows


def test_a_network_that_sees_nothing_to_change_leaves_the_body_in_the_picture(folder):
    words = ["--checkpoint", folder / "zero.ckpt", "--init", folder / "two.npz", "--prior", "none"]
    assert run(folder, *words) == 0
    for person in range(PEOPLE):
        report = report_of(folder, person)
        assert report["rounds"][0]["predicted_displacement_px"] == 0
        assert report["initial_error_px"] < 1e-3
        # The shape prior pulls: size and depth trade places, and the picture stays.
        assert report["final_error_px"] < 1.5
        assert report["body_model"] == BODY


def test_keypoints_and_displacements_go_together_with_and_without_a_start(folder, capsys):
    both = ["--checkpoint", folder / "zero.ckpt", "--keypoints", folder / "two_keypoints.json"]
    assert run(folder, *both, "--init", folder / "two.npz", "--solver", "adam") == 0
    started = report_of(folder, 1)
    assert started["rounds"][0]["status"] == "steps_used"
    # The keypoints are the true ones; a network that wants the initial body cannot hold them off.
    errors = started["sure_keypoints_mean_error_px"]
    assert errors["refined"] < 0.8 * errors["initial"]
    assert "from_rest" not in started
    assert run(folder, *both) == 0
    report = report_of(folder, 1)
    assert report["from_rest"]["accepted"]
    assert report["initial_estimate"].startswith("fitted to the keypoints from rest posture")
    assert report["sure_keypoints_mean_error_px"]["refined"] < 10
    assert report["rounds"][0]["accepted"]
    assert "; sure keypoints " in capsys.readouterr().out


def test_what_cannot_be_used_is_one_line_and_exit_2(folder, body, capsys):
    checkpoint, start = ["--checkpoint", folder / "zero.ckpt"], ["--init", folder / "two.npz"]
    (folder / "text.ckpt").write_text("weights")
    np.savez(folder / "short.npz", rgba=np.zeros((7, 4), np.uint8))
    cv2.imwrite(str(folder / "uv.png"), np.zeros((8, 8, 3), np.uint8))
    single = ["--init", folder / "one.npz", "--texture"]
    cases = {
        "text.ckpt: not a checkpoint": ["--checkpoint", folder / "text.ckpt", *start],
        "gone.ckpt: no such checkpoint": ["--checkpoint", folder / "gone.ckpt", *start],
        "without --keypoints the people need an initial estimate, --init": checkpoint,
        "--keypoints: they can be left out with a --checkpoint": start,
        "--rounds 2: is for the network": [*start, "--keypoints", folder / "two_keypoints.json", "--rounds", "2"],
        "uv.png: is for the network": [*start, "--keypoints", folder / "two_keypoints.json", "--texture", "uv.png"],
        "--rounds 0: there is at least one": [*checkpoint, *start, "--rounds", "0"],
        "--body standin: has 13718 vertices": [*checkpoint, *start, "--body", "standin"],
        "gone.npz: no such file": [*checkpoint, *start, "--prior", "gone.npz"],
        "short.npz: is the texture of one person, ": [*checkpoint, *start, "--texture", folder / "short.npz"],
        "short.npz: the textures colour 7 vertices": [*checkpoint, *single, folder / "short.npz"],
        "uv.png: the textures are images in UV space": [*checkpoint, *single, folder / "uv.png"],
        "--subject s: goes with a --texture that": [*checkpoint, *start, "--subject", "s"],
    }
    for message, words in cases.items():
        assert run(folder, *words) == 2, message
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1, error
        assert not (folder / "out").exists(), message


def test_behind_the_camera_is_refused(folder, initial, camera, capsys):
    behind = BodyParameters(initial.rotations, initial.betas, initial.transl * torch.tensor([1.0, 1.0, -1.0]))
    write_estimate(folder / "behind.npz", behind, camera, BODY)
    assert run(folder, "--checkpoint", folder / "zero.ckpt", "--init", folder / "behind.npz") == 2
    assert "behind.npz: person 0 is behind the camera" in capsys.readouterr().err


# ---- textures


def test_the_network_sees_the_texture_that_was_given(folder, monkeypatch, module, body, truth):
    oracle = Oracle(module, truth[[0]])
    monkeypatch.setattr(commands._network_refiner, "load_refinement", lambda *_, **__: module)
    rgba = np.full((body.num_vertices, 4), (200, 100, 50, 255), np.uint8)
    np.savez(folder / "look.npz", rgba=rgba)
    words = ["--checkpoint", "oracle.ckpt", "--init", folder / "one.npz"]
    assert run(folder, *words, "--texture", folder / "look.npz") == 0
    assert run(folder, *words) == 0
    (_, textured), (_, plain) = oracle.shown
    mask = textured[0, 7:10].any(dim=0)
    torch.testing.assert_close(textured[0, :3, mask].mean(dim=1), torch.tensor([200.0, 100.0, 50.0]) / 255)
    # Nobody knows how the person looks: the network is shown what training shows it of uncovered places.
    assert (plain[0, :3] == 0).all()
    assert plain[0, 7:10].any()


def test_textures_are_read_from_pictures_arrays_folders_and_frames_files(tmp_path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 255, (6, 5, 4), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "rgba.png"), rgba[..., [2, 1, 0, 3]])
    cv2.imwrite(str(tmp_path / "rgb.png"), rgba[..., [2, 1, 0]])
    np.savez(tmp_path / "vertices.npz", rgba=rgba[0])
    read = {name: read_textures(tmp_path / name, None).alone for name in ("rgba.png", "rgb.png", "vertices.npz")}
    np.testing.assert_array_equal(read["rgba.png"], rgba)
    np.testing.assert_array_equal(read["rgb.png"][..., :3], rgba[..., :3])
    assert (read["rgb.png"][..., 3] == 255).all()
    np.testing.assert_array_equal(read["vertices.npz"], rgba[0])
    group = tmp_path / "people"
    group.mkdir()
    np.savez(group / "person_1.npz", rgba=rgba[0])
    stacked = read_textures(group, None).of_photo(ABSENT, 3, 9).numpy()
    assert stacked.shape == (3, 5, 4)
    np.testing.assert_array_equal(stacked[1], rgba[0])
    assert not stacked[[0, 2]].any()
    assert read_textures(None, None).of_photo(ABSENT, 2, 9).shape == (2, 9, 4)
    store = write_frames(tmp_path / "frames.h5")
    expected = store.read_texture(store.subjects.index("subject 1")).rgba
    np.testing.assert_array_equal(read_textures(store.path, "subject 1").alone, expected)


def test_textures_that_cannot_be_read_are_named(tmp_path):
    write_frames(tmp_path / "frames.h5")
    with FrameWriter(tmp_path / "none.h5", dataset="x", split="y", body_model=BODY) as writer:
        fill(writer, 1, textures=False)
    np.savez(tmp_path / "float.npz", rgba=np.zeros((5, 4)))
    np.savez(tmp_path / "other.npz", colors=np.zeros((5, 4), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "look.txt").write_text("red")
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((5, 5), np.uint8))
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    np.savez(mixed / "person_0.npz", rgba=np.zeros((5, 4), np.uint8))
    cv2.imwrite(str(mixed / "person_1.png"), np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(InputError, match="mixed: textures in UV space and per vertex cannot be mixed"):
        read_textures(mixed, None).of_photo(ABSENT, 2, 5)
    for name, subject, message in (
        ("frames.h5", None, r"frames\.h5: has several subjects, name one with --subject \(it has subject"),
        ("frames.h5", "nobody", r"frames\.h5: has no subject 'nobody'"),
        ("none.h5", None, r"none\.h5: has no texture of subject 0; `snugfit data texture` makes it"),
        ("gone.h5", None, r"gone\.h5"),
        ("gone.png", None, r"gone\.png: cannot be read"),
        ("gone.npz", None, r"gone\.npz: cannot be read"),
        ("bad.png", None, r"bad\.png: is not an image"),
        ("grey.png", None, r"grey\.png: a texture has 8 bits a channel, in colour"),
        ("float.npz", None, r"float\.npz: 'rgba' is float64 of shape \(5, 4\)"),
        ("other.npz", None, r"other\.npz: is not an \.npz with a plain array 'rgba'"),
        ("look.txt", None, r"look\.txt: a texture is a \.png, an \.npz or a frames file"),
        ("empty", None, r"empty: holds no textures"),
        ("rgb.png", "s", r"--subject s: goes with"),
    ):
        with pytest.raises(InputError, match=message):
            read_textures(tmp_path / name, subject)
