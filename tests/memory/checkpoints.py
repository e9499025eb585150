"""Configurations of public models, with figures published about them, and the directories that hold them.

Rules of this file: the keys are those of each model's `config.json` that matter here; `parameters` are billions as
published, `kv_bytes_per_token` what a token takes on one device in bfloat16 by vLLM's arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Public:
    """One model and what is known of it."""

    config: Mapping[str, Any]
    parameters: float
    kv_bytes_per_token: int


def write_checkpoint(folder: Path, config: Mapping[str, Any], total_bytes: int = 0) -> Path:
    """A directory with `config.json` and, with a total, an index without its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    if total_bytes:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": {"model.norm.weight": "a.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def dense(
    architecture: str, layers: int, hidden: int, heads: int, kv_heads: int, ff: int, vocab: int, **more: Any
) -> dict:
    """The seven numbers that every plain transformer has."""
    return {
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
        **more,
    }


def mixture(experts: int, used: int, ff: int, **more: Any) -> dict[str, Any]:
    return {"num_experts": experts, "num_experts_per_tok": used, "moe_intermediate_size": ff, **more}


def latent(query_rank: int | None) -> dict[str, Any]:
    dims = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return {"kv_lora_rank": 512, "q_lora_rank": query_rank, "moe_layer_freq": 1, **dims}


PUBLIC: Mapping[str, Public] = {
    "Llama-3.1-8B": Public(dense("LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256), 8.03, 131_072),
    "Mistral-7B-v0.1": Public(
        dense("MistralForCausalLM", 32, 4096, 32, 8, 14336, 32000, model_type="mistral", sliding_window=4096),
        7.24,
        131_072,
    ),
    "Phi-3-mini": Public(  # states a window that is not used
        dense("Phi3ForCausalLM", 32, 3072, 32, 32, 8192, 32064, model_type="phi3", sliding_window=2047), 3.82, 393_216
    ),
    "Qwen2.5-VL-7B": Public(
        dense(
            *("Qwen2_5_VLForConditionalGeneration", 28, 3584, 28, 4, 18944, 152064),
            **{"use_sliding_window": False, "sliding_window": 32768, "vision_config": {"depth": 32}},
        ),
        7.62,  # of its language model
        57_344,
    ),
    "Gemma-2-9B": Public(
        dense(
            *("Gemma2ForCausalLM", 42, 3584, 16, 8, 14336, 256000),
            **{"model_type": "gemma2", "head_dim": 256, "sliding_window": 4096},
        ),
        9.24,
        344_064,
    ),
    "Gemma-3-27B": Public(  # nested; 10 full and 52 windowed layers: seven groups of ten
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "vision_config": {"hidden_size": 1152},
            "text_config": dense(
                *("Gemma3ForCausalLM", 62, 5376, 32, 16, 21504, 262208),
                **{"model_type": "gemma3_text", "head_dim": 128, "sliding_window": 1024},
            ),
        },
        27.0,
        70 * 2 * 16 * 128 * 2,
    ),
    "gpt-oss-20b": Public(
        dense(
            *("GptOssForCausalLM", 24, 2880, 64, 8, 2880, 201088),
            **{"head_dim": 64, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12},
            **{"num_local_experts": 32, "num_experts_per_tok": 4},
        ),
        20.9,
        49_152,
    ),
    "Mixtral-8x7B": Public(
        dense(
            *("MixtralForCausalLM", 32, 4096, 32, 8, 14336, 32000),
            **{"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        ),
        46.7,
        131_072,
    ),
    "Qwen3-30B-A3B": Public(
        dense("Qwen3MoeForCausalLM", 48, 2048, 32, 4, 6144, 151936, head_dim=128, **mixture(128, 8, 768)), 30.5, 98_304
    ),
    "Llama-4-Scout": Public(
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "text_config": dense(
                *("Llama4ForCausalLM", 48, 5120, 40, 8, 8192, 202048),
                **{"model_type": "llama4_text", "head_dim": 128, "num_local_experts": 16, "num_experts_per_tok": 1},
                **{"interleave_moe_layer_step": 1, "attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0] * 12},
            ),
        },
        107.8,
        48 * 2 * 8 * 128 * 2,
    ),
    "DeepSeek-V2-Lite": Public(
        dense(
            *("DeepseekV2ForCausalLM", 27, 2048, 16, 16, 10944, 102400),
            **latent(None),
            **mixture(64, 6, 1408, n_shared_experts=2, first_k_dense_replace=1),
        ),
        15.7,
        27 * 576 * 2,
    ),
    "DeepSeek-V3": Public(
        dense(
            *("DeepseekV3ForCausalLM", 61, 7168, 128, 128, 18432, 129280),
            **latent(1536),
            **mixture(256, 8, 2048, n_shared_experts=1, first_k_dense_replace=3),
        ),
        671.0,
        61 * 576 * 2,
    ),
    "Qwen3-Next-80B": Public(  # every fourth layer keeps keys and values
        dense(
            *("Qwen3NextForCausalLM", 48, 2048, 16, 2, 5120, 151936),
            **{"head_dim": 256, "full_attention_interval": 4, "shared_expert_intermediate_size": 512},
            **mixture(512, 10, 512),
            **{"linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_conv_kernel_dim": 4},
            **{"linear_key_head_dim": 128, "linear_value_head_dim": 128},
        ),
        79.7,
        12 * 2 * 2 * 256 * 2,
    ),
    "Jamba-v0.1": Public(
        dense(
            *("JambaForCausalLM", 32, 4096, 32, 8, 14336, 65536),
            **{"model_type": "jamba", "num_experts": 16, "num_experts_per_tok": 2, "mamba_dt_rank": 256},
            **{"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
        ),
        51.6,
        4 * 2 * 8 * 128 * 2,
    ),
    "Granite-4-H-Small": Public(
        dense(
            *("GraniteMoeHybridForCausalLM", 40, 4096, 32, 8, 768, 100352),
            **{"tie_word_embeddings": True, "shared_intermediate_size": 1536, "mamba_d_state": 128},
            **{"num_local_experts": 72, "num_experts_per_tok": 10, "mamba_n_heads": 128, "mamba_d_head": 64},
            layer_types=["attention" if index in (5, 15, 25, 35) else "mamba" for index in range(40)],
        ),
        32.2,
        4 * 2 * 8 * 128 * 2,
    ),
    "Nemotron-H-8B": Public(
        dense(
            *("NemotronHForCausalLM", 52, 4096, 32, 8, 21504, 131072),
            **{"head_dim": 128, "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8},
            hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-",
        ),
        8.1,
        4 * 2 * 8 * 128 * 2,
    ),
    "Falcon-7B": Public(  # one head of keys and values for all
        {
            "architectures": ["FalconForCausalLM"],
            **{"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71},
            **{"multi_query": True, "vocab_size": 65024},
        },
        6.92,
        32 * 2 * 64 * 2,
    ),
    "GPT-2": Public(
        {
            "architectures": ["GPT2LMHeadModel"],
            **{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
        },
        0.124,
        12 * 2 * 768 * 2,
    ),
}
