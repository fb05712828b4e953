"""Where a result comes from: code, packages, hardware, data."""

import ast
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from glocal.book.catalogue import Chapter
from glocal.book.notebooks import code_cells, code_hash, read_source, source_hash


def provenance(chapter: Chapter, parameters: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Everything known before a run starts; the runner adds start and end."""
    return {
        "slug": chapter.slug,
        "scale": scale,
        "parameters": dict(parameters),
        "source_hash": source_hash(chapter),
        "code_hash": code_hash(chapter),
        "git": git_state(chapter.root),
        "packages": package_versions(),
        "hardware": hardware(),
        "data": data_checksums(chapter, parameters),
    }


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain"))}


def package_versions() -> dict[str, str]:
    """Versions of Python and of every installed package."""
    versions = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **dict(sorted(versions.items(), key=lambda x: x[0].lower()))}


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs of this machine."""
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus(),
    }


def processor_name() -> str:
    """Model name of the processor as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def gpus() -> list[str]:
    """Names of the GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def data_checksums(chapter: Chapter, parameters: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Checksums of the registered data sets that the chapter's parameters or code name."""
    from glocal.data import registry

    constants = {value for value in parameters.values() if isinstance(value, str)}
    for cell in code_cells(read_source(chapter.source)):
        nodes = ast.walk(ast.parse(cell.source))
        constants |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    known = set(registry.entries())
    return {name: registry.checksums(name) for name in sorted(constants & known)}
