"""From a collated sample to what the network needs: initial estimate, renderings, supervision, on the batch's device.

Everything is in float32 whatever the trainer's precision: a camera rounded to bfloat16 is wrong by several pixels.
The body models are kept out of the module tree on purpose: no cast, no averaging and no checkpoint touches them.
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from bodies import BodyMesh, BodyParameters, InputError, PinholeCamera, load_body_model
from bodies.camera import NEAR_PLANE_M
from datamodules.initial import NoiseScale, draw_initial
from datamodules.sample import BodySample, RefinementBatch
from datamodules.store_layout import GENDERS, Gender
from renderers import make_rasterizer
from renderers.correspondence import displacement_supervision, vertex_to_pixel
from renderers.maps import Texture, UvTexture, VertexColors, render_maps, unique_vertex_colors
from renderers.rasterize import Fragments, RasterizerName

#: Colour of what the texture does not cover, in 0..1: no appearance known.
UNCOVERED: Final = 0.0
_KEYPOINTS: Final = "openpose25"
_BYTE: Final = 255.0


@dataclass(frozen=True)
class BodySettings:
    """Which bodies a run is about and how they are drawn."""

    model: str = "standin"
    """Body model of the estimates: standin, standin-tiny, or the path of an SMPL file."""
    true_models: dict[Gender, str] = field(default_factory=dict)
    """Models that the true bodies of some gender refer to, of the same topology (3DPW: male and female); `model` for
    the others."""
    rasterizer: RasterizerName = "auto"
    """Who draws: cpu, nvdiffrast, or whichever fits the device."""


@dataclass(frozen=True)
class RenderedEstimate:
    """Initial bodies and what the crops' cameras see of them."""

    vertices: Float[Tensor, "batch verts 3"]
    """Camera-frame metres."""
    fragments: Fragments
    """Which triangle each crop pixel shows."""
    renderings: Float[Tensor, "batch 10 crop crop"]
    """All channels of `renderers.maps`."""


