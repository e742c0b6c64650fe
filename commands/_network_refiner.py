"""Refining the people of a photo with a network.

Apart from `_refiners`, and loaded when a checkpoint is given: what it imports takes longer than a fit to keypoints.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from bodies import BodyModel, InputError, load_body_model
from commands._person_textures import PersonTextures
from commands._photos import Photo
from commands._refiners import SOLVERS, Refined, SolverName, from_rest, held, keypoint_targets
from fitting import Smplify
from lightning_modules.checkpoints import load_refinement
from lightning_modules.cli import checkpoint_hyperparameters
from lightning_modules.photo_rounds import PhotoPeople, refine_in_rounds
from lightning_modules.refinement import RefinementModule
from renderers.maps import Texture


@dataclass(frozen=True)
class NetworkRefiner:
    """Fits bodies to displacements that a network predicts, and to keypoints if there are any, in rounds."""

    module: RefinementModule
    """The network."""
    fit: Smplify
    """The fit."""
    textures: PersonTextures
    """How people look."""
    rounds: int
    """How many rounds."""

    def __call__(self, photo: Photo) -> Refined:
        """See `Refiner`."""
        settings, rest = self.module.fitting, None
        if photo.initial is None:
            rest = from_rest(photo, self.fit, settings).fit
            initial = rest.parameters
        else:
            photo.check_in_front(self.fit.body)
            initial = photo.initial
        rgba = self.textures.of_photo(photo.image_path, len(photo), self.fit.body.num_vertices)
        people = PhotoPeople(photo.pixels, photo.camera(), self._texture(rgba), keypoint_targets(photo, settings))
        rounds = refine_in_rounds(self.module, self.fit, people, initial, self.rounds)
        return Refined(self.fit.body, initial, tuple(each.fit for each in rounds), rest, rounds)

    def _texture(self, rgba: UInt8[Tensor, "people ... 4"]) -> Texture:
        try:
            return self.module.prepare.texture(rgba)
        except InputError as error:
            raise InputError(f"{self.textures.path}: {error}") from error


def network_refiner(
    checkpoint: Path,
    textures: PersonTextures,
    rounds: int,
    body: str | None,
    prior: str | None,
    solver: SolverName | None,
    hold: float | None = None,
) -> NetworkRefiner:
    """The network of a checkpoint and its fit, of which prior, solver and `hold` can be others.

    Raises:
        InputError: If the checkpoint, the body model or the prior cannot be loaded, the body model is not the
            checkpoint's, there is no round, or `hold` is negative.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: there is at least one")
    module = load_refinement(checkpoint, body=body, prior=prior)
    if body is not None:
        _check_topology(checkpoint, module.body, body)
    settings = module.fitting if solver is None else replace(module.fitting, solver=SOLVERS[solver])
    settings = settings if hold is None else held(settings, hold)
    return NetworkRefiner(module, settings.fit(module.body, settings.load_prior()), textures, rounds)


def _check_topology(checkpoint: Path, body: BodyModel, name: str) -> None:
    """Refuses a body model with other triangles than that which the network was trained with."""
    trained_with = checkpoint_hyperparameters(checkpoint)["body"]["model"]
    try:
        trained = load_body_model(trained_with)
    except InputError:
        return  # its file is elsewhere, which is what --body is for
    if not torch.equal(trained.faces, body.faces):
        raise InputError(
            f"--body {name}: has {body.num_vertices} vertices and {len(body.faces)} triangles, {trained_with}, which "
            f"{checkpoint} was trained with, {trained.num_vertices} and {len(trained.faces)}"
        )
