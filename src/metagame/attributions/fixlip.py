"""FIxLIP (Baniecki et al., 2025): faithful interactions of image patches and text, by weighted least squares.

Players are all patches and all pieces of the text. An absent patch has normalised pixels 0, an absent piece is masked
by attention. The logit is a product of an image and a text embedding, so each distinct mask of either side is encoded
once, whatever it is combined with.
"""

from __future__ import annotations

from functools import cache, partial
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from metagame.contracts import Explanation, Method
from metagame.errors import UserError
from metagame.games import Progress
from metagame.meta import MetaAttributions
from metagame.models.vision_language import ImageText, masked_pixels

Interactions = Literal["cross", "all"]
"""``cross``: the pairs of a patch and a piece of text are fitted; ``all``: every pair."""
MOST_PATCHES_OF_ALL = 64
MOST_PIECES = 10


class Solver(Protocol):
    """Turns the logits of chosen masks into interactions.

    Attributes:
        image_masks: masks of P patches, ``(a, P)``.
        text_masks: masks of m pieces of text, ``(b, m)``.
        error_note: why there are no standard errors; empty if there are any.
    """

    image_masks: Bool[np.ndarray, "a P"]
    text_masks: Bool[np.ndarray, "b m"]
    error_note: str = ""

    def interactions(
        self, logits: Float[np.ndarray, "a b"]
    ) -> tuple[Float[np.ndarray, "P m"], Float[np.ndarray, "P m"] | None]:
        """The interaction of each patch with each piece of the text, and its standard error.

        Args:
            logits: of every image mask with every text mask.
        """
        ...


@runtime_checkable
class Design(Protocol):
    """Chooses the masks for P patches and m pieces of text."""

    def solver(self, n_patches: int, n_pieces: int, interactions: Interactions) -> Solver:
        """What to encode, and how to solve for the interactions.

        Raises:
            UserError: the budget is too small, or the text has too many pieces.
        """
        ...


def check_pieces(n_pieces: int) -> None:
    """Raise UserError where a text has too many pieces to encode all its masks."""
    if n_pieces > MOST_PIECES:
        raise UserError(f"{n_pieces} pieces of text have too many masks to combine: choose design=SampledCoalitions.")


class FIxLIP(Method[ImageText]):
    """Faithful Shapley interactions of patches and text in the model's logit, ``(P, m)``; signed, in its units.

    The design is drawn once for all images, so all images share its noise.

    Args:
        design: which masks to encode, and how to solve for the interactions.
        interactions: ``cross`` fits only pairs of a patch and a piece of text, ``all`` fits every pair, and ``auto``
            fits every pair if there are at most 64 patches.
        batch_size: number of masked images to encode at once.
    """

    input_type = ImageText
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    def __init__(
        self, design: Design, interactions: Interactions | Literal["auto"] = "cross", batch_size: int = 256
    ) -> None:
        choices = (*get_args(Interactions), "auto")
        if interactions not in choices:
            raise UserError(f"interactions={interactions!r} is unknown: choose one of {', '.join(choices)}.")
        self.design = design
        self.interactions = interactions
        self.batch_size = batch_size
        self.solver = cache(self._make_solver)

    @torch.no_grad()
    def explain(self, bound: ImageText, progress: Progress | None = None) -> Explanation:
        """The interaction of every patch with every piece of the text.

        Raises:
            UserError: the design does not fit the image and the text, or does not determine their interactions.
        """
        solver = self.solver(bound.model.n_patches(bound.image.pixels), bound.n_players)
        key = ("fixlip", solver.image_masks.tobytes())
        images = bound.image.keep(key, partial(self._image_embeddings, bound, solver.image_masks, progress))
        texts = bound.masked_texts(solver.text_masks)
        logits = (images @ texts.T * bound.model.logit_scale).cpu().double().numpy()
        values, standard_error = solver.interactions(logits)
        meta = MetaAttributions(
            values,
            standard_error=standard_error,
            error_note=solver.error_note,
            endogenous=False,
            players=bound.players,
            targets=bound.targets,
            grid=bound.grid,
        )
        return Explanation(bound.players, bound.targets, bound.grid, meta=meta)

    def _make_solver(self, n_patches: int, n_pieces: int) -> Solver:
        if self.interactions != "auto":
            return self.design.solver(n_patches, n_pieces, self.interactions)
        return self.design.solver(n_patches, n_pieces, "all" if n_patches <= MOST_PATCHES_OF_ALL else "cross")

    def _image_embeddings(
        self, bound: ImageText, masks: Bool[np.ndarray, "a P"], progress: Progress | None
    ) -> Float[Tensor, "a E"]:
        """Unit embeddings of the image under each mask."""
        embeddings = []
        for start in range(0, len(masks), self.batch_size):
            part = torch.as_tensor(masks[start : start + self.batch_size])
            pixels = masked_pixels(bound.image.pixels, part, bound.model.patch_size)
            embeddings.append(bound.model.encode_images(pixels))
            if progress is not None:
                progress(min(start + self.batch_size, len(masks)), len(masks))
        return normalize(torch.cat(embeddings), dim=-1)
