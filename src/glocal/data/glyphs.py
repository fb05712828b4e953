"""`glyphs`: letters drawn from the typefaces inside matplotlib; class = character, domain = typeface family."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ImageFont

from glocal.data.entry import Entry
from glocal.data.fakes import fake_labels
from glocal.data.typefaces import FACES, Face, LetterName, coverage, parse_name
from glocal.data.types import CharacterTable, GlyphData
from glocal.seeding import torch_generator

EM = 0.68  # size of the em square relative to the picture
BASELINE = 0.72  # height of the baseline, from the top
SIZES = (16, 128)
N_FAKE_CLASSES = 1899


def load_glyphs(
    *,
    size: int = 28,
    scripts: Sequence[str] | None = None,
    faces: Sequence[str] | None = None,
    min_faces: int = 8,
    distinct: bool = False,
) -> GlyphData:
    """Letters in all chosen faces, ordered by code point, then by face.

    A letter keeps its place relative to the baseline and its size relative to the em square, so that `o` and `O`
    differ; the few that are larger than the picture are scaled down. Nothing is random.

    Args:
        size: side of the square pictures in pixels, 16 to 128.
        scripts: keep only these, e.g. `("latin", "greek")`; all by default.
        faces: families (`"DejaVu Serif"`) or single faces (`"DejaVu Serif Bold"`); all 22 by default.
        min_faces: keep letters that at least so many of the chosen faces draw; with few faces, at least one.
        distinct: keep one letter of those with the same outline (Latin A, Greek Alpha, Cyrillic A).

    Raises:
        ValueError: an option out of range, an unknown face or script, or nothing left.
        DataError: matplotlib's font files are missing or corrupt.
    """
    chosen = _check_options(size, faces, min_faces)
    covered = {face: coverage(face) for face in chosen}
    counts = Counter(point for letters in covered.values() for point in letters)
    needed = min(min_faces, len(chosen))
    points = sorted(point for point, count in counts.items() if count >= needed)
    letters = {point: parse_name(chr(point)) for point in points}
    if scripts is not None:
        present = sorted({letter.script for letter in letters.values()})
        unknown = sorted(set(scripts) - set(present))
        if unknown:
            raise ValueError(
                f"scripts must be among {', '.join(present)} (those that {needed} of the chosen faces draw), "
                f"got {', '.join(unknown)}"
            )
        letters = {point: letter for point, letter in letters.items() if letter.script in scripts}
    if not letters:
        raise ValueError(f"no letter is drawn by {needed} of the {len(chosen)} chosen faces: lower min_faces")
    look_alikes = _look_alikes(list(letters))
    if distinct:
        kept = [point for k, point in enumerate(letters) if look_alikes[k] == k]
        letters = {point: letters[point] for point in kept}
        look_alikes = list(range(len(letters)))
    return _draw_all(chosen, covered, letters, look_alikes, size)


def _check_options(size: int, faces: Sequence[str] | None, min_faces: int) -> tuple[Face, ...]:
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size must be between {SIZES[0]} and {SIZES[1]} pixels, got {size}")
    if not 1 <= min_faces <= len(FACES):
        raise ValueError(f"min_faces must be between 1 and {len(FACES)}, got {min_faces}")
    if faces is None:
        return FACES
    valid = list(dict.fromkeys([face.family for face in FACES] + [face.name for face in FACES]))
    for name in faces:
        if name not in valid:
            raise ValueError(f"faces must be among {', '.join(valid)}; got {name!r}")
    return tuple(face for face in FACES if face.family in faces or face.name in faces)


def _look_alikes(points: list[int]) -> list[int]:
    """Index of the first letter with the same outline, by the upright sans face drawn large."""
    reference = FACES[0]
    letters, font = coverage(reference), _font(reference, 64)
    first: dict[object, int] = {}
    found = []
    for k, point in enumerate(points):
        key = (_ink(font, point), None) if point in letters else (point, "not drawn")
        found.append(first.setdefault(key, k))
    return found


def _font(face: Face, em: int) -> ImageFont.FreeTypeFont:
    from glocal.data.files import verified

    return ImageFont.truetype(str(verified(face.file)), em, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: ImageFont.FreeTypeFont, point: int) -> tuple[bytes, int, int, int]:
    """Grey levels of a letter, width, height, and top edge relative to the baseline."""
    mask, (_, top) = font.getmask2(chr(point), mode="L", anchor="ls")
    return bytes(mask), *mask.size, round(top)


def _draw_all(
    faces: tuple[Face, ...],
    covered: dict[Face, frozenset[int]],
    letters: dict[int, LetterName],
    look_alikes: list[int],
    size: int,
) -> GlyphData:
    pixels, labels, drawn_by = [], [], []
    for f, face in enumerate(faces):
        font = _font(face, round(EM * size))
        for k, point in enumerate(letters):
            if point in covered[face]:
                picture = _draw(face, font, point, size)
                if picture is not None:
                    pixels.append(picture)
                    labels.append(k)
                    drawn_by.append(f)
    order = np.lexsort((drawn_by, labels))
    families = list(dict.fromkeys(face.family for face in faces))
    family_of = torch.tensor([families.index(face.family) for face in faces])
    face_index = torch.tensor(drawn_by)[order]
    return GlyphData(
        images=torch.from_numpy(np.stack(pixels)[order]).unsqueeze(1).float().div_(255),
        labels=torch.tensor(labels)[order],
        faces=face_index,
        domains=family_of[face_index],
        face_names=tuple(face.name for face in faces),
        domain_names=tuple(families),
        table=_table(letters, look_alikes),
    )


def _draw(face: Face, font: ImageFont.FreeTypeFont, point: int, size: int) -> np.ndarray | None:
    """A letter as `size` x `size` grey levels, or None if it has no ink."""
    ink, width, height, top = _ink(font, point)
    em = int(font.size)
    while max(width, height) > size:  # a few wide or tall letters
        em -= 1
        ink, width, height, top = _ink(_font(face, em), point)
    picture = np.zeros((size, size), dtype=np.uint8)
    left = (size - width) // 2
    top = min(max(round(BASELINE * size) + top, 0), size - height)
    mask = np.frombuffer(ink, dtype=np.uint8).reshape(height, width)
    picture[top : top + height, left : left + width] = mask
    return picture if mask.any() else None


def _table(letters: dict[int, LetterName], look_alikes: list[int]) -> CharacterTable:
    rows = list(letters.values())

    def code(values: list[str]) -> tuple[torch.Tensor, tuple[str, ...]]:
        names = tuple(sorted(set(values)))
        return torch.tensor([names.index(value) for value in values]), names

    scripts, script_names = code([row.script for row in rows])
    cases, case_names = code([row.case for row in rows])
    bases, base_names = code([row.base for row in rows])
    marks = tuple(sorted({mark for row in rows for mark in row.diacritics}))
    diacritics = torch.zeros(len(rows), len(marks), dtype=torch.bool)
    for k, row in enumerate(rows):
        for mark in row.diacritics:
            diacritics[k, marks.index(mark)] = True
    return CharacterTable(
        characters=tuple(chr(point) for point in letters),
        names=tuple(row.name for row in rows),
        scripts=scripts,
        script_names=script_names,
        cases=cases,
        case_names=case_names,
        bases=bases,
        base_names=base_names,
        diacritics=diacritics,
        diacritic_names=marks,
        look_alikes=torch.tensor(look_alikes),
    )


def fake_glyphs(
    *,
    size: int = 28,
    scripts: Sequence[str] | None = None,
    faces: Sequence[str] | None = None,
    min_faces: int = 8,
    distinct: bool = False,
) -> GlyphData:
    """Noise with the classes and faces of `glyphs`: every class in one random face of each family."""
    chosen = _check_options(size, faces, min_faces)
    families = list(dict.fromkeys(face.family for face in chosen))
    family_of = torch.tensor([families.index(face.family) for face in chosen])
    generator = torch_generator(0, "fake", "glyphs")
    points = range(0x4E00, 0x4E00 + N_FAKE_CLASSES)  # any letters will do
    names = scripts or ("latin", "greek", "cyrillic")
    rows = {
        point: LetterName(f"LETTER {k}", names[k % len(names)], ("small", "capital")[k % 2], f"letter {k // 2}", ())
        for k, point in enumerate(points)
    }
    labels = torch.arange(len(rows)).repeat_interleave(len(families))
    domains = torch.arange(len(families)).repeat(len(rows))
    first = torch.stack([(family_of == d).nonzero()[0, 0] for d in range(len(families))])
    count = family_of.bincount()
    offset = fake_labels(len(labels), 12, generator) % count[domains]
    return GlyphData(
        images=torch.rand((len(labels), 1, size, size), generator=generator),
        labels=labels,
        faces=first[domains] + offset,
        domains=domains,
        face_names=tuple(face.name for face in chosen),
        domain_names=tuple(families),
        table=_table(rows, list(range(len(rows)))),
    )


ENTRIES = (
    Entry(
        name="glyphs",
        summary="letters of many scripts in 22 typefaces, with Unicode names as side information",
        kind="glyphs",
        n="about 24000 pictures, 1899 letters, 22 faces",
        licence="drawn here; fonts: Bitstream Vera/DejaVu, STIX Font License, Computer Modern (BaKoMa)",
        source="generated from the fonts in the wheel matplotlib 3.11.2",
        loader=load_glyphs,
        fake=fake_glyphs,
        files=tuple(face.file for face in FACES),
    ),
)
