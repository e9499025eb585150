"""`estimate`: what a model would take on each device, from its files alone; no cluster, no engine, no GPU.

Rules of this file: it asks rayscheduler.memory and prints; every byte of the answer comes from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from rayscheduler.cli.options import Address, AsJson
from rayscheduler.cli.output import EXIT_BAD_INPUT, complain, show, show_json
from rayscheduler.errors import SourceError

if TYPE_CHECKING:
    from rayscheduler.memory.estimate import Ask, Estimate

GIB = 1 << 30
MIB = 1 << 20

Source = Annotated[
    Path | None,
    typer.Argument(metavar="SOURCE", help="A .gguf file, a directory with config.json, or a file in it."),
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="What a running service has measured; SOURCE: a model's name, if any."),
]
Context = Annotated[int | None, typer.Option("--context", metavar="TOKENS", help="Tokens of one request.")]
Concurrency = Annotated[int, typer.Option("--concurrency", metavar="N", help="Requests at a time.")]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="Devices of one replica; 0: the host's memory only.")]
Pipeline = Annotated[int, typer.Option("--pipeline", metavar="N", help="Pipeline stages that these devices form.")]
KvType = Annotated[str, typer.Option("--kv-type", metavar="TYPE", help="Of the KV cache: auto, f16, fp8, q8_0, ...")]
Step = Annotated[
    int | None,
    typer.Option("--max-batched-tokens", metavar="N", help="Tokens of one step; llama.cpp: of a micro-batch."),
]
Engine = Annotated[str, typer.Option("--engine", metavar="NAME", help="vllm, sglang, transformers, llama-cpp, ollama.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TYPE", help="Of what is not quantised: auto, bfloat16, ...")]
FlashAttention = Annotated[bool, typer.Option("--flash-attention/--no-flash-attention", help="llama.cpp's -fa.")]
Unified = Annotated[bool, typer.Option("--kv-unified", help="llama.cpp: one cache for all requests.")]
Embedding = Annotated[bool, typer.Option("--embedding", help="The model is served for embeddings.")]
Projector = Annotated[str, typer.Option("--mmproj", metavar="FILE", help="llama.cpp: the multimodal projector.")]
Draft = Annotated[str, typer.Option("--draft", metavar="SOURCE", help="Draft model for speculative decoding.")]


def estimate(
    source: Source = None,
    context: Context = None,
    concurrency: Concurrency = 1,
    gpus: Gpus = 1,
    pipeline: Pipeline = 1,
    kv_type: KvType = "auto",
    max_batched_tokens: Step = None,
    engine: Engine = "",
    dtype: Dtype = "auto",
    flash_attention: FlashAttention = True,
    kv_unified: Unified = False,
    embedding: Embedding = False,
    mmproj: Projector = "",
    draft: Draft = "",
    compare: Compare = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Say how many bytes a model takes on each device before it has ever run, part by part.

    Reads headers only: of a GGUF file, or config.json with the index or headers of safetensors files.
    Exits with 2 and one line for a source that is no model, or a question that makes no sense.
    """
    if compare:
        from rayscheduler.cli import comparing

        comparing.compare(None if source is None else str(source), address, as_json)
        return
    if source is None:
        raise typer.BadParameter("a SOURCE is missing: a .gguf file or a directory with config.json; or --compare")
    from rayscheduler.memory.estimate import Ask
    from rayscheduler.memory.estimate import estimate as estimated

    ask = Ask(
        engine=engine,
        context_length=context,
        concurrency=concurrency,
        gpus=gpus,
        pipeline=pipeline,
        kv_type=kv_type,
        max_batched_tokens=max_batched_tokens,
        dtype=dtype,
        flash_attention=flash_attention,
        kv_unified=kv_unified,
        embedding=embedding,
        projector=mmproj,
        draft=draft,
    )
    try:
        answer = estimated(source, ask)
    except SourceError as problem:
        complain(f"rayscheduler: {problem}")
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if as_json:
        show_json(_json(source, ask, answer))
    else:
        _show(source, ask, answer)


def _json(source: Path, ask: Ask, answer: Estimate) -> dict[str, Any]:
    return {
        "source": str(source),
        "engine": answer.engine,
        "context_length": ask.context_length,
        "concurrency": ask.concurrency,
        "gpus": ask.gpus,
        "pipeline": ask.pipeline,
        "kv_type": ask.kv_type,
        "per_device_bytes": answer.per_device_bytes,
        "parts_bytes": dict(answer.fullest),
        "kv_bytes_per_token": answer.kv_bytes_per_token,
        "kv_tokens": answer.kv_tokens,
        "total_bytes": sum(answer.device_bytes),
        "host_bytes": answer.host_bytes,
        "devices": [
            {"bytes": total, "fixed_bytes": fixed, "parts_bytes": dict(parts)}
            for total, fixed, parts in zip(answer.device_bytes, answer.fixed_bytes, answer.parts, strict=True)
        ],
        "notes": list(answer.notes),
    }


def _show(source: Path, ask: Ask, answer: Estimate) -> None:
    """One column per device, or one for all where they take the same."""
    same = len({tuple(parts.items()) for parts in answer.parts}) == 1
    shown = answer.parts[:1] if same else answer.parts
    where = "host" if ask.gpus == 0 else f"each of {ask.gpus} devices" if same and ask.gpus > 1 else "device"
    heads = [where] if same else [f"device {index}" for index in range(len(shown))]
    table = Table("part", *heads, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    names = list(dict.fromkeys(name for parts in shown for name in parts))
    for name in names:
        table.add_row(name.replace("_", " "), *(_size(parts.get(name, 0)) for parts in shown))
    table.add_row("total", *(_size(sum(parts.values())) for parts in shown), style="bold")
    show(Text.assemble((str(source), "bold"), f" on {answer.engine}"))
    show(table)
    show(Text(f"KV cache: {answer.kv_bytes_per_token:,} bytes per token and device, {answer.kv_tokens:,} tokens"))
    if answer.host_bytes:
        show(Text(f"beside that in the host's memory: {_size(answer.host_bytes)}"))
    for note in answer.notes:
        show(Text(f"note: {note}"))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"
