"""Vision transformers of open_clip with a [CLS] token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from open_clip.factory import parse_model_name
from open_clip.pretrained import is_pretrained_cfg
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from metagame.digests import file_digest, folder_digest
from metagame.errors import UserError
from metagame.models.encoder_views import ClassTokenView, open_clip_block
from metagame.models.pretrained import PretrainedTokenizer, settle_device, without_retry_warnings
from metagame.models.vision_language import Text, Tokenizer, VisionLanguage, padded


class OpenCLIP(VisionLanguage):
    """A ViT CLIP of open_clip; its maps equal those of :class:`metagame.models.clip.CLIP` with the same weights.

    Args:
        net: the model, as ``open_clip.create_model`` returns it.
        transform: its preprocessing of an image.
        tokenizer, revision, batch_size: as for :class:`VisionLanguage`.

    Raises:
        UserError: the image encoder has no [CLS] token that becomes the embedding.
    """

    net: open_clip.CLIP | open_clip.CustomTextCLIP

    def __init__(
        self,
        net: open_clip.CLIP | open_clip.CustomTextCLIP,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Tokenizer,
        revision: str,
        batch_size: int = 50,
    ) -> None:
        visual = net.visual
        blocks = list(visual.transformer.resblocks) if isinstance(visual, VisionTransformer) else []
        pooled = bool(blocks) and visual.attn_pool is None and visual.pool_type == "tok"
        if not pooled or not all(type(block) is ResidualAttentionBlock for block in blocks):
            raise UserError(
                f"the image encoder {type(visual).__name__} is not a plain vision transformer with a [CLS] token:"
                " choose a ViT CLIP, or model=siglip2_vitl16 for a SigLIP."
            )

        def project(x: Tensor) -> Tensor:
            x = visual.ln_post(x)
            return x if visual.proj is None else x @ visual.proj

        super().__init__(
            net, ClassTokenView(tuple(map(open_clip_block, blocks)), project), tokenizer, revision, batch_size
        )
        self.transform = transform

    @classmethod
    def load(
        cls, architecture: str, pretrained: str | None = None, device: str | None = None, batch_size: int = 50
    ) -> OpenCLIP:
        """Load a model by open_clip's names, such as ``ViT-B-16-quickgelu`` and ``openai``.

        ``pretrained`` may also be a weights file.

        ``architecture`` may also be ``local-dir:PATH`` or ``hf-hub:ID``, without ``pretrained``.

        Raises:
            UserError: open_clip does not know the names, or the weights cannot be loaded.
        """
        try:
            with without_retry_warnings():
                net, _, transform = open_clip.create_model_and_transforms(
                    architecture, pretrained=pretrained, device=settle_device(device), require_pretrained=True
                )
                words = open_clip.get_tokenizer(architecture)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise UserError(
                f"model.architecture={architecture!r}, model.pretrained={pretrained!r} cannot be loaded ({reason}):"
                " give names that open_clip.list_pretrained() lists, and fetch the weights where there is a network."
            ) from error
        return cls(
            net,
            transform,
            adapt_tokenizer(words, net.context_length),
            _revision(architecture, pretrained, words),
            batch_size,
        )

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.net.logit_scale.exp().squeeze()

    @property
    def patch_size(self) -> int:
        return self.net.visual.patch_size[0]

    @property
    def text_blocks(self) -> Sequence[nn.Module]:
        owner = self._text_owner
        return super().text_blocks if owner is None else list(owner.transformer.resblocks)

    @property
    def text_view(self) -> ClassTokenView:
        owner = self._text_owner
        if owner is None or type(owner.transformer.resblocks[-1]) is not ResidualAttentionBlock:
            return super().text_view

        def project(x: Tensor) -> Tensor:
            x, last = owner.ln_final(x), owner.text_projection
            return last(x) if isinstance(last, nn.Linear) else x if last is None else x @ last

        return ClassTokenView((open_clip_block(owner.transformer.resblocks[-1]),), project)

    @property
    def _text_owner(self) -> open_clip.CLIP | TextTransformer | None:
        """The module of the text encoder's parts; None where it is of another architecture."""
        owner = self.net if isinstance(self.net, open_clip.CLIP) else self.net.text
        return owner if isinstance(owner, open_clip.CLIP | TextTransformer) else None

    def process(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        return self.transform(image)

    def encode_images(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        return self.net.encode_image(pixels)

    def encode_texts(self, texts: Sequence[Text]) -> Float[Tensor, "k E"]:
        ids, attended = padded(texts, self.tokenizer.context, self.tokenizer.pad_id)
        with self._masked(attended.to(self.device)):
            return self.net.encode_text(ids.to(self.device))

    @contextmanager
    def _masked(self, attended: Tensor) -> Generator[None]:
        """Within: tokens that are not attended to are masked beside the causal mask."""
        if attended.all():
            yield
            return
        owner = self.net if isinstance(self.net, open_clip.CLIP) else self.net.text
        before = owner.attn_mask if isinstance(owner, open_clip.CLIP | TextTransformer) else None
        if not isinstance(before, Tensor):
            raise UserError(
                "this text encoder has no causal mask, so its texts cannot be masked as FIxLIP does: choose"
                " another method."
            )
        try:
            absent = torch.zeros(attended.shape, dtype=before.dtype, device=before.device)
            absent.masked_fill_(~attended, float("-inf"))
            n_heads = owner.transformer.resblocks[0].attn.num_heads
            owner.attn_mask = (before + absent[:, None]).repeat_interleave(n_heads, 0)
            yield
        finally:
            owner.attn_mask = before


class SimpleTokenizer:
    """open_clip's own byte-pair tokenizer, see :class:`metagame.models.vision_language.Tokenizer`."""

    pad_id = 0

    def __init__(self, tokenizer: open_clip.SimpleTokenizer, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.encode = cache(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return (self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids).strip()

    def split(self, text: str) -> list[tuple[int, bool]]:
        special = set(self.tokenizer.all_special_ids)
        return [(token, token in special) for token in self.encode(text)]


def adapt_tokenizer(tokenizer: open_clip.SimpleTokenizer | HFTokenizer, context: int) -> Tokenizer:
    """The view of a tokenizer of open_clip, its own or one of transformers."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return SimpleTokenizer(tokenizer, context)
    return PretrainedTokenizer(tokenizer.tokenizer, context, clean=tokenizer.clean_fn)


def _revision(architecture: str, pretrained: str | None, tokenizer: open_clip.SimpleTokenizer | HFTokenizer) -> str:
    """Hashes of the files that were loaded, the hub's commits of them, or open_clip's names and its version."""
    schema, name = parse_model_name(architecture)
    if schema == "local-dir":
        return folder_digest(Path(name))
    loaded: list[str | None]
    if schema == "hf-hub":
        loaded = [_commit(name, "open_clip_config.json")]
    elif is_pretrained_cfg(name.replace("/", "-"), str(pretrained)):
        loaded = [name, pretrained, open_clip.__version__]
    else:
        loaded = [name, file_digest(Path(str(pretrained)))]
    if isinstance(tokenizer, HFTokenizer):  # of a repository of its own
        source = tokenizer.tokenizer.name_or_path
        is_folder = Path(source).is_dir()
        loaded.append(folder_digest(Path(source)) if is_folder else _commit(source, "tokenizer_config.json"))
    return "/".join(each for each in loaded if each is not None)


def _commit(repository: str, file: str) -> str | None:
    """The commit on the hub that a file in the cache is of; None where the repository has no such file."""
    path = try_to_load_from_cache(repository, file)
    return Path(path).parent.name if isinstance(path, str) else None
