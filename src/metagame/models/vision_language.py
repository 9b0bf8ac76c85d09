"""Two-tower encoders of an image and a text: pieces of the text are players, patches of the image are targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from metagame import contracts
from metagame.contracts import BoundInput, Failure, Model
from metagame.errors import UserError
from metagame.images import to_rgb
from metagame.models.characters import UNFINISHED, token_players
from metagame.models.encoder_views import ClassTokenView, EncoderView, embed_from
from metagame.models.layers import ForwardPassEnds, refuse_half_precision

TEXT_BATCH = 16
"""Texts go through the encoder in batches of just this size, so that an embedding does not depend on its company."""

SAME = 1e-3
"""How far two unit embeddings of a text may lie apart that are called the same; another token's is far beyond."""

ROUNDING = 1
"""Of 255 levels, those by which ways to resize an image differ; cropping a hundredth of it makes more."""

SEEDED, SEEDED_GPU = 1 << 14, 1 << 17
"""The most tokens, of all images, texts and blocks, to which texts are propagated back at once: bounds the memory."""

SEEDS = 16
"""So many texts of each image should have room in it."""

ALONE = 64
"""The most texts whose maps are made at once where those of an image are made alone."""

AHEAD = 4
"""So many threads read the next images at most."""

MOST_TEXTS = 16384
"""So many embeddings of texts a model keeps."""

MOST_KEPT = 256
"""So many other results a model keeps, such as those of the last block of the text encoder for a text."""

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Text:
    """Token ids of a text with the tokenizer's special tokens; ``attended`` is False where a token is masked."""

    ids: tuple[int, ...]
    attended: tuple[bool, ...]


