"""Problems for supervised dictionary learning: mixed digits, known factors, docstrings as imbalanced text."""

import ast
import importlib.util
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.types import ImageData, TableData
from glocal.supervision.sdl import Lifted, Problem, project_rank, with_intercept

PACKAGES = ("scipy", "sklearn", "skimage", "networkx")
# folders without documentation of their own: tests, vendored code, private helpers
SKIPPED = frozenset({"tests", "externals", "_lib", "benchmarks", "array_api_compat", "array_api_extra"})
TELLTALE = frozenset({*PACKAGES, "np", "nx", "plt", "sp", "scikit", "ndarray", "array_like"})


@dataclass(frozen=True)
class Corpus:
    """Texts with real covariates.

    Args:
        texts: what is turned into words.
        groups: index into `group_names` of each text.
        group_names: for instance one per package.
        covariates: one row per text, unscaled.
        covariate_names: one per column.
    """

    texts: tuple[str, ...]
    groups: Int[Tensor, " n"]
    group_names: tuple[str, ...]
    covariates: Float[Tensor, "n q"]
    covariate_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Atoms:
    """Images as columns: those that the data are mixed of and those that decide the label."""

    x: Float[Tensor, "p atoms"]
    y: Float[Tensor, "p atoms"]
    signs: Float[Tensor, "atoms 1"]


def low_rank_pair(table: TableData, n: int, r: int, *, classes: tuple[str, str], generator: torch.Generator) -> Problem:
    r"""Two classes of a table as $X$ of rank `r` with $\lambda_{\max}(XX^\top) = 1$, without covariates or intercept.

    Args:
        table: rows are examples.
        n: examples to draw.
        r: rank of the truncation; 0 keeps $X$ as it is.
        classes: names of the two classes, the second is the positive one.
        generator: draws the examples.
    """
    ids = [table.class_names.index(name) for name in classes]
    rows = ((table.labels == ids[0]) | (table.labels == ids[1])).nonzero()[:, 0]
    chosen = rows[torch.randperm(len(rows), generator=generator)[:n]]
    x = table.x[chosen].double().T
    x = x / torch.linalg.matrix_norm(x, ord=2)
    x = project_rank(x, r) if r else x
    labels = (table.labels[chosen] == ids[1]).double()[None]
    return Problem(x, labels, x.new_zeros(0, len(chosen)))


def stack(problems: list[Problem]) -> Problem:
    """Problems of equal size side by side, along a new first axis."""
    return Problem(*(torch.stack([getattr(p, name) for p in problems]) for name in ("x", "labels", "covariates")))