class BatchPreparation:
    """Makes a `RefinementBatch` of each `BodySample`, on its device.

    Args:
        settings: Bodies and rasterizer.
        noise: Noise of the initial estimates that are drawn from the truth.

    Raises:
        InputError: If a body model cannot be loaded, or has another topology than the others.
    """

    def __init__(self, settings: BodySettings, noise: NoiseScale) -> None:
        self.settings = settings
        self.noise = noise
        self.body = load_body_model(settings.model)
        self._true_bodies = {gender: load_body_model(name) for gender, name in settings.true_models.items()}
        for gender, body in self._true_bodies.items():
            if body.num_vertices != self.body.num_vertices:
                raise InputError(
                    f"the {gender} body model {body.name} has {body.num_vertices} vertices, "
                    f"{self.body.name} has {self.body.num_vertices}"
                )
        self._rasterize = make_rasterizer(settings.rasterizer)
        self._uv: tuple[Tensor, Tensor] | None = None
        if self.body.texture is not None:
            layout = self.body.texture
            self._uv = torch.from_numpy(layout.coordinates), torch.from_numpy(layout.faces)

    def to(self, device: torch.device) -> None:
        """Moves the body models; nothing happens where they are already."""
        if self.body.device != device:
            for body in (self.body, *self._true_bodies.values()):
                body.to(device)
            if self._uv is not None:
                self._uv = self._uv[0].to(device), self._uv[1].to(device)

    @torch.no_grad()
    def __call__(self, sample: BodySample) -> RefinementBatch:
        """Draws and renders the initial estimates of a batch and builds their supervision."""
        self.to(sample.image.device)
        truth, camera, crop_camera = sample.body.parameters(), sample.camera.camera(), sample.crop_camera.camera()
        with torch.autocast(sample.image.device.type, enabled=False):
            true_mesh = self.true_mesh(truth, sample.gender)
            initial = draw_initial(sample, self.noise, self.body, true_mesh.joints[:, 0])
            texture = self.texture(sample.texture)
            rendered = self.render(initial.parameters, initial.crop_camera, texture, sample.image.shape[-1])
            supervision = displacement_supervision(
                rendered.fragments,
                self.body.faces,
                (rendered.vertices, initial.crop_camera),
                (true_mesh.vertices, crop_camera),
            )
        with_body = sample.has_body[:, None, None, None]
        return RefinementBatch(
            images=sample.image.float() / _BYTE,
            renderings=rendered.renderings,
            fragments=rendered.fragments,
            mask=supervision.mask,
            displacement_px=supervision.displacement_px.where(with_body, 0.0),
            initial=initial.parameters,
            initial_camera=initial.camera,
            initial_crop_camera=initial.crop_camera,
            truth=truth,
            has_body=sample.has_body,
            camera=camera,
            crop_camera=crop_camera,
            box_px=sample.box_px,
            gender=sample.gender,
            initial_kind=sample.initial.kind,
            detected_keypoints_px=sample.detected_keypoints_px,
            true_keypoints_px=self._true_keypoints(sample, true_mesh, camera),
            joints_m=sample.joints_m,
            surface=sample.surface,
            dataset=sample.dataset,
            sequence=sample.sequence,
            row=sample.row,
        )

    def _true_keypoints(
        self, sample: BodySample, true_mesh: BodyMesh, camera: PinholeCamera
    ) -> Float[Tensor, "batch 25 3"]:
        """The annotated keypoints; of samples without any, those of the true body, as 3DPW and RICH need it."""
        stored = sample.true_keypoints_px
        if _KEYPOINTS not in self.body.keypoint_sets:
            return stored
        points = self.body.keypoints(true_mesh, _KEYPOINTS)
        known = (points[..., 2:] >= NEAR_PLANE_M) & sample.has_body[:, None, None]
        sure = torch.ones_like(points[..., :1])
        projected = torch.cat([camera.project(points), sure], dim=-1).where(known, 0.0)
        annotated = (stored[..., 2] > 0).any(dim=1)
        return stored.where(annotated[:, None, None], projected)

    def true_mesh(self, truth: BodyParameters, gender: Int64[Tensor, " batch"]) -> BodyMesh:
        """The true bodies, each by the model of its gender."""
        mesh = self.body(truth)
        vertices, joints = mesh.vertices, mesh.joints
        for name, body in self._true_bodies.items():
            other, chosen = body(truth), (gender == GENDERS.index(name))[:, None, None]
            vertices, joints = torch.where(chosen, other.vertices, vertices), torch.where(chosen, other.joints, joints)
        return BodyMesh(vertices, joints)

    @torch.no_grad()
    def true_surface(
        self, batch: RefinementBatch, side: int
    ) -> tuple[Bool[Tensor, "batch side side"], Float[Tensor, "batch 3 side side"]]:
        """Which pixels of a `side` x `side` image of the crop show the true body, and its unique vertex colours there.

        Of samples without a true body no pixel does.
        """
        camera, zoom = batch.crop_camera, side / batch.images.shape[-1]
        small = PinholeCamera(camera.focal_px * zoom, camera.center_px * zoom, camera.size_px * zoom)
        with torch.autocast(batch.images.device.type, enabled=False):
            vertices, faces = self.true_mesh(batch.truth, batch.gender).vertices, self.body.faces
            fragments = self._rasterize(vertices, faces, small, side, side)
            colors = unique_vertex_colors(self.body.template).expand(len(vertices), -1, -1)
            shown = vertex_to_pixel(fragments, faces, colors).permute(0, 3, 1, 2)
        return fragments.mask & batch.has_body[:, None, None], shown

    def render(
        self, bodies: BodyParameters, crop_camera: PinholeCamera, texture: Texture, crop_px: int
    ) -> RenderedEstimate:
        """Draws bodies into square crops."""
        vertices, faces = self.body(bodies).vertices, self.body.faces
        fragments = self._rasterize(vertices, faces, crop_camera, crop_px, crop_px)
        colors = unique_vertex_colors(self.body.template)
        return RenderedEstimate(vertices, fragments, render_maps(fragments, vertices, faces, texture, colors))

    def texture(self, rgba: UInt8[Tensor, "batch ... 4"]) -> Texture:
        """Stored textures, (B, H, W, 4) in UV space or (B, V, 4) per vertex, as appearance of the body.

        Raises:
            InputError: If they do not fit the body model.
        """
        colour = rgba[..., :3].float() / _BYTE
        colour = torch.where(rgba[..., 3:] > 0, colour, torch.full_like(colour, UNCOVERED))
        return self._vertex_colors(colour) if rgba.ndim == 3 else self._uv_texture(colour)

    def _vertex_colors(self, colour: Tensor) -> VertexColors:
        if colour.shape[1] != self.body.num_vertices:
            raise InputError(
                f"the textures colour {colour.shape[1]} vertices, {self.body.name} has {self.body.num_vertices}"
            )
        return VertexColors(colour)

    def _uv_texture(self, colour: Tensor) -> UvTexture:
        if self._uv is None:
            raise InputError(f"the textures are images in UV space, and the body model {self.body.name} has no UV map")
        return UvTexture(colour.permute(0, 3, 1, 2), *self._uv)