@runtime_checkable
class Tokenizer(Protocol):
    """What turns a text into ids, with special tokens.

    ``encode`` gives ids; ``split`` the ids with, for each, whether it is a special token; ``decode`` the text of ids
    without special tokens.
    """

    @property
    def context(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def encode(self) -> Callable[[str], tuple[int, ...]]: ...

    def split(self, text: str) -> list[tuple[int, bool]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Players(ABC):
    """Pieces of a text that are present or absent.

    Attributes:
        labels: a piece each.
    """

    labels: tuple[str, ...]

    @abstractmethod
    def dropped(self, present: Sequence[bool]) -> Text:
        """The text without its absent pieces."""

    @abstractmethod
    def masked(self, present: Sequence[bool]) -> Text:
        """The whole text; absent pieces are not attended to, special tokens are."""


class WordPlayers(Players):
    """Words, joined by spaces; the rest is tokenized anew when some are dropped."""

    def __init__(self, tokenizer: Tokenizer, words: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.labels = tuple(words)

    def dropped(self, present: Sequence[bool]) -> Text:
        ids = self.tokenizer.encode(" ".join(word for word, here in zip(self.labels, present, strict=True) if here))
        return Text(ids, (True,) * len(ids))

    def masked(self, present: Sequence[bool]) -> Text:
        here = iter([flag for flag, count in zip(present, self._counts, strict=True) for _ in range(count)])
        pieces = self.tokenizer.split(" ".join(self.labels))
        return Text(tuple(i for i, _ in pieces), tuple(special or next(here) for _, special in pieces))

    @cached_property
    def _counts(self) -> list[int]:
        """How many tokens each word has in the text, which are not always those that it has alone.

        Raises:
            UserError: a token belongs to two words.
        """
        starts = [self._tokens(" ".join(self.labels[:count])) for count in range(len(self.labels) + 1)]
        whole, counts = starts[-1], [len(after) - len(before) for before, after in pairwise(starts)]
        if min(counts, default=1) < 1 or any(start != whole[: len(start)] for start in starts):
            raise UserError(
                f"the words of {' '.join(self.labels)!r} share tokens, so one cannot be masked without the other:"
                " choose a model whose words have their own tokens."
            )
        return counts

    def _tokens(self, text: str) -> list[int]:
        return [token for token, special in self.tokenizer.split(text) if not special] if text else []


class TokenPlayers(Players):
    """The tokens of a caption, without special ones and white space, which always stay.

    Differs from the paper's text: tokens that are bytes of one character are one player, unless ``whole_characters`` is
    False; its captions have none.
    """

    def __init__(self, tokenizer: Tokenizer, caption: str, *, whole_characters: bool = True) -> None:
        self.tokenizer = tokenizer
        self._pieces = tokenizer.split(caption)
        ids = [token for token, _ in self._pieces]
        may_play = [not special for _, special in self._pieces]
        self._owners, self.labels = token_players(ids, may_play, tokenizer.decode, whole_characters=whole_characters)
        if not self.labels:
            raise UserError(f"caption {caption!r} has no tokens: give at least one word.")

    def dropped(self, present: Sequence[bool]) -> Text:
        whole = self.masked(present)
        ids = tuple(i for i, attended in zip(whole.ids, whole.attended, strict=True) if attended)
        return Text(ids, (True,) * len(ids))

    def masked(self, present: Sequence[bool]) -> Text:
        attended = tuple(owner is None or present[owner] for owner in self._owners)
        return Text(tuple(token for token, _ in self._pieces), attended)


class RetokenizedPlayers(TokenPlayers):
    """The tokens of a caption; what is left of it without some is read as a text, and tokenized anew.

    Where "hydr" is absent from "dog", "hydr", "ant", the text may be "dogant", in other tokens than "dog", "ant".

    Raises:
        UserError: the caption is not put together again from its tokens, or one of them is a part of a letter.
    """

    def __init__(self, tokenizer: Tokenizer, caption: str, *, whole_characters: bool = True) -> None:
        super().__init__(tokenizer, caption, whole_characters=whole_characters)
        whole = [True] * len(self.labels)
        of_players: list[list[int]] = [[] for _ in self.labels]
        for (token, _), owner in zip(self._pieces, self._owners, strict=True):
            if owner is not None:
                of_players[owner].append(token)
        parts = any(UNFINISHED in tokenizer.decode(ids) for ids in of_players)
        if parts or self.dropped(whole) != super().dropped(whole):
            raise UserError(f"caption {caption!r} cannot be reconstructed from its tokens: choose absent=dropped.")

    def dropped(self, present: Sequence[bool]) -> Text:
        pieces = zip(self._pieces, self.masked(present).attended, strict=True)
        kept = [token for (token, special), here in pieces if here and not special]
        ids = self.tokenizer.encode(self.tokenizer.decode(kept))
        return Text(ids, (True,) * len(ids))


@runtime_checkable
class Sample(contracts.Sample, Protocol):
    """An image, and texts about it, each a question of its own."""

    def image(self) -> Image.Image:
        """The picture; called in one of several threads, so two samples must not share an open file or the like."""
        ...

    def texts(self, tokenizer: Tokenizer) -> Mapping[str, Players]:
        """The pieces of each text by its name."""
        ...


@dataclass(frozen=True)
class ImageText(BoundInput):
    """An image and the players of a text, before a model; patches of the image are the targets.

    Attributes:
        model: the encoder.
        image: encoded when first needed, with its batch, and shared by all texts about it.
        pieces: of the text, which play.
        picture: the image as the model is given it, unless that is the whole of a square image.
    """

    model: VisionLanguage
    image: EncodedImage
    pieces: Players
    picture: UInt8[np.ndarray, "H W 3"] | None = None

    @property
    def players(self) -> tuple[str, ...]:
        return self.pieces.labels

    @property
    def targets(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.grid(self.image.pixels)

    @property
    def n_players(self) -> int:
        return len(self.players)

    def maps(
        self,
        method: Hashable,
        coalitions: Bool[np.ndarray, "k n"],
        attribute: Callable[[Tensor], Tensor],
        company: Company | None = None,
    ) -> Float[Tensor, "k P"]:
        """The map of the text of each coalition: absent pieces are dropped; a text has one map, whoever asks for it.

        Args:
            method: names what the maps are made by.
            coalitions: of the players.
            attribute: unit embeddings of texts ``(k, E)`` -> maps of each image of the company ``(k, b, P)``; it is
                given those not yet known.
            company: the images whose maps are made together; if None, this one alone.

        Returns:
            The maps, on the CPU.
        """
        if company is None:
            company = Company(self.image.batch, self.image.row, self.image.row + 1, ALONE)
        texts = [self.pieces.dropped(row) for row in coalitions.tolist()]
        known = self.image.keep(("maps", method), dict)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(unknown), company.n_texts):
            part = unknown[start : start + company.n_texts]
            made = attribute(self.model.embed(part)).cpu()  # one transfer, not one for each text and image
            for place, image in company.images.items():
                image.keep(("maps", method), dict).update(zip(part, made[:, place].clone(), strict=True))
        return torch.stack([known[text] for text in texts])

    @torch.no_grad()
    def masked_images(self, coalitions: Bool[np.ndarray, "k P"]) -> Float[Tensor, "k E"]:
        """Unit embeddings of the image with the patches of each coalition; an absent patch has normalised pixels 0.

        A coalition has one embedding, whatever text and method asks for it.
        """
        known = self.image.keep("masked images", dict)
        masks = {row.tobytes(): row for row in coalitions}
        unknown = {name: mask for name, mask in masks.items() if name not in known}
        if unknown:
            rows = torch.as_tensor(np.array(list(unknown.values())))
            pixels = masked_pixels(self.image.pixels, rows, self.model.patch_size)
            known |= zip(unknown, normalize(self.model.encode_images(pixels), dim=-1), strict=True)
        return torch.stack([known[row.tobytes()] for row in coalitions])

    def dropped_texts(self, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k E"]:
        """Unit embeddings of the text of each coalition: absent pieces are dropped."""
        return self.model.embed([self.pieces.dropped(row) for row in coalitions.tolist()])

    def masked_texts(self, coalitions: Bool[np.ndarray, "k n"]) -> Float[Tensor, "k E"]:
        """Unit embeddings of the text of each coalition: absent pieces are masked by attention."""
        return self.model.embed([self.pieces.masked(row) for row in coalitions.tolist()])


@dataclass(frozen=True)
class ImageBatch:
    """Images that go through the encoder together, when the first of them is asked for.

    ``asked`` is the same for images about which the same texts are asked. The images that are in use refer to their
    batch and to their companies, and these to the batch; the batch knows both only as long as they are in use.
    """

    model: VisionLanguage
    pixels: Float[Tensor, "B 3 H W"]
    asked: Sequence[int]
    images: MutableMapping[int, EncodedImage] = field(default_factory=WeakValueDictionary)
    companies: MutableMapping[tuple[int, int, int], Company] = field(default_factory=WeakValueDictionary)
    _inputs: dict[int, Tensor] = field(default_factory=dict)

    def image(self, row: int) -> EncodedImage:
        """The image in a row, which is then in use."""
        return self.images.setdefault(row, EncodedImage(self, row))

    def block_input(self, layer: int) -> Float[Tensor, "B T D"]:
        """What block ``layer`` is given; one forward pass for the batch."""
        layer %= len(self.model.encoder_view.blocks)
        if layer not in self._inputs:
            self._inputs[layer] = self.model.block_input(self.pixels, layer)
        return self._inputs[layer]


@dataclass(frozen=True)
class EncodedImage:
    """One image of a batch."""

    batch: ImageBatch
    row: int
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def pixels(self) -> Float[Tensor, "3 H W"]:
        return self.batch.pixels[self.row]

    def block_input(self, layer: int) -> Float[Tensor, "1 T D"]:
        """What block ``layer`` is given of this image."""
        return self.batch.block_input(layer)[self.row : self.row + 1]

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """``make()``, once for all texts about this image."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def company(self, n_blocks: int) -> Company:
        """This image and those beside it in its batch about which the same texts are asked, not too many.

        The same ones whichever of them are still to be explained, so that the last digits do not depend on that.

        Args:
            n_blocks: number of blocks through which texts are propagated back.
        """
        batch, row = self.batch, self.row
        n_tokens = n_blocks * batch.model.n_patches(self.pixels)
        seeded = SEEDED if batch.model.device == "cpu" else SEEDED_GPU
        most, asked = max(1, seeded // (SEEDS * n_tokens)), batch.asked
        start = next((before + 1 for before in range(row, -1, -1) if asked[before] != asked[row]), 0)
        end = next((behind for behind in range(row, len(asked)) if asked[behind] != asked[row]), len(asked))
        first = row - (row - start) % most
        stop = min(first + most, end)
        key = first, stop, max(1, seeded // (n_tokens * (stop - first)))
        found = batch.companies.setdefault(key, Company(batch, *key))
        return self.keep(("company", key), lambda: found)  # so that it is in use as long as one of its images


@dataclass(frozen=True)
class Company:
    """Images of a batch, from row ``first`` to before ``stop``, of which the maps of ``n_texts`` are made at once."""

    batch: ImageBatch
    first: int
    stop: int
    n_texts: int
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def images(self) -> dict[int, EncodedImage]:
        """Those that are in use, by their place in the company."""
        rows = range(self.first, self.stop)
        found = {place: self.batch.images.get(row) for place, row in enumerate(rows)}
        return {place: image for place, image in found.items() if image is not None}

    def block_input(self, layer: int) -> Float[Tensor, "b T D"]:
        """What block ``layer`` is given of these images."""
        return self.batch.block_input(layer)[self.first : self.stop]

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """``make()``, once for all texts about these images."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass(frozen=True)
class _Read:
    """A sample's image as the model takes it, and its size before, in pixels."""

    size: tuple[int, int]
    pixels: Float[Tensor, "3 H W"]


_Reading = dict[int, tuple[Sample, "Future[_Read | Failure]"]]
"""Samples and their images that threads are reading, by the identity of the sample."""


def _cancel(reading: _Reading) -> None:
    """Begin to read no more of them."""
    for _, image in reading.values():
        image.cancel()


@dataclass(frozen=True)
class _Opened:
    """A sample's image as the model takes it, the texts about it, and the picture of :class:`ImageText`."""

    pixels: Float[Tensor, "3 H W"]
    texts: Mapping[str, Players]
    picture: UInt8[np.ndarray, "h w 3"] | None


class VisionLanguage(Model[Sample, ImageText], ABC):
    """Adapter of a two-tower encoder: score = cosine of image and text embedding, logit = scale x score + bias.

    Args:
        net: the model; it is put into evaluation mode without gradients of its weights, and not changed otherwise.
        encoder_view: a view of the last blocks of its image encoder.
        tokenizer: the tokenizer of its texts.
        revision: identifies its weights.
        batch_size: the maximum number of images to encode together.
    """

    sample_type = Sample
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    def __init__(
        self, net: nn.Module, encoder_view: EncoderView, tokenizer: Tokenizer, revision: str, batch_size: int
    ) -> None:
        refuse_half_precision(net)
        self.net = net.eval().requires_grad_(False)
        self.device = str(next(net.parameters()).device)
        self.encoder_view = encoder_view
        self.tokenizer = tokenizer
        self.revision = revision
        self.batch_size = batch_size
        self.text_batch = TEXT_BATCH
        self._embeddings: dict[Text, Tensor] = {}
        self._kept: dict[Hashable, Any] = {}
        self._ahead: _Reading = {}

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    @property
    @abstractmethod
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor by which the model multiplies the cosine."""

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Side length of a patch in pixels."""

    def grid(self, pixels: Float[Tensor, "3 H W"]) -> tuple[int, int]:
        """Number of rows and columns of the patches that an image is cut into."""
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def n_patches(self, pixels: Float[Tensor, "3 H W"]) -> int:
        """Number of patches that an image is cut into."""
        rows, columns = self.grid(pixels)
        return rows * columns

    @abstractmethod
    def process(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        """The model's own preprocessing of an RGB image."""

    @abstractmethod
    def encode_images(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """The model's own image embeddings, not normalised."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[Text]) -> Float[Tensor, "k E"]:
        """The model's own text embeddings, not normalised, of texts with the same padded length."""

    @property
    def text_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the text encoder, in order; the input of each is ``(k, T, D)``.

        Raises:
            UserError: this adapter does not define them.
        """
        raise UserError(
            f"attribution=exclip needs the blocks of the text encoder, which {type(self).__name__} does not"
            " define: define text_blocks in the model's adapter."
        )

    @property
    def text_view(self) -> ClassTokenView:
        """The last block of the text encoder; the token at :meth:`place_read` takes the place of [CLS].

        Raises:
            UserError: this adapter does not define it.
        """
        raise UserError(
            f"nothing is known of the last block of {type(self).__name__}'s text encoder, where words are attributed:"
            " define text_view in the model's adapter."
        )

    def place_read(self, text: Text) -> int:
        """Position of the token that becomes the embedding of a text: the end token, its last one."""
        return len(text.ids) - 1

    def padded_length(self, text: Text) -> int:
        """The number of tokens to which a text is padded."""
        return self.tokenizer.context

    def read_ahead(self, samples: Sequence[Sample]) -> None:
        """On a GPU only: where the processor computes, too, this would take a core from what it may use."""
        _cancel(self._ahead)
        # few threads: more would keep the one that explains from its turn
        n_threads = min(AHEAD, torch.get_num_threads())
        self._ahead = {} if self.device == "cpu" else self._reading(samples, n_threads)

    def prepare(self, samples: Sequence[Sample]) -> list[Mapping[str, ImageText] | Failure]:
        """An input for each text about each sample's image; the images go through the encoder in one batch."""
        opened = self._open_all(samples)
        pixels = [each.pixels for each in opened if isinstance(each, _Opened)]
        if not pixels:
            return [each for each in opened if isinstance(each, Failure)]
        asked = [
            tuple(players.dropped([True] * len(players.labels)) for players in each.texts.values())
            for each in opened
            if isinstance(each, _Opened)
        ]
        numbers = {texts: number for number, texts in enumerate(dict.fromkeys(asked))}
        batch = ImageBatch(self, torch.stack(pixels).to(self.device, self.dtype), [numbers[texts] for texts in asked])
        images = (batch.image(row) for row in range(len(asked)))
        return [each if isinstance(each, Failure) else self._bind(next(images), each) for each in opened]

    def _open_all(self, samples: Sequence[Sample]) -> list[_Opened | Failure]:
        """Images are read by several threads: a GPU encodes one in less time than a core needs to read it."""
        ahead, self._ahead = self._ahead, {}
        reading = self._reading([each for each in samples if id(each) not in ahead], torch.get_num_threads()) | ahead
        try:
            # only images are read by threads: tokenizers refuse to be used by two
            return [self._open(sample, reading[id(sample)][1].result()) for sample in samples]
        finally:
            _cancel(reading)

    def _reading(self, samples: Sequence[Sample], n_threads: int) -> _Reading:
        threads = ThreadPoolExecutor(n_threads)
        found = {id(sample): (sample, threads.submit(self._read, sample)) for sample in samples}
        threads.shutdown(wait=False)  # they end when all images are read
        return found

    def _read(self, sample: Sample) -> _Read | Failure:
        try:
            image = to_rgb(sample.image(), sample.id)
            return _Read(image.size, self.process(image))
        except Exception as error:
            return Failure(error)

    def _open(self, sample: Sample, image: _Read | Failure) -> _Opened | Failure:
        try:
            texts = sample.texts(self.tokenizer)
            for each in texts.values():
                self._check_length(each.dropped([True] * len(each.labels)))
            if isinstance(image, Failure):
                return image
            width, height = image.size
            whole = width == height and self.keep(("shows all", width), lambda: self._shows_all(width))
            return _Opened(image.pixels, texts, None if whole else self._picture(image.pixels))
        except Exception as error:
            return Failure(error)

    def _bind(self, image: EncodedImage, opened: _Opened) -> dict[str, ImageText]:
        return {name: ImageText(self, image, each, opened.picture) for name, each in opened.texts.items()}

    def _shows_all(self, side: int) -> bool:
        """Whether the processor crops nothing from a square image of this side, and puts nothing around it.

        If so, colours that rise from edge to edge still do, up to :data:`ROUNDING`. Pixels behind the last whole patch
        are cropped, too, since no patch has them.
        """
        rising = np.round(np.linspace(0, 255, 2 * side + 1)[1::2]).astype(np.uint8)
        image = Image.fromarray(np.stack(np.broadcast_arrays(rising, rising[:, None], np.uint8(0)), -1))
        shown = self._picture(self.process(image))
        resized = image.resize(shown.shape[1::-1], Image.Resampling.BICUBIC)
        return bool(np.abs(shown - np.asarray(resized, float)).max() <= ROUNDING)

    def _picture(self, pixels: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "h w 3"]:
        """What the processor cut an image to, before it brought each channel to the model's range, in whole patches."""
        black, white = (self.process(Image.new("RGB", (64, 64), color)) for color in ("black", "white"))
        share = ((pixels - black) / (white - black)).clamp(0, 1)
        height, width = (length - length % self.patch_size for length in pixels.shape[-2:])
        return (255 * share[:, :height, :width]).round().to(torch.uint8).permute(1, 2, 0).numpy()

    @torch.no_grad()
    def block_input(self, pixels: Float[Tensor, "B 3 H W"], layer: int) -> Float[Tensor, "B T D"]:
        """The input of block ``layer`` of the image encoder, from one forward pass up to this block.

        Raises:
            UserError: the device runs out of memory.
        """
        try:
            return input_of(self.encoder_view.blocks[layer].module, lambda: self.encode_images(pixels))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{len(pixels)} images at once exceed the device's memory: lower model.batch_size."
            ) from error

    def blank_input(self, pixels: Float[Tensor, "3 H W"], layer: int) -> Float[Tensor, "1 T D"]:
        """The input of block ``layer`` for an image of this size whose normalised pixels are 0; computed once."""
        return self.keep(
            ("blank", layer, pixels.shape), lambda: self.block_input(torch.zeros_like(pixels)[None], layer)
        )

    @torch.no_grad()
    def text_block_input(self, texts: Sequence[Text], layer: int) -> Float[Tensor, "k T D"]:
        """The input of block ``layer`` of the text encoder for texts with the same padded length."""
        return input_of(self.text_blocks[layer], lambda: self.encode_texts(texts))

    @torch.no_grad()
    def last_text_input(self, text: Text) -> Float[Tensor, "1 T D"]:
        """The input of the last block for the token that becomes the embedding, first, and for all tokens before it.

        Raises:
            UserError: the text's embedding is computed in another way.
        """
        place = self.place_read(text)
        x = self.text_block_input([text], -1)[:, [place, *range(place)]]
        found, expected = normalize(embed_from(self.text_view, x), dim=-1), self.embed([text])
        if (found - expected).abs().max() > SAME:
            raise UserError(
                f"the text encoder of {type(self).__name__} does not read token {place} of a text of {len(text.ids)}"
                " tokens alone: define text_view and place_read in the model's adapter as it does."
            )
        return x

    def embed_text_from(self, text: Text, x: Float[Tensor, "B T D"], layer: int) -> Float[Tensor, "B E"]:
        """Embeddings of a text, not normalised, if the input of block ``layer`` were ``x``; pooled at the text's place.

        The blocks before ``layer`` run on one row only.
        """

        def put(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        handle = self.text_blocks[layer].register_forward_pre_hook(put, with_kwargs=True)
        try:
            return self.encode_texts([text])  # once up to the block, whose rows share its mask and place of pooling
        finally:
            handle.remove()

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The result of ``make()``, computed once for all images, unless many others were asked for since."""
        if key not in self._kept:
            self._kept[key] = make()
            _drop_oldest(self._kept, MOST_KEPT)
        self._kept[key] = self._kept.pop(key)
        return self._kept[key]

    def _check_length(self, text: Text) -> None:
        if len(text.ids) > self.tokenizer.context:
            raise UserError(
                f"a text has {len(text.ids)} tokens with the special ones, but the encoder's context is"
                f" {self.tokenizer.context}: shorten it."
            )

    def forget_texts(self) -> None:
        """Discard text embeddings and whatever else is kept for all images, so that it is computed again if needed."""
        self._embeddings.clear()
        self._kept.clear()

    @torch.no_grad()
    def embed(self, texts: Sequence[Text]) -> Float[Tensor, "k E"]:
        """Unit embeddings; each distinct text is encoded only once, unless many others were asked for since.

        Raises:
            UserError: a text is longer than the encoder's context.
        """
        unknown = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        for text in unknown:
            self._check_length(text)
        by_length: dict[int, list[Text]] = {}
        for text in unknown:
            by_length.setdefault(self.padded_length(text), []).append(text)
        for alike in by_length.values():
            for start in range(0, len(alike), self.text_batch):
                part = alike[start : start + self.text_batch]
                filled = [part[min(row, len(part) - 1)] for row in range(self.text_batch)]
                self._embeddings |= zip(part, normalize(self.encode_texts(filled), dim=-1)[: len(part)], strict=True)
        asked = {text: self._embeddings.pop(text) for text in dict.fromkeys(texts)}
        self._embeddings |= asked
        _drop_oldest(self._embeddings, MOST_TEXTS)
        return torch.stack([asked[text] for text in texts])


def _drop_oldest(kept: dict, most: int) -> None:
    for key in list(islice(kept, max(len(kept) - most, 0))):
        del kept[key]


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module is given while ``run`` runs, which ends there."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise ForwardPassEnds

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run()
    except ForwardPassEnds:
        pass
    finally:
        handle.remove()
    return seen[0].detach()


def masked_pixels(
    pixels: Float[Tensor, "3 H W"], masks: Bool[Tensor, "a P"], patch_size: int
) -> Float[Tensor, "a 3 H W"]:
    """The image with the pixels of absent patches at 0; no patch has those behind the last whole one, which stay."""
    rows, columns = (length // patch_size for length in pixels.shape[-2:])
    grid = masks.to(pixels.device, pixels.dtype).view(-1, 1, rows, columns)
    masked = pixels.repeat(len(masks), 1, 1, 1)
    by_pixel = grid.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    masked[..., : by_pixel.shape[2], : by_pixel.shape[3]] *= by_pixel
    return masked


def owned_tokens(pieces: Players) -> Bool[np.ndarray, "m T"]:
    """Which tokens of the whole text each piece has."""
    alone_absent = ~np.eye(len(pieces.labels), dtype=bool)
    return ~np.array([pieces.masked(row).attended for row in alone_absent.tolist()])


def padded(texts: Sequence[Text], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and whether they are attended to, ``(k, length)``; padding stands behind and is attended to."""
    ids = torch.full((len(texts), length), pad_id)
    attended = torch.ones(len(texts), length, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        attended[row, : len(text.ids)] = torch.tensor(text.attended)
    return ids, attended