def digit_atoms(
    images: ImageData,
    atoms_x: list[int],
    atoms_y: list[int],
    per_class: int,
    *,
    margin: int = 0,
    size: int,
    generator: torch.Generator,
) -> Atoms:
    r"""`per_class` images of each class for $W$ and for $W_Y$, and the signs $\beta = \pm1$ of the latter's classes.

    Args:
        images: square images.
        atoms_x: classes of the atoms of the data.
        atoms_y: classes of the atoms of the label; equal to `atoms_x` for a control without discrepancy
            (the same images).
        per_class: images per class.
        margin: pixels to cut from each side first; in MNIST four of them are blank.
        size: side length after average pooling; what is left of the side must be a multiple.
        generator: draws the images.
    """
    side = images.images.shape[-1] - 2 * margin
    if side < size or side % size:
        raise ValueError(f"size must divide the side of the images without the margins, {side}, got {size}")

    def draw(classes: list[int]) -> Tensor:
        parts = []
        for c in classes:
            rows = (images.labels == c).nonzero()[:, 0]
            chosen = images.images[rows[torch.randperm(len(rows), generator=generator)[:per_class]]].double()
            central = chosen[..., margin : margin + side, margin : margin + side]
            parts.append(torch.nn.functional.avg_pool2d(central, side // size).flatten(1))
        return torch.cat(parts).T

    x = draw(atoms_x)
    y = x if atoms_y == atoms_x else draw(atoms_y)
    signs = torch.ones(y.shape[1], 1, dtype=x.dtype)
    signs[y.shape[1] // 2 :] = -1
    return Atoms(x, y, signs)


def mixed_digits(atoms: Atoms, n: int, noise: float, *, generator: torch.Generator) -> Problem:
    r"""The paper's simulation: $X = WH + \text{noise}$ with $H \sim U(0,1)$, labels from other atoms.

    $\Pr(y=1) = \sigma(m_s - \bar m)$ with $m = \beta^\top W_Y^\top WH$.
    The labels depend on the noise-free part; the mean of $m$ is that of the law of $H$, so that splits agree.
    The only covariate is the intercept.
    """
    h = torch.rand(atoms.x.shape[1], n, generator=generator, dtype=atoms.x.dtype)
    clean = atoms.x @ h
    direction = atoms.signs.T @ atoms.y.T
    mean = 0.5 * direction @ atoms.x.sum(1, keepdim=True)
    prob = (direction @ clean - mean).sigmoid()
    labels = (torch.rand(1, n, generator=generator, dtype=clean.dtype) < prob).to(clean.dtype)
    x = clean + noise * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return Problem(x, labels, with_intercept(n, dtype=clean.dtype, device=clean.device))


def known_factors(
    n: int, p: int, r: int, noise: float, strength: float, *, generator: torch.Generator
) -> tuple[Problem, Lifted]:
    r"""The generative filter model and its true $(A, B)$.

    $x_s = W h_s + \sigma\varepsilon_s$ and $y_s \sim \sigma(\beta^\top W^\top x_s)$.
    $W$ has orthonormal columns, $h_s$ and $\varepsilon_s$ are standard normal, $\lVert\beta\rVert$ is `strength`.
    """
    w = torch.linalg.qr(torch.randn(p, r, generator=generator, dtype=torch.float64)).Q
    beta = torch.randn(r, 1, generator=generator, dtype=w.dtype)
    a = w @ (beta * strength / beta.norm())
    b = w @ torch.randn(r, n, generator=generator, dtype=w.dtype)
    x = b + noise * torch.randn(p, n, generator=generator, dtype=w.dtype)
    labels = (torch.rand(1, n, generator=generator, dtype=w.dtype) < (a.T @ x).sigmoid()).to(w.dtype)
    return Problem(x, labels, x.new_zeros(0, n)), Lifted(a, b, x.new_zeros(0, 1))


def docstrings(packages: tuple[str, ...] = PACKAGES, *, smallest: int = 200, most: int = 700) -> Corpus:
    """Docstrings of the public functions and classes of installed packages, read from their files.

    Nothing is imported. The text is the prose before the first example, without the names of the packages; three
    covariates come from the code beside it: the logarithm of the length, the number of parameters, whether there is an
    example.

    Args:
        packages: import names; the group of a text is its package.
        smallest: shortest docstring that counts (characters).
        most: docstrings per package, the first ones in the order of the files.

    Raises:
        ValueError: a package is not installed.
    """
    texts: list[str] = []
    groups: list[int] = []
    covariates: list[list[float]] = []
    for group, package in enumerate(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"packages must be installed, got {package!r}: pip install -r requirements.txt")
        root = Path(next(iter(spec.submodule_search_locations)))
        full = len(texts) + most
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            if len(texts) >= full:
                break
            if SKIPPED.isdisjoint(parts) and not file.name.startswith("test_"):
                for node in ast.parse(file.read_text(encoding="utf-8")).body:
                    found = _documented(node)
                    if found is not None and len(found[0]) >= smallest and len(texts) < full:
                        texts.append(_prose(found[0]))
                        groups.append(group)
                        covariates.append([math.log(len(found[0])), float(found[1]), float(">>>" in found[0])])
    names = ("log length", "parameters", "has an example")
    return Corpus(tuple(texts), torch.tensor(groups), packages, torch.tensor(covariates).double(), names)


def _documented(node: ast.stmt) -> tuple[str, int] | None:
    """Docstring and number of parameters of a public function or class, else None."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return None
    text = ast.get_docstring(node)
    function: ast.stmt | None = node
    if isinstance(node, ast.ClassDef):
        function = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    count = 0
    if isinstance(function, ast.FunctionDef):
        arguments = function.args
        count = sum(
            a.arg not in ("self", "cls") for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        )
    return (text, count) if text else None


def _prose(text: str) -> str:
    """Lower-case words of a docstring up to its examples, without package names and import aliases."""
    text = re.split(r"\n\s*Examples?\s*\n\s*-+|>>>", text)[0]
    words = re.findall(r"[a-z]{3,}", text.lower())
    return " ".join(word for word in words if word not in TELLTALE and not any(name in word for name in PACKAGES))


def fake_corpus(n: int = 160, q: int = 3, *, generator: torch.Generator) -> Corpus:
    """Random words in four groups with `q` random covariates."""
    vocabulary = [f"word{chr(97 + k)}" for k in range(26)]
    draws = torch.randint(len(vocabulary), (n, 30), generator=generator).tolist()
    texts = tuple(" ".join(vocabulary[k] for k in row) for row in draws)
    covariates = torch.randn(n, q, generator=generator, dtype=torch.float64)
    names = tuple(f"covariate {k}" for k in range(q))
    return Corpus(texts, torch.arange(n) % 4, tuple(f"group {k}" for k in range(4)), covariates, names)


def text_split(
    corpus: Corpus, positive: int, sizes: tuple[int, int, int], share: float, *, generator: torch.Generator
) -> tuple[tuple[Int[Tensor, " m"], ...], Float[Tensor, " n"]]:
    """Rows of a train, validation and test part with the same `share` of positives, and the label of every text.

    Raises:
        ValueError: there are too few texts of either kind.
    """
    labels = (corpus.groups == positive).double()
    rows = [(labels == value).nonzero()[:, 0] for value in (0, 1)]
    rows = [part[torch.randperm(len(part), generator=generator)] for part in rows]
    chosen, used = [], [0, 0]
    for size in sizes:
        counts = (size - round(share * size), round(share * size))
        if any(used[k] + counts[k] > len(rows[k]) for k in (0, 1)):
            raise ValueError(
                f"sizes {sizes} with a share of {share:g} need more texts than the {len(rows[0])} negative and "
                f"{len(rows[1])} positive ones: ask for fewer"
            )
        chosen.append(torch.cat([rows[k][used[k] : used[k] + counts[k]] for k in (0, 1)]))
        used = [used[k] + counts[k] for k in (0, 1)]
    return tuple(chosen), labels


def text_problems(
    corpus: Corpus, parts: tuple[Int[Tensor, " m"], ...], labels: Float[Tensor, " n"], n_words: int
) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Tf-idf columns and standardised covariates of each part, fitted on the first; and the words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(max_features=n_words, stop_words="english")
    vectorizer.fit([corpus.texts[i] for i in parts[0].tolist()])
    center = corpus.covariates[parts[0]].mean(0)
    spread = corpus.covariates[parts[0]].std(0).clamp(min=1e-6)
    problems = []
    for part in parts:
        x = torch.from_numpy(vectorizer.transform([corpus.texts[i] for i in part.tolist()]).toarray().T.copy())
        covariates = ((corpus.covariates[part] - center) / spread).clamp(-5, 5).T.contiguous()
        problems.append(Problem(x, labels[part][None], with_intercept(len(part), covariates)))
    return tuple(problems), tuple(vectorizer.get_feature_names_out().tolist())


def image_problem(images: ImageData, rows: Int[Tensor, " m"]) -> Problem:
    """Images as columns, class 1 is positive, an intercept as the only covariate."""
    x = images.images[rows].double().flatten(1).T.contiguous()
    return Problem(x, (images.labels[rows] == 1).double()[None], with_intercept(len(rows), dtype=x.dtype))
