"""One short name for everything that determines a result: settings, inputs, code and versions."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

STAGES = Path(__file__).resolve().parent.parent


def fingerprint(settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that differ when anything that determines the result does.

    That is: the settings, the content of the inputs, the source text of every module of the stages
    that is imported, and the versions of PyTorch and NumPy.

    Args:
        settings: What the stage reads of params.yaml, and the device; JSON or dataclasses.
        inputs: Files, and folders that are taken with all the files in them.

    Raises:
        ValueError: An input is missing.
        OSError: An input cannot be read.
    """
    files = sorted({file for path in inputs for file in _files(path)})
    content = {
        "settings": settings,
        "inputs": {file.as_posix(): file_digest(file) for file in files},
        "code": {file.relative_to(STAGES).as_posix(): file_digest(file) for file in _code()},
        "versions": [torch.__version__, np.__version__],
    }
    text = json.dumps(content, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _real(folder: str) -> Path:
    return Path(folder).resolve()


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path}: is missing; the stages before this one write what is in data")
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _code() -> list[Path]:
    # All modules of the stages that this process runs (of thousands, few lie in their folders), and
    # what is compiled for them.
    names = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    folders = {os.path.dirname(name) for name in names if name}
    own = {folder for folder in folders if _real(folder).is_relative_to(STAGES)}
    modules = {Path(name).resolve() for name in names if name and os.path.dirname(name) in own}
    return sorted({*modules, *STAGES.rglob("*.cpp")})
