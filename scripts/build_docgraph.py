"""Build `src/glocal/data/docgraph.npz`, the citation graph of the scientific Python documentation.

A node is a documented public function or class, an undirected edge joins two objects of one package when the
See Also section or a :func: or :class: role of one docstring names the other. Features are a binary bag of words of
the text before See Also, the class is the package area. No docstring text is stored.

Run it in the project's environment (`.venv/bin/python scripts/build_docgraph.py`): the pinned packages give the very
arrays that are stored; `--check` compares instead of writing. The result does not depend on the machine.
"""

import argparse
import importlib
import inspect
import io
import re
import sys
import types
import warnings
import zipfile
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "src/glocal/data/docgraph.npz"
PACKAGES = {"numpy": "numpy", "scipy": "scipy", "scikit-learn": "sklearn", "scikit-image": "skimage"}
PACKAGES |= {"networkx": "networkx", "torch": "torch"}
N_WORDS, MIN_DOCUMENTS, MIN_WORDS = 600, 10, 9

# Public namespaces and the area of what they contain. A star stands for every public module of the package.
AREAS = {
    "networkx": "networkx",
    "numpy": "numpy",
    "numpy.fft": "numpy",
    "numpy.ma": "numpy.ma",
    "numpy.linalg": "linalg+sparse",
    "scipy.linalg": "linalg+sparse",
    "scipy.sparse": "linalg+sparse",
    "scipy.sparse.linalg": "linalg+sparse",
    "scipy.sparse.csgraph": "linalg+sparse",
    "scipy.special": "scipy.special",
    "scipy.stats": "scipy.stats",
    "scipy.stats.qmc": "scipy.stats",
    "scipy.signal": "scipy.signal",
    "scipy.signal.windows": "scipy.signal",
    "scipy.optimize": "optimize+interpolate+integrate",
    "scipy.interpolate": "optimize+interpolate+integrate",
    "scipy.integrate": "optimize+interpolate+integrate",
    "scipy.ndimage": "skimage+ndimage",
    "skimage.*": "skimage+ndimage",
    "sklearn.*": "sklearn",
    "torch": "torch",
    "torch.linalg": "torch",
    "torch.fft": "torch",
    "torch.nn": "torch.nn",
    "torch.nn.functional": "torch.nn",
    "torch.nn.init": "torch.nn",
}
NOT_SUBJECT_MATTER = (
    "sklearn.utils",
    "sklearn.base",
    "sklearn.exceptions",
    "sklearn.externals",
    "skimage.util.lookfor",
)
ALIASES = "np nx sp plt nn ma mpl pd"
ROOTS = "numpy scipy sklearn skimage networkx torch matplotlib"
ROLE = re.compile(r":(?:func|class):`[~!]?(?:[^`<]*<)?([\w.]+)>?`")
SEE_ALSO = re.compile(r"^See Also\s*\n-{3,}\s*\n", re.MULTILINE)
SECTION = re.compile(r"^\S[^\n]*\n-{3,}\s*$", re.MULTILINE)
# a dotted reference into one of the packages, or a package's name: deleted, because it would spell the class out
GIVEAWAY = re.compile(
    rf"\b(?:{'|'.join((ROOTS + ' ' + ALIASES).split())})(?:\.\w+)*\b|\bpytorch\b|\bscikit-\w+\b", re.IGNORECASE
)


def namespaces() -> list[tuple[str, str]]:
    """Module names and their areas, with the stars written out."""
    found = []
    for name, area in AREAS.items():
        if not name.endswith(".*"):
            found.append((name, area))
            continue
        root = importlib.import_module(name.removesuffix(".*"))
        for child in sorted(root.__all__):
            member = getattr(root, child)
            if isinstance(member, types.ModuleType) and not member.__name__.startswith(NOT_SUBJECT_MATTER):
                found.append((f"{root.__name__}.{child}", area))
    return found


