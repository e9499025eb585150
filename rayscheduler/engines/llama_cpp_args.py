"""The `args` of a llama-cpp model: llama-server's own flags, for the settings that an operator may choose.

Rules of this file: a table and its reader; xllamacpp is not imported, so a catalog can be checked on a
machine without it. Values are checked here, as a wrong one would otherwise abort the engine. What the
catalog says elsewhere (`context_length`, `concurrency`, ...) has no second way to be said here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rayscheduler.errors import EngineError, SourceError

Setting = int | float | str | bool | list[float]

# flags that the catalog or rayscheduler itself decides -> what to use instead
DECIDED_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("-m", "--model", "-hf", "--hf-repo", "-mu", "--model-url"), "give it as `source`"),
    **dict.fromkeys(("-c", "--ctx-size"), "give the tokens of one request as `context_length`"),
    **dict.fromkeys(("-np", "--parallel"), "give it as `concurrency`"),
    **dict.fromkeys(("--embedding", "--embeddings"), "give it as `embedding: true`"),
    **dict.fromkeys(("-a", "--alias"), "give it as `aliases`"),
    **dict.fromkeys(
        ("--host", "--port", "--api-key", "--api-key-file", "-dev", "--device", "--fit"), "it is chosen by rayscheduler"
    ),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """`field`: attribute path in xllamacpp.CommonParams. `read` turns the flag's text into its value.

    `value`: for a flag without text. ValueError of `read` says what would be right.
    """

    names: tuple[str, ...]
    field: str
    read: Callable[[str], Setting] | None = None
    value: Setting = True


def _whole(low: int = 0, high: int = 2**31 - 1) -> Callable[[str], Setting]:
    def read(text: str) -> Setting:
        number = int(text) if text.removeprefix("-").isdecimal() else None
        if number is None or not low <= number <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return read


def _real(text: str) -> Setting:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _one_of(prefix: str, *words: str) -> Callable[[str], Setting]:
    """The member of an enumeration of llama.cpp, by the word that llama-server takes for it."""

    def read(text: str) -> Setting:
        if text.lower() not in words:
            raise ValueError("one of " + ", ".join(words))
        return f"{prefix}_{text.upper()}"

    return read


def _flash_attention(text: str) -> Setting:
    members = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    if text not in members:
        raise ValueError("one of on, off, auto")
    return f"LLAMA_FLASH_ATTN_TYPE_{members[text]}"


def _shares(text: str) -> Setting:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise ValueError("numbers separated by commas") from None


def _text(text: str) -> Setting:
    return text


def _contents(path: str) -> Setting:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}; give the path of a jinja template") from error


_cache_type = _one_of("GGML_TYPE", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

FLAGS: tuple[Flag, ...] = (
    Flag(("--threads", "-t"), "cpuparams.n_threads", _whole(1, 512)),
    Flag(("--threads-batch", "-tb"), "cpuparams_batch.n_threads", _whole(1, 512)),
    Flag(("--threads-http",), "n_threads_http", _whole(1, 512)),
    Flag(("--batch-size", "-b"), "n_batch", _whole(1)),
    Flag(("--ubatch-size", "-ub"), "n_ubatch", _whole(1)),
    Flag(("--predict", "-n", "--n-predict"), "n_predict", _whole(-1)),
    Flag(("--keep",), "n_keep", _whole(-1)),
    Flag(("--gpu-layers", "-ngl", "--n-gpu-layers"), "n_gpu_layers", _whole()),
    Flag(("--split-mode", "-sm"), "split_mode", _one_of("LLAMA_SPLIT_MODE", "none", "layer", "row")),
    Flag(("--tensor-split", "-ts"), "tensor_split", _shares),
    Flag(("--main-gpu", "-mg"), "main_gpu", _whole(0, 127)),
    Flag(("--no-kv-offload", "-nkvo"), "no_kv_offload"),
    Flag(("--flash-attn", "-fa"), "flash_attn_type", _flash_attention),
    Flag(("--cache-type-k", "-ctk"), "cache_type_k", _cache_type),
    Flag(("--cache-type-v", "-ctv"), "cache_type_v", _cache_type),
    Flag(("--cache-ram", "-cram"), "cache_ram_mib", _whole()),
    Flag(("--cache-reuse",), "n_cache_reuse", _whole()),
    Flag(("--no-cache-prompt",), "cache_prompt", value=False),
    Flag(("--kv-unified", "-kvu"), "kv_unified"),
    Flag(("--swa-full",), "swa_full"),
    Flag(("--context-shift",), "ctx_shift"),
    Flag(("--no-mmap",), "load_mode", value="LLAMA_LOAD_MODE_NONE"),
    Flag(("--mlock",), "load_mode", value="LLAMA_LOAD_MODE_MMAP_MLOCK"),
    Flag(("--no-warmup",), "warmup", value=False),
    Flag(("--check-tensors",), "check_tensors"),
    Flag(("--numa",), "numa", _one_of("GGML_NUMA_STRATEGY", "distribute", "isolate", "numactl")),
    Flag(("--pooling",), "pooling_type", _one_of("LLAMA_POOLING_TYPE", "none", "mean", "cls", "last", "rank")),
    Flag(("--rope-scaling",), "rope_scaling_type", _one_of("LLAMA_ROPE_SCALING_TYPE", "none", "linear", "yarn")),
    Flag(("--rope-freq-base",), "rope_freq_base", _real),
    Flag(("--rope-freq-scale",), "rope_freq_scale", _real),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", _whole(1)),
    Flag(("--mmproj", "-mm"), "mmproj.path", _text),
    Flag(("--chat-template",), "chat_template", _text),
    Flag(("--chat-template-file",), "chat_template", _contents),
    Flag(("--reasoning-format",), "reasoning_format", _one_of("COMMON_REASONING_FORMAT", "none", "auto", "deepseek")),
    Flag(("--verbosity", "-lv", "--log-verbosity"), "verbosity", _whole(0, 5)),
)
_BY_NAME: Mapping[str, Flag] = {name: flag for flag in FLAGS for name in flag.names}


def read_args(args: Sequence[str]) -> dict[str, Setting]:
    """`["--threads", "4"]` or `["--threads=4"]` -> `{"cpuparams.n_threads": 4}`. EngineError says what is wrong."""
    settings: dict[str, Setting] = {}
    rest = list(args)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        flag = _flag(name)
        if flag.read is None:
            if equals:
                raise EngineError(f"llama-cpp: {name} takes no value; leave out {'=' + text!r}")
            settings[flag.field] = flag.value
            continue
        if not equals:
            if not rest:
                raise EngineError(f"llama-cpp: {name} is followed by nothing; give its value")
            text = rest.pop(0)
        try:
            settings[flag.field] = flag.read(text)
        except ValueError as error:
            raise EngineError(f"llama-cpp: {name} is {text!r}; it takes {error}") from error
    return settings


def _flag(name: str) -> Flag:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in DECIDED_ELSEWHERE:
        raise EngineError(f"llama-cpp: {name} is not taken in args; {DECIDED_ELSEWHERE[name]}")
    near = difflib.get_close_matches(name, [*_BY_NAME, *DECIDED_ELSEWHERE], n=1)
    hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(flag.names[0] for flag in FLAGS)
    raise EngineError(f"llama-cpp: unknown argument {name!r}; {hint}")
