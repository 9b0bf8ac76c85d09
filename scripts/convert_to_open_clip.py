"""Write a CLIPModel checkpoint of transformers as a folder that open_clip loads (local-dir:FOLDER).

python -m scripts.convert_to_open_clip [--checkpoint data/tiny/clip] [--out data/tiny/open_clip]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel


def open_clip_config(model: CLIPModel) -> dict:
    """The arguments of open_clip's CLIP for the same architecture."""
    vision, text = model.config.vision_config, model.config.text_config
    return {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size,
            "layers": vision.num_hidden_layers, "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
            "heads": text.num_attention_heads, "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }  # fmt: skip


def convert(model: CLIPModel) -> CLIP:
    """open_clip's CLIP with the same weights."""
    config = open_clip_config(model)
    twin = CLIP(**config)
    state = twin.state_dict()
    state |= _tower("visual.transformer.resblocks", model.vision_model.encoder.layers)
    state |= _tower("transformer.resblocks", model.text_model.encoder.layers)
    vision, text = model.vision_model, model.text_model
    state |= _norm("visual.ln_pre", vision.pre_layrnorm) | _norm("visual.ln_post", vision.post_layernorm)
    state |= _norm("ln_final", text.final_layer_norm) | {
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
    }
    twin.load_state_dict({name: value.detach() for name, value in state.items()})
    return twin.to(model.dtype).eval()


def _norm(name: str, norm: torch.nn.LayerNorm) -> dict[str, Tensor]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _tower(name: str, layers: torch.nn.ModuleList) -> dict[str, Tensor]:
    state = {}
    for number, layer in enumerate(layers):
        attention, block = layer.self_attn, f"{name}.{number}"
        packed = (attention.q_proj, attention.k_proj, attention.v_proj)
        state |= _norm(f"{block}.ln_1", layer.layer_norm1) | _norm(f"{block}.ln_2", layer.layer_norm2)
        state |= {
            f"{block}.attn.in_proj_weight": torch.cat([part.weight for part in packed]),
            f"{block}.attn.in_proj_bias": torch.cat([part.bias for part in packed]),
        }
        for theirs, ours in (
            ("attn.out_proj", attention.out_proj),
            ("mlp.c_fc", layer.mlp.fc1),
            ("mlp.c_proj", layer.mlp.fc2),
        ):
            state |= {f"{block}.{theirs}.weight": ours.weight, f"{block}.{theirs}.bias": ours.bias}
    return state


def write(checkpoint: str, out: Path) -> None:
    """The weights in their precision, open_clip's config and the tokenizer."""
    model = CLIPModel.from_pretrained(checkpoint, dtype="auto")
    processor = AutoImageProcessor.from_pretrained(checkpoint, use_fast=False)
    config = open_clip_config(model)
    # a name without a scheme would be looked up on the hub; with local-dir the folder itself is used
    config["text_cfg"] |= {"hf_tokenizer_name": out.name, "tokenizer_kwargs": {"clean": "whitespace"}}
    preprocess = {
        "size": model.config.vision_config.image_size, "mode": "RGB", "mean": list(processor.image_mean),
        "std": list(processor.image_std), "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in convert(model).state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1) + "\n"
    (out / "open_clip_config.json").write_text(text, encoding="utf-8")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/tiny/clip")
    parser.add_argument("--out", type=Path, default=Path("data/tiny/open_clip"))
    arguments = parser.parse_args()
    write(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
