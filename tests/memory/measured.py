"""The measured rows of vLLM, each as a checkpoint's directory and a question.

Rules of this file: a row's geometry is its own; widths and stored totals are those of the public checkpoints, and
quantised ones have no index, so that their weights come from the arithmetic alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayscheduler.memory.estimate import Ask
from tests.memory.checkpoints import dense, mixture, write_checkpoint

GIB = 1 << 30
ROWS: list[Mapping[str, Any]] = json.loads(Path(__file__).with_name("measured.json").read_text())["rows"]
# Rows with every part, of one version; the others are checked for their keys and values only.
WHOLE = [row for row in ROWS if row["engine_version"] == "0.19.0"]
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PARTS = {
    "context": "process_start_context_and_nccl",
    "weights": "weights",
    "activation": "activation_peak",
    "outside": "non_torch_forward",
    "graphs": "cudagraph_actual",
}
# part of the name -> width of the feed-forward, bytes of the checkpoint in bfloat16
CHECKPOINTS = {
    "Llama-3.1-8B": (14336, 16_060_522_496),
    "Llama-3.3-70B": (28672, 141_107_412_992),
    "Llama-3-70B": (28672, 141_107_412_992),
    "Qwen2.5-7B": (18944, 15_231_233_024),
    "Qwen2.5-72B": (29568, 145_412_407_296),
    "Qwen3-8B": (12288, 16_381_470_720),
    "Qwen3-14B": (17408, 29_536_614_400),
    "Qwen3-30B-A3B": (6144, 61_064_245_248),
    "Qwen3-235B-A22B": (12288, 470_187_269_120),
}
EXPERTS = {"Qwen3-30B-A3B": mixture(128, 8, 768), "Qwen3-235B-A22B": mixture(128, 8, 1536)}
QUANTIZATIONS: Mapping[str, Mapping[str, Any]] = {
    "fp8": {"quant_method": "fp8"},
    "gptq_marlin": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    },
}


def row_name(row: Mapping[str, Any]) -> str:
    return f"{row['id']}-{row['model'].split('/')[-1]}-tp{row['tp']}pp{row['pp']}-{row['quant']}"


def checkpoint(row: Mapping[str, Any], folder: Path) -> Path:
    shape = row["geometry"]
    name = next(name for name in CHECKPOINTS if name in row["model"])
    ff, total_bytes = CHECKPOINTS[name]
    heads = shape.get("qh", shape["hidden"] // shape["hd"])
    config = dense("LlamaForCausalLM", shape["L"], shape["hidden"], heads, shape["kvh"], ff, shape["vocab"])
    config |= {"head_dim": shape["hd"], "max_position_embeddings": 131_072, **EXPERTS.get(name, {})}
    config["torch_dtype"] = TORCH_DTYPES[row.get("dtype", "bf16")]
    if row["quant"] in QUANTIZATIONS:
        config["quantization_config"] = QUANTIZATIONS[row["quant"]]
        total_bytes = 0
    elif row["quant"] == "fp32":
        total_bytes *= 2
    return write_checkpoint(folder, config, total_bytes)


def question(row: Mapping[str, Any]) -> Ask:
    return Ask(
        context_length=row["ctx"],
        concurrency=row["parallel"] or 1,
        gpus=row["tp"] * row["pp"],
        pipeline=row["pp"],
        kv_type=row.get("kv_dtype", "auto"),
        max_batched_tokens=row.get("max_num_batched_tokens"),
    )
