"""Checkpoints and data of the paper scale as their makers distribute them, but for their sizes.

Real tokenizers take the place of small ones where METAGAME_REAL_TOKENIZERS names their folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metagame.benchmarks.prompts import annotated_prompts
from scripts.train_diffusion import build_tokenizers
from scripts.train_language import CHAT_TEMPLATE
from tests.tiny import language
from tests.tiny.flux import build_t5_tokenizer
from tests.tiny.jobs import ROOT
from tests.tiny.segmentation import scene, write_imagenet_seg, write_panoptic, write_voc
from tests.tiny.vision_language import randomise

COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO = tuple(COCO_NAMES.split(","))
"""Its things, in the order of their ids."""
ONE_TOKEN_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat bench bird cat dog horse sheep cow elephant bear "
    "backpack umbrella tie suitcase snowboard bottle cup knife spoon bowl banana apple sandwich orange broccoli carrot "
    "pizza cake chair couch bed toilet laptop mouse remote keyboard microwave oven sink refrigerator book clock vase "
    "scissors toothbrush"
)
COCO_OF_ONE_TOKEN = tuple(ONE_TOKEN_NAMES.split())
"""Those that FLUX's T5 tokenizer has as one token."""
VOC_NAMES = (
    "plane bike bird boat bottle bus car cat chair cow table dog horse motorcycle person pot sheep sofa train monitor"
)
VOC = tuple(VOC_NAMES.split())
BACKGROUND = ("background", "floor", "grass", "tree", "sky")
REAL = os.environ.get("METAGAME_REAL_TOKENIZERS")
SHARD = "20KB"
"""So small that all weights are in several files."""


def save_flux(folder: Path) -> None:
    """FLUX.1-schnell with all of its blocks, in bfloat16 and in shards, with the embedding of T5 in it once."""
    write_config(folder / "model_index.json", MODEL_INDEX)
    write_config(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    parts = {
        "transformer": (FluxTransformer2DModel.from_config(TRANSFORMER), TRANSFORMER),
        "vae": (AutoencoderKL.from_config(VAE), VAE),
        "text_encoder": (transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)), CLIP),
        "text_encoder_2": (transformers.T5EncoderModel(transformers.T5Config(**T5)), T5),
    }
    for name, (part, config) in parts.items():
        randomise(part, 0).to(torch.bfloat16).save_pretrained(folder / name, max_shard_size=SHARD)
        write_config(folder / name / "config.json", config)
    for name, tokenizer in (("tokenizer", "tokenizer_1"), ("tokenizer_2", "tokenizer_2")):
        if REAL is not None:
            shutil.copytree(Path(REAL, "flux", tokenizer), folder / name)
    if REAL is None:
        words = dict.fromkeys(
            ("a", "photo", "of", "on", "city", "street", "vintage", *BACKGROUND, *VOC, *COCO_OF_ONE_TOKEN)
        )
        build_t5_tokenizer(tuple(words), 512).save_pretrained(folder / "tokenizer_2")
        build_tokenizers(folder / "made")["tokenizer"].save_pretrained(folder / "tokenizer")
        shutil.rmtree(folder / "made")


def save_gemma(folder: Path, size: str, *, chat: bool) -> None:
    """Gemma 3 1B, or 4B with its vision tower, instruction-tuned (``chat``) or not; in bfloat16 and in shards."""
    if size == "1b":
        config, net = GEMMA_1B, transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA_1B))
    else:
        config, net = GEMMA_4B, transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**GEMMA_4B))
    language.randomise(net, 1).to(torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")
    write_config(folder / "config.json", config)
    write_config(folder / "generation_config.json", GENERATION)
    tokenizer = build_gemma_tokenizer() if REAL is None else AutoTokenizer.from_pretrained(Path(REAL, "gemma3"))
    tokenizer.chat_template = tokenizer.chat_template if chat else None
    tokenizer.save_pretrained(folder)


def write_config(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def build_gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the paper's prompts as tokens, special ones with the ids that Gemma 3 has for them."""
    splitter = Whitespace()
    pieces = (piece for prompt in annotated_prompts() for piece, _ in splitter.pre_tokenize_str(prompt.text))
    words = dict.fromkeys(["user", "model", *pieces])
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105, "<end_of_turn>": 106}
    vocabulary = special | {word: 200 + place for place, word in enumerate(words)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    turns = [AddedToken(token, special=True, normalized=False) for token in ("<start_of_turn>", "<end_of_turn>")]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        additional_special_tokens=turns, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def write_data(root: Path) -> None:
    """Pascal VOC, COCO, ImageNet-Segmentation and SST-2, a few samples each, where the paper scale looks for them."""
    write_voc(root / "VOCdevkit" / "VOC2012", [scene(VOC.index("person"), VOC.index("dog")), scene(VOC.index("cat"))])
    things = {name: place + 1 for place, name in enumerate(COCO)}
    write_panoptic(root / "coco", [scene(COCO.index("dog")), scene(COCO.index("zebra"))], things=things)
    names = COCO_OF_ONE_TOKEN[:30]
    write_imagenet_seg(root / "imagenet_seg", [scene(names.index("dog"), rim=False)], names)
    (root / "sst2").mkdir()
    rows = "sentence\tlabel\nthe food was good . \t1\nthe film was not good . \t0\n"
    (root / "sst2" / "dev.tsv").write_text(rows, encoding="utf-8")


def save_bert(folder: Path) -> None:
    """The small BERT in the place of one that was trained on SST-2."""
    shutil.copytree(ROOT / "data/tiny/bert", folder, dirs_exist_ok=True)


MODEL_INDEX = {
    "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0", "base_image_seq_len": 256,
    "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 1.0,
    "use_dynamic_shifting": False,
}  # fmt: skip
TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
    "_name_or_path": "../checkpoints/flux-schnell/transformer", "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6],
    "guidance_embeds": False, "in_channels": 64, "joint_attention_dim": 32, "num_attention_heads": 2, "num_layers": 19,
    "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 32,
}  # fmt: skip
"""FLUX.1-schnell has 24 heads of 128 features, its places 16, 56 and 56 by default, and texts of 4096 and 768."""
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0.dev0", "_name_or_path": "../checkpoints/flux-dev",
    "act_fn": "silu", "block_out_channels": [4, 4, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True, "in_channels": 3, "latent_channels": 16,
    "latents_mean": None, "latents_std": None, "layers_per_block": 2, "mid_block_add_attention": True,
    "norm_num_groups": 2, "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False, "use_quant_conv": False,
}  # fmt: skip
CLIP = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 32,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 2, "num_hidden_layers": 12,
    "pad_token_id": 1, "projection_dim": 32, "torch_dtype": "bfloat16", "transformers_version": "4.43.3",
    "vocab_size": 49408,
}  # fmt: skip
T5 = {
    "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 64,
    "d_kv": 8, "d_model": 32, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
    "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 4,
    "num_layers": 24, "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3", "use_cache": True, "vocab_size": 32128,
}  # fmt: skip
GEMMA_1B = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 16,
    "initializer_range": 0.02, "intermediate_size": 32, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 8, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
GEMMA_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 8, "hidden_size": 16, "intermediate_size": 32, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 16, "image_size": 896, "intermediate_size": 32, "model_type": "siglip_vision_model",
        "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
"""Of the text part the file says no more than that, but for ``head_dim``, which is 256 by default."""
GENERATION = {
    "bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": True, "eos_token_id": [1, 106],
    "pad_token_id": 0, "top_k": 64, "top_p": 0.95, "transformers_version": "4.50.0.dev0",
}  # fmt: skip
