"""The GGUF header reader agrees with the reference, and believes nothing that a file says about itself."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayscheduler.memory import gguf
from rayscheduler.memory.gguf import GgufError, SkippedArray, read_header, read_parts
from tests.tiny_gguf import write_tiny_gguf

Write = Callable[[bytes], Path]
STRING, ARRAY, U8, U32, U64, F32, BOOL = 8, 9, 0, 4, 10, 6, 7


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes) -> Path:
        path = tmp_path / "some.gguf"
        path.write_bytes(content)
        return path

    return write_file


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    *parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3, magic: bytes = b"GGUF", data: int = 0
) -> bytes:
    head = magic + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(data) if data else head


def wrong(write: Write, content: bytes) -> str:
    """What is said about a file that is wrong."""
    with pytest.raises(GgufError) as error:
        read_header(write(content))
    return str(error.value)


# files that are right


def test_it_agrees_with_the_reference_reader(tiny_model: Path) -> None:
    ours, theirs = read_header(tiny_model), reference.GGUFReader(tiny_model)
    assert ours.architecture == "llama"
    assert ours.context_length == 32_768
    assert ours.file_bytes == tiny_model.stat().st_size
    assert ours.weight_bytes == sum(int(tensor.n_bytes) for tensor in theirs.tensors)
    expected = [
        (each.name, tuple(map(int, each.shape)), each.tensor_type.name, each.data_offset, each.n_bytes)
        for each in theirs.tensors
    ]
    assert [(t.name, t.shape, t.type, t.offset, t.size_bytes) for t in ours.tensors] == expected
    for key in ("general.name", "llama.block_count", "tokenizer.chat_template"):
        assert ours.metadata[key] == theirs.fields[key].contents()
    words = ours.metadata["tokenizer.ggml.tokens"]
    assert isinstance(words, tuple)
    assert words[:3] == ("<unk>", "<s>", "</s>")


def test_the_types_are_those_of_ggml() -> None:
    sizes = {int(kind): (kind.name, *size) for kind, size in reference.GGML_QUANT_SIZES.items()}
    assert {kind: size for kind, size in sizes.items() if kind in gguf.TENSOR_TYPES} == gguf.TENSOR_TYPES


def test_all_kinds_of_values(write: Write) -> None:
    content = header(
        entry("text", STRING, text("ü")),
        entry("yes", BOOL, b"\1"),
        entry("byte", U8, b"\xff"),
        entry("big", U64, struct.pack("<Q", 2**64 - 1)),
        entry("real", F32, struct.pack("<f", 0.5)),
        entry("heads", ARRAY, array(U32, 2, struct.pack("<II", 8, 4))),
        entry("long", ARRAY, array(U8, 5000, bytes(5000))),
        entry("words", ARRAY, array(STRING, 3000, text("word") * 3000)),
        entry("after", STRING, text("still in step")),
        entries=9,
    )
    found = read_header(write(content))
    assert found.metadata == {
        "text": "ü",
        "yes": True,
        "byte": 255,
        "big": 2**64 - 1,
        "real": 0.5,
        "heads": (8, 4),
        "long": SkippedArray(5000),
        "words": SkippedArray(3000),
        "after": "still in step",
    }
    assert (found.number("yes"), found.number("text", 7), found.text("byte")) == (0, 7, "")


def test_a_tensor_counts_its_blocks_and_its_alignment(write: Write) -> None:
    content = header(
        entry("general.alignment", U32, struct.pack("<I", 64)),
        tensor("a", (512, 3), kind=12),
        tensor("b", (), offset=1024),
        tensors=2,
        entries=1,
    )
    found = read_header(write(content + bytes(-len(content) % 64) + bytes(1024 + 4)))
    assert found.data_offset % 64 == 0
    assert [(t.type, t.size_bytes, t.offset - found.data_offset) for t in found.tensors] == [
        ("Q4_K", 512 * 3 // 256 * 144, 0),
        ("F32", 4, 1024),
    ]


def test_a_vocabulary_of_250_000_words_is_skipped_quickly(write: Write) -> None:
    """As in a model of 250 MB: tokens and merges; the reference needs seconds. (Figure: under 50 ms when idle.)"""
    words = array(STRING, 250_000, text("a word's") * 250_000)
    path = write(header(entry("tokens", ARRAY, words), entry("merges", ARRAY, words), entries=2))
    began_s = time.process_time()
    read_header(path)
    assert time.process_time() - began_s < 0.5


def test_a_model_in_several_files(tmp_path: Path) -> None:
    names = [tmp_path / f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    count = entry("split.count", U32, struct.pack("<I", 3))
    for part, name in enumerate(names):
        name.write_bytes(header(count, tensor(f"t{part}", (8,)), tensors=1, entries=1, data=32))
    parts = read_parts(names[0])
    assert [path for path, _ in parts] == names
    assert sum(part.weight_bytes for _, part in parts) == 96

    with pytest.raises(GgufError, match=r"part 2 of 3; give the first, m-00001-of-00003\.gguf"):
        read_parts(names[1])
    names[2].write_bytes(names[2].read_bytes()[:-10])
    with pytest.raises(GgufError, match=r"its part m-00003-of-00003\.gguf: it is cut short"):
        read_parts(names[0])
    names[1].unlink()
    with pytest.raises(GgufError, match=r"its part m-00002-of-00003\.gguf cannot be read: No such file"):
        read_parts(names[0])
    renamed = names[0].rename(tmp_path / "m.gguf")
    with pytest.raises(GgufError, match=r"not named NAME-00001-of-00003\.gguf"):
        read_parts(renamed)


# files that are wrong


def test_every_truncation_is_noticed(tiny_model: Path, write: Write) -> None:
    whole = tiny_model.read_bytes()
    end = read_header(tiny_model).data_offset
    cuts = [*range(0, 2000, 7), *range(2000, end, 997), end - 1, end, end + 1, len(whole) // 2, len(whole) - 33]
    for cut in cuts:
        told = wrong(write, whole[:cut])
        assert "cut short" in told or "bytes follow" in told or cut < 4, (cut, told)


def test_what_is_wrong_is_told_in_numbers(write: Write) -> None:
    huge = 2**63
    assert wrong(write, b"") == "it is not a GGUF file: it has 0 bytes, not with b'GGUF'"
    assert "begins with b'GGML'" in wrong(write, header(magic=b"GGML"))
    assert "version 1;" in wrong(write, header(version=1))
    assert "big-endian" in wrong(write, header(version=3 << 24))
    assert "announces 9,223,372,036,854,775,808 tensors" in wrong(write, header(tensors=huge))
    assert "metadata entries, but only 0 bytes follow" in wrong(write, header(entries=huge))
    long_key = struct.pack("<Q", huge) + bytes(9)
    assert "string of 9,223,372,036,854,775,808 bytes" in wrong(write, header(long_key, entries=1))
    assert "'a' has the unknown type 99" in wrong(write, header(entry("a", 99, b"x"), entries=1))
    assert "'a' twice" in wrong(write, header(entry("a", U8, b"x") * 2, entries=2))
    nested = entry("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"x")))
    assert "array of the unknown type 9" in wrong(write, header(nested, entries=1))
    for kind in (STRING, U8):
        assert "announces 9,223" in wrong(write, header(entry("a", ARRAY, array(kind, huge, bytes(8))), entries=1))
    liar = entry("a", ARRAY, array(STRING, 2000, struct.pack("<Q", huge) * 2000))
    assert "a string goes on to byte 9,223" in wrong(write, header(liar, entries=1))
    for alignment in (0, 3):
        aligned = entry("general.alignment", U32, struct.pack("<I", alignment))
        assert f"alignment is {alignment}" in wrong(write, header(aligned, entries=1))


def test_wrong_tensors_are_told_in_numbers(write: Write) -> None:
    assert "'t' has 5 dimensions" in wrong(write, header(tensor("t", (1,) * 5), tensors=1))
    assert "'t' has type 77" in wrong(write, header(tensor("t", (1,), kind=77), tensors=1))
    assert "rows of 33, no multiple of 32" in wrong(write, header(tensor("t", (33,), kind=2), tensors=1))
    big = header(tensor("t", (2**63, 2**63, 2**63)), tensors=1, data=64)
    assert "it is cut short: tensor 't' ends at byte" in wrong(write, big)
    far = header(tensor("t", (1,), offset=2**64 - 1), tensors=1, data=64)
    assert "it is cut short" in wrong(write, far)
    twice = header(tensor("t", (16,)), tensor("u", (16,)), tensors=2, data=64)
    assert wrong(write, twice) == "its tensors overlap"
    nasty = header(tensor("\x1b[2J" + "x" * 500, (99,)), tensors=1, data=1)
    assert "'\\x1b[2Jxxx" in wrong(write, nasty)
    assert len(wrong(write, nasty)) < 250


def test_a_small_file_never_takes_much_memory(write: Write) -> None:
    """In a process that may have little: lengths of petabytes in a file of 100 bytes."""
    huge = 2**50
    liars = [
        header(tensors=huge, entries=huge),
        header(struct.pack("<Q", huge), bytes(60), entries=1),
        header(entry("a", ARRAY, array(U8, huge, bytes(40))), entries=1),
        header(entry("a", ARRAY, array(STRING, 2**59, bytes(40))), entries=1),
    ]
    program = (
        "import resource, sys; from rayscheduler.memory.gguf import GgufError, read_header\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20))\n"
        "try: read_header(sys.argv[1])\n"
        "except GgufError: print('told')\n"
    )
    for content in liars:
        argv = [sys.executable, "-c", program, str(write(content))]
        assert subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout == "told\n"


# files that nobody thought of

fuzzed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_gguf_errors(path: Path) -> None:
    try:
        found = read_header(path)
    except GgufError:
        return
    assert found.weight_bytes <= found.file_bytes
    assert all(t.offset + t.size_bytes <= found.file_bytes for t in found.tensors)


@fuzzed
@given(content=st.binary(max_size=400))
def test_garbage_after_the_magic(write: Write, content: bytes) -> None:
    only_gguf_errors(write(b"GGUF\3\0\0\0" + content))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytearray:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return bytearray(write_tiny_gguf(path, "a b", size_bytes=1, layers=1).read_bytes())


@fuzzed
@given(data=st.data())
def test_a_model_with_some_bytes_changed(write: Write, small: bytearray, data: st.DataObject) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 12_000))
        with_what = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 8, bytes(8)])))
        changed[at : at + len(with_what)] = with_what
    only_gguf_errors(write(bytes(changed)))


def test_the_tiny_model_is_what_it_says(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", "one two", size_bytes=3_000_000)
    assert model.stat().st_size == pytest.approx(3_000_000, rel=0.1)
    assert model.read_bytes() == write_tiny_gguf(tmp_path / "n.gguf", "one two", size_bytes=3_000_000).read_bytes()
    with pytest.raises(ValueError, match="must differ"):
        write_tiny_gguf(tmp_path / "o.gguf", "one one")
