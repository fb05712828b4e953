"""A small checkout with three chapters that take a second each, for everything that runs chapters."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

HEADER = """\
---
jupytext:
  text_representation: {{extension: .md, format_name: myst}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
glocal:
  slug: {slug}
  part: theory
  title: "A paper about {slug}"
  authors: [A. Author]
  venue: arXiv
  year: 2024
  cite: author2024{slug}
  arxiv: "2401.00001"
  difficulty: 1
  prerequisites: [counting]
  key_figure: fig-{slug}
  full_scale: {{hours: 1, memory_gb: 1, hardware: none}}
---

# Chapter {slug}

*One sentence.*

```{{code-cell}} ipython3
:tags: [parameters]
seed: int = 0            # the seed
n_seeds: int = 3         # repetitions
device: str = "cpu"      # torch device
dataset: str = "digits"  # data set
scale: str = "small"     # small, full or rehearsal
rate: float = 0.5        # learning rate
widths: list[int] = [8]  # hidden layers
```

```{{code-cell}} ipython3
{code}
```

```{{code-cell}} ipython3
from glocal.book import Claim, above, judge
claim = Claim("C1", "it works", paper="works", source="abstract", criterion=above(0.0, "gain"))
judge({{claim: [1.0 + seed, 1.1 + seed, 1.2 + seed]}}, slug="{slug}", scale=scale)
```
"""


class Project:
    """A checkout in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log"  # one line per execution of a chapter

    def write(self, slug: str, code: str = "", full: str = "rate: 0.1\n") -> None:
        folder = self.root / "notebooks" / "theory"
        folder.mkdir(parents=True, exist_ok=True)
        trace = f"with open({str(self.log)!r}, 'a') as file: print({slug!r}, file=file)\n"
        (folder / f"{slug}.md").write_text(HEADER.format(slug=slug, code=trace + dedent(code)))
        (folder / f"{slug}.full.yaml").write_text(full)

    def executed(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def runs(self, slug: str) -> list[Path]:
        return sorted((self.root / "runs" / slug).glob("[!.]*"))

    def leftovers(self) -> list[Path]:
        return sorted((self.root / "runs").glob("*/.partial-*"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nparts:\n- caption: Papers\n  chapters: []\n")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    import time

    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not true within {seconds} s")
            time.sleep(0.1)

    return wait
