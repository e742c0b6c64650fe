"""The two ways in which `snugfit refine` refines the people of a photo: by keypoints alone, or with the network."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from bodies import BodyModel, BodyParameters, InputError, load_body_model
from commands._person_textures import PersonTextures
from commands._photos import Photo
from fitting import (
    FROM_REST_SCHEDULE,
    Adam,
    FitResult,
    FromRest,
    KeypointTargets,
    LevenbergMarquardt,
    Smplify,
    fit_from_rest,
)
from lightning_modules.checkpoints import load_refinement
from lightning_modules.cli import checkpoint_hyperparameters
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.photo_rounds import PhotoPeople, Round, refine_in_rounds
from lightning_modules.refinement import RefinementModule
from renderers.maps import Texture

SolverName = Literal["lm", "adam"]
SOLVERS: Final[dict[SolverName, LevenbergMarquardt | Adam]] = {"lm": LevenbergMarquardt(), "adam": Adam()}
#: What is fitted without a checkpoint, unless the command line says otherwise.
BODY: Final = "standin"
#: How strongly a fit to keypoints holds to an estimate that is given (`TermWeights.initial_pose`). On synthetic people
#: with errors like PARE's on 3DPW, or half of them, and keypoints off by 0.5 to 3.5 % of the person's height, every
#: weight from 10 to 200 left smaller errors than none, and 100 less than 50.
HOLD: Final = 100.0


@dataclass(frozen=True)
class Refined:
    """What became of the people of a photo."""

    body: BodyModel
    """Their body model."""
    initial: BodyParameters
    """What is shown as the initial bodies: the estimate that was given, or what was found without one."""
    fits: tuple[FitResult, ...]
    """The fits, each from what the one before it accepted; the last one's bodies are the refined ones."""
    from_rest: FitResult | None = None
    """Of people without an initial estimate who are refined with the network: how `initial` was fitted."""
    rounds: tuple[Round, ...] = ()
    """What the network said before each of `fits`; none without it."""

    @property
    def parameters(self) -> BodyParameters:
        """The refined bodies; the initial one of whom no fit was accepted."""
        return self.fits[-1].parameters

    def decisive(self, person: int) -> int:
        """The fit that a person's body is from: the last one that was accepted, or the first if none was."""
        accepted = [number for number, fit in enumerate(self.fits) if fit.status[person].accepted]
        return accepted[-1] if accepted else 0


class Refiner(Protocol):
    """A way to refine the people of a photo."""

    def __call__(self, photo: Photo) -> Refined:
        """Refines them.

        Raises:
            InputError: If something that the photo came with cannot be used.
        """
        ...


@dataclass(frozen=True)
class KeypointRefiner:
    """Fits bodies to keypoints, from an initial estimate or from rest."""

    fit: Smplify
    """The fit."""
    settings: FittingSettings
    """Weights of its terms."""

    def __call__(self, photo: Photo) -> Refined:
        """See `Refiner`."""
        if photo.initial is None:
            result = from_rest(photo, self.fit, self.settings)
        else:
            photo.check_in_front(self.fit.body)
            result = FromRest(photo.initial, self.fit(photo.initial, photo.camera(), _targets(photo, self.settings)))
        return Refined(self.fit.body, result.initial, (result.fit,))


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
        people = PhotoPeople(photo.pixels, photo.camera(), self._texture(rgba), _targets(photo, settings))
        rounds = refine_in_rounds(self.module, self.fit, people, initial, self.rounds)
        return Refined(self.fit.body, initial, tuple(each.fit for each in rounds), rest, rounds)

    def _texture(self, rgba: UInt8[Tensor, "people ... 4"]) -> Texture:
        try:
            return self.module.prepare.texture(rgba)
        except InputError as error:
            raise InputError(f"{self.textures.path}: {error}") from error


def from_rest(photo: Photo, fit: Smplify, settings: FittingSettings) -> FromRest:
    """Fits standing bodies at eight headings to the keypoints of people without an initial estimate."""
    (targets,) = _targets(photo, settings)
    return fit_from_rest(fit.with_schedule(FROM_REST_SCHEDULE), photo.camera(), targets)


def keypoint_refiner(
    body: str | None, prior: str | None, solver: SolverName | None, hold: float | None = None
) -> KeypointRefiner:
    """The fit to keypoints alone; it does not hold to a body that was found from rest, whatever `hold`.

    Raises:
        InputError: If the body model or the prior cannot be loaded, or `hold` is negative.
    """
    settings = held(FittingSettings(solver=SOLVERS[solver or "lm"]), HOLD if hold is None else hold)
    settings = settings if prior is None else replace(settings, prior=prior)
    return KeypointRefiner(settings.fit(load_body_model(body or BODY), settings.load_prior()), settings)


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


def held(settings: FittingSettings, hold: float) -> FittingSettings:
    """The same fit, held to its initial estimate with this weight.

    Raises:
        InputError: If it is negative or not finite.
    """
    if not (math.isfinite(hold) and hold >= 0):
        raise InputError(f"--hold {hold:g}: must be 0 or more")
    return replace(settings, weights=replace(settings.weights, initial_pose=hold))


def _targets(photo: Photo, settings: FittingSettings) -> tuple[KeypointTargets, ...]:
    keypoints = photo.fitted_keypoints()
    return () if keypoints is None else (settings.keypoints.targets(keypoints),)


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