def collect() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Docstring and area of each object by its shortest public path, and every public path -> that shortest one."""
    paths = defaultdict(list)
    objects, areas = {}, {}
    for name, area in namespaces():
        module = importlib.import_module(name)
        for attribute in sorted(getattr(module, "__all__", None) or dir(module)):
            try:
                value = getattr(module, attribute, None)
            except ImportError:  # experimental estimators must be switched on
                continue
            if attribute.startswith("_") or isinstance(value, types.ModuleType) or not callable(value):
                continue
            home = getattr(value, "__module__", None) or name
            if home.split(".")[0] != name.split(".")[0] or not inspect.getdoc(value):
                continue
            paths[id(value)].append(f"{name}.{attribute}")
            objects[id(value)] = value
            areas[f"{name}.{attribute}"] = area
    shortest = {key: min(found, key=lambda p: (p.count("."), len(p), p)) for key, found in paths.items()}
    docs = {path: inspect.getdoc(objects[key]) or "" for key, path in shortest.items()}
    canonical = {path: shortest[key] for key, found in paths.items() for path in found}
    return dict(sorted(docs.items())), areas, canonical


def split_doc(doc: str) -> tuple[str, str]:
    """Text before the See Also section, and the body of that section."""
    match = SEE_ALSO.search(doc)
    if not match:
        return doc, ""
    rest = doc[match.end() :]
    after = SECTION.search(rest)
    return doc[: match.start()], rest[: after.start()] if after else rest


def mentions(doc: str) -> list[str]:
    """Names in the entries of the See Also section and in :func: and :class: roles."""
    _, section = split_doc(doc)
    names = ROLE.findall(doc)
    for line in section.splitlines():
        if line and not line[0].isspace():  # an entry; indented lines describe it
            entry = re.sub(r":\w+:`[~!]?([^`]*)`", r"\1", line).split(" :")[0].rstrip(":")
            candidates = [part.strip(" `~") for part in entry.split(",")]
            names += [name for name in candidates if re.fullmatch(r"[A-Za-z_][\w.]*", name)]
    return names


def find_edges(docs: dict[str, str], canonical: dict[str, str]) -> set[tuple[str, str]]:
    """Pairs of node names in alphabetical order."""
    by_last = defaultdict(list)
    for path in sorted(canonical):
        by_last[path.rpartition(".")[2]].append(path)

    def resolve(source: str, name: str) -> str | None:
        module, root = source.rpartition(".")[0], source.split(".")[0]
        if name.split(".")[0] in {*ROOTS.split(), *ALIASES.split()} - {root} and "." in name:
            return None  # another package
        while module:  # the same module first, then the ones around it
            if f"{module}.{name}" in canonical:
                return canonical[f"{module}.{name}"]
            module = module.rpartition(".")[0]
        if name in canonical:
            return canonical[name]
        same = [path for path in by_last[name.rpartition(".")[2]] if path.split(".")[0] == root]
        same = [path for path in same if path.endswith(f".{name}")] or ([] if "." in name else same)
        return canonical[min(same, key=lambda p: (p.count("."), len(p), p))] if same else None

    edges = set()
    for source, doc in docs.items():
        for name in mentions(doc):
            target = resolve(source, name)
            if target is not None and target != source:
                edges.add((min(source, target), max(source, target)))
    return edges


def bag_of_words(docs: dict[str, str]) -> dict[str, set[str]]:
    """Distinct words of each text before See Also; giveaways and English stop words are left out."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    bags = {}
    for name, doc in docs.items():
        text = GIVEAWAY.sub(" ", split_doc(doc)[0]).lower()
        bags[name] = set(re.findall(r"[a-z]{3,}", text)) - ENGLISH_STOP_WORDS
    return bags


def build() -> dict[str, np.ndarray]:
    """All stored arrays; features are bits, columns ordered by falling document frequency."""
    docs, areas, canonical = collect()
    bags = bag_of_words(docs)
    docs = {name: doc for name, doc in docs.items() if len(bags[name]) >= MIN_WORDS}
    canonical = {path: name for path, name in canonical.items() if name in docs}
    edges = find_edges(docs, canonical)
    names = sorted({name for edge in edges for name in edge})
    counts = Counter(word for name in names for word in bags[name])
    frequent = [word for word, count in counts.items() if count >= MIN_DOCUMENTS]
    words = sorted(frequent, key=lambda word: (-counts[word], word))[:N_WORDS]
    classes = sorted(set(AREAS.values()))
    index = {name: k for k, name in enumerate(names)}
    x = np.array([[word in bags[name] for word in words] for name in names])
    versions = [f"{package} {metadata.version(package).split('+')[0]}" for package in PACKAGES]
    return {
        "x_bits": np.packbits(x, axis=1),
        "edges": np.array(sorted((index[a], index[b]) for a, b in edges), dtype=np.int16),
        "y": np.array([classes.index(areas[name]) for name in names], dtype=np.uint8),
        "names": as_bytes(names),
        "words": as_bytes(words),
        "classes": as_bytes(classes),
        "versions": as_bytes(versions),
    }


def as_bytes(lines: list[str]) -> np.ndarray:
    """Lines of ASCII text as one array of bytes."""
    return np.frombuffer("\n".join(lines).encode("ascii"), dtype=np.uint8)


def write(arrays: dict[str, np.ndarray], path: Path) -> None:
    """A compressed npz without time stamps, so that the same arrays give the same file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


def main() -> int:
    """Write the file, or compare it with what the installed packages give."""
    parser = argparse.ArgumentParser(description="Build the docgraph data set from the installed packages.")
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    parser.add_argument("--output", type=Path, default=TARGET, help="where to write (default: the package)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # deprecated names are touched while namespaces are listed
    arrays = build()
    if options.check:
        with np.load(options.output) as stored:
            different = [name for name in arrays if not np.array_equal(arrays[name], stored[name])]
        print("identical" if not different else f"different: {', '.join(different)}")
        return bool(different)
    write(arrays, options.output)
    degrees = np.bincount(arrays["edges"].ravel())
    homophily = (arrays["y"][arrays["edges"]][:, 0] == arrays["y"][arrays["edges"]][:, 1]).mean()
    print(f"{options.output}: {options.output.stat().st_size} bytes, {len(arrays['y'])} nodes, ", end="")
    print(f"{len(arrays['edges'])} edges, degree: median {np.median(degrees):g}, maximum {degrees.max()}, ", end="")
    print(f"{(degrees <= 6).mean():.1%} at most 6; homophily {homophily:.3f}")
    print(dict(zip(arrays["classes"].tobytes().decode().split("\n"), np.bincount(arrays["y"]).tolist(), strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
