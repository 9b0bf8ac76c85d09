"""Concepts beside the double-stream blocks of a FLUX transformer, which does not notice them (Helbling et al., 2025).

In each block the concepts use the weights and the modulation of the text stream, at position 0, and attend to concepts
and image; image and text never see the concepts. So the blocks run unchanged, once for any number of sets of concepts,
and hooks hand over what the concepts need of the image: its keys, values and attention outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from metagame.errors import UserError
from metagame.models.layers import ForwardPassEnds


@dataclass(frozen=True)
class ConceptSet:
    """Concepts that run together beside an image.

    Attributes:
        encodings: of the concepts' first tokens, by the text encoder.
        cross_attention: whether concepts attend to each other; if not, no concept changes another's logits.
    """

    encodings: Float[Tensor, "n e"]
    cross_attention: bool = True


@torch.no_grad()
def concept_logits(
    transformer: FluxTransformer2DModel, inputs: dict[str, Any], sets: Sequence[ConceptSet], n_layers: int
) -> list[Float[Tensor, "L _ P"]]:
    """Logits of each set's concepts, from one forward pass that ends behind the last double-stream block.

    Differs from the paper's code, where products, softmax and mean over layers are in bfloat16, too.

    Args:
        transformer: of a FLUX pipeline.
        inputs: of the transformer's ``forward``, of one image.
        sets: of concepts.
        n_layers: how many of the last double-stream blocks are asked.

    Returns:
        Of each set <o_image_p, o_concept> in float32, in the asked blocks: the attention outputs, heads concatenated,
        before the output projection.

    Raises:
        UserError: the transformer has fewer such blocks, or holds its projections fused.
    """
    with watched_concepts(transformer, sets, n_layers) as passes, _ending_behind(transformer.transformer_blocks[-1]):
        transformer(**inputs)
    return passes[0]


@contextmanager
def watched_concepts(
    transformer: FluxTransformer2DModel, sets: Sequence[ConceptSet], n_layers: int, pooled: bool = True
) -> Generator[list[list[Float[Tensor, "L _ P"]]]]:
    """Within: each forward pass of the transformer adds what :func:`concept_logits` returns to the yielded list.

    So a picture's concepts can be watched while a pipeline paints it. Unless ``pooled``, they are modulated as if the
    pooled text vector were zero; image and text never are.
    """
    blocks = list(transformer.transformer_blocks)
    if not 1 <= n_layers <= len(blocks):
        raise UserError(
            f"n_layers={n_layers} must be from 1 to {len(blocks)}, the number of the transformer's double-stream"
            " blocks."
        )
    # an attention that was never fused does not have the attribute
    if any(getattr(block.attn, "fused_projections", False) for block in blocks):
        raise UserError("the transformer has fused projections: call unfuse_qkv_projections() first.")
    passes: list[list[Tensor]] = []
    streams: list[_Stream] = []
    blank: list[Tensor] = []  # what modulates concepts in place of the pass's own condition

    def keep_blank(module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        blank[:] = [module.forward(*inputs[:-1], torch.zeros_like(inputs[-1]))]

    def follow(block: FluxTransformerBlock, seen: _Seen, condition: Tensor, asked: bool) -> None:
        if block is blocks[0]:  # a new pass; not before, since only now an offloaded transformer is on its device
            streams[:] = [_Stream(each, transformer.context_embedder(each.encodings[None])) for each in sets]
        for stream in streams:
            stream.advance(block, seen, condition if pooled else blank[0], asked)
        if block is blocks[-1]:
            passes.append([torch.cat(stream.logits) for stream in streams])

    with ExitStack() as stack:
        if not pooled:
            stack.callback(transformer.time_text_embed.register_forward_hook(keep_blank).remove)
        for place, block in enumerate(blocks):
            _watch(block, follow, place >= len(blocks) - n_layers, stack)
        yield passes


@dataclass
class _Seen:
    """The image's keys (turned to its positions), values and attention outputs in one block, ``(1, P, heads, d)``."""

    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)
    outputs: Tensor = field(init=False)


def _watch(
    block: FluxTransformerBlock,
    follow: Callable[[FluxTransformerBlock, _Seen, Tensor, bool], None],
    asked: bool,
    stack: ExitStack,
) -> None:
    """Call ``follow`` behind each pass of the block with what it did with the image; ``stack`` undoes this.

    The hooks on the block's parts run within its pass, the one on the block behind it.
    """
    attention, seen = block.attn, _Seen()

    def keep_keys(module, inputs, output: Tensor) -> None:
        seen.keys = output

    def keep_values(module, inputs, output: Tensor) -> None:
        seen.values = output.unflatten(-1, (attention.heads, -1))

    def keep_outputs(module, inputs: tuple[Tensor]) -> None:
        (seen.outputs,) = inputs

    def hand_over(module, inputs, arguments: dict[str, Any], output) -> None:
        n_text = arguments["encoder_hidden_states"].shape[1]
        rotary = tuple(part[n_text:] for part in arguments["image_rotary_emb"])
        seen.keys = apply_rotary_emb(seen.keys, rotary, sequence_dim=1)
        follow(module, seen, arguments["temb"], asked)
        del seen.keys, seen.values, seen.outputs  # not needed any more: at real size 75 MB a block

    for handle in (
        attention.norm_k.register_forward_hook(keep_keys),
        attention.to_v.register_forward_hook(keep_values),
        attention.to_out[0].register_forward_pre_hook(keep_outputs),
        block.register_forward_hook(hand_over, with_kwargs=True),
    ):
        stack.callback(handle.remove)


class _Stream:
    """One set of concepts on its way through the blocks."""

    def __init__(self, concepts: ConceptSet, embedded: Float[Tensor, "1 n d"]) -> None:
        self.concepts = concepts
        self.state = embedded
        self.logits: list[Float[Tensor, "1 n P"]] = []

    def advance(self, block: FluxTransformerBlock, seen: _Seen, condition: Tensor, asked: bool) -> None:
        """One block; its logits are kept where it is ``asked``."""
        normed, gate_attention, shift, scale, gate_mlp = block.norm1_context(self.state, emb=condition)
        outputs = self._attend(block, normed, seen)
        if asked:
            self.logits.append(outputs.float() @ seen.outputs.float().transpose(1, 2))
        self.state = self.state + gate_attention[:, None] * block.attn.to_add_out(outputs)
        normed = block.norm2_context(self.state) * (1 + scale[:, None]) + shift[:, None]
        self.state = self.state + gate_mlp[:, None] * block.ff_context(normed)

    def _attend(
        self, block: FluxTransformerBlock, normed: Float[Tensor, "1 n d"], seen: _Seen
    ) -> Float[Tensor, "1 n d"]:
        attention = block.attn
        heads = (attention.heads, -1)
        query = attention.norm_added_q(attention.add_q_proj(normed).unflatten(-1, heads))
        keys, values = seen.keys, seen.values
        if self.concepts.cross_attention:
            own = attention.norm_added_k(attention.add_k_proj(normed).unflatten(-1, heads))
            keys = torch.cat([own, keys], dim=1)
            values = torch.cat([attention.add_v_proj(normed).unflatten(-1, heads), values], dim=1)
        q, k, v = (part.transpose(1, 2).to(query.dtype) for part in (query, keys, values))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@contextmanager
def _ending_behind(block: FluxTransformerBlock) -> Generator[None]:
    """Within: a forward pass ends behind ``block``; hooks registered before have run."""

    def end(module, inputs, output) -> None:
        raise ForwardPassEnds

    handle = block.register_forward_hook(end)
    try:
        yield
    except ForwardPassEnds:
        pass
    finally:
        handle.remove()
