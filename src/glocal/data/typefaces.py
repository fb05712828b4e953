"""The typefaces inside matplotlib's wheel: verified files, the letters they cover, what Unicode says of a letter."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from glocal.data.files import Wheel, WheelFile, verified

MATPLOTLIB = Wheel("matplotlib", "3.11.2", "requirements.txt")
BASIC_LATIN = frozenset(range(0x41, 0x5B)) | frozenset(range(0x61, 0x7B))
SCRIPTS = frozenset(
    ("latin", "greek", "cyrillic", "armenian", "georgian", "lao", "hebrew", "arabic", "coptic", "nko", "tifinagh")
)
CASES = {"Lu": "capital", "Ll": "small", "Lt": "title"}


@dataclass(frozen=True)
class Face:
    """One typeface: its family is the style domain.

    Args:
        family: e.g. `DejaVu Serif`.
        style: e.g. `Bold Italic`; empty for the upright text face.
        file: its TrueType file.
        only_basic: use only A-Z and a-z, because the other code points hold unrelated symbols.
    """

    family: str
    style: str
    file: WheelFile
    only_basic: bool = False

    @property
    def name(self) -> str:
        """Family and style."""
        return f"{self.family} {self.style}".strip()


def _face(family: str, style: str, stem: str, sha256: str, *, only_basic: bool = False) -> Face:
    path = f"matplotlib/mpl-data/fonts/ttf/{stem}.ttf"
    return Face(family, style, WheelFile(MATPLOTLIB, path, sha256), only_basic)


FACES = (
    _face("DejaVu Sans", "", "DejaVuSans", "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22"),
    _face("DejaVu Sans", "Bold", "DejaVuSans-Bold", "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167"),
    _face(
        "DejaVu Sans",
        "Oblique",
        "DejaVuSans-Oblique",
        "ccdf74b350f11fd3dd5774de50e5e6346a1a5da1f5b7d5fb83590665e97a5213",
    ),
    _face(
        "DejaVu Sans",
        "Bold Oblique",
        "DejaVuSans-BoldOblique",
        "6edf0283160186af451cbee71e7b845f2e4cabf264bb992ce668c83c25465e6f",
    ),
    _face("DejaVu Serif", "", "DejaVuSerif", "107244956e9962b9e96faccdc551825e0ae0898ae13737133e1b921a2fd35ffa"),
    _face(
        "DejaVu Serif", "Bold", "DejaVuSerif-Bold", "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676"
    ),
    _face(
        "DejaVu Serif",
        "Italic",
        "DejaVuSerif-Italic",
        "3e7994fbc54fa10ce3352a42d548fadd7d9cadb69cb1109bc9d960f6dac57f04",
    ),
    _face(
        "DejaVu Serif",
        "Bold Italic",
        "DejaVuSerif-BoldItalic",
        "d93efec7a9d2e826768d1a2ee95b95870e15e29599a84f3484af1de1cec2e181",
    ),
    _face("DejaVu Sans Mono", "", "DejaVuSansMono", "602ec86b8948cfcd956482fe64f94c36c867770149ef2f791d4613f443bcecb3"),
    _face(
        "DejaVu Sans Mono",
        "Bold",
        "DejaVuSansMono-Bold",
        "baada9a5172fe20886251aff0433fc38461912d5daf07287e7bee56620a8da96",
    ),
    _face(
        "DejaVu Sans Mono",
        "Oblique",
        "DejaVuSansMono-Oblique",
        "28052813f7a709fc89f52d192dc995ef4f0fdc5c3d7b73a49d6849b1916d0cd0",
    ),
    _face(
        "DejaVu Sans Mono",
        "Bold Oblique",
        "DejaVuSansMono-BoldOblique",
        "a69081c15c76c827e0a27a5a7f5c74b6135c843499955495ffa8c20d3a98288b",
    ),
    _face("STIX", "", "STIXGeneral", "167378031e2dddc6216d67819c9260e9a06ffc4c478e4e23cb98a6fd44b183c2"),
    _face("STIX", "Bold", "STIXGeneralBol", "e8533dc7083fa346bda1933d60ea4a83b67d0945bceaf1b3541f82b4a0e2c6a0"),
    _face("STIX", "Italic", "STIXGeneralItalic", "6cfcb333d22b7c3c623bdfd40174f14c85c3d6731ca6166c1edc80140eae8527"),
    _face(
        "STIX", "Bold Italic", "STIXGeneralBolIta", "98788fd4ba48dfbb2bd026c0e20a247a8b06c7372879628b7a6bb0d5bb09736c"
    ),
    _face(
        "Computer Modern",
        "Roman",
        "cmr10",
        "4dd9761b058c009db9b2145f55ee6617d093c273dd3d6c5b3e43ff6110fa9bf6",
        only_basic=True,
    ),
    _face(
        "Computer Modern",
        "Bold",
        "cmb10",
        "074497b50c43ea57597181591f9893d38fc12a87e95104f5657fc2481f61a23a",
        only_basic=True,
    ),
    _face(
        "Computer Modern",
        "Sans",
        "cmss10",
        "7df91a83d05b2e471ec638cb0b435a360a3c792b09fc42a7da67e91f2e79115a",
        only_basic=True,
    ),
    _face(
        "Computer Modern",
        "Italic",
        "cmti10",
        "f9f1f9f654308ae82f7be4441ae89b080896b34cc220bbea173c5e9adcfe3ef7",
        only_basic=True,
    ),
    _face(
        "Computer Modern",
        "Typewriter",
        "cmtt10",
        "6211f09ae93599991afda970c24669dad1a77e253d915624fbf212f702f071d7",
        only_basic=True,
    ),
    _face(
        "Computer Modern",
        "Math Italic",
        "cmmi10",
        "3092965b8811fd6a6765799664845181fc1dd1330b937f915808c485d316234d",
        only_basic=True,
    ),
)


@cache
def coverage(face: Face) -> frozenset[int]:
    """Code points of the letters (Unicode category L) that a face draws."""
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

    path = verified(face.file)
    with TTFont(path, lazy=True) as font:
        points = font.getBestCmap().keys()
        letters = frozenset(p for p in points if unicodedata.category(chr(p)).startswith("L"))
    return letters & BASIC_LATIN if face.only_basic else letters


@dataclass(frozen=True)
class LetterName:
    """A Unicode name taken apart.

    Args:
        name: the whole name.
        script: e.g. `latin`; `symbol` for letters without a script, such as `DOUBLE-STRUCK CAPITAL C`.
        case: `capital`, `small`, `title` or `none`.
        base: the letter without case and diacritics, in lower case, e.g. `alpha`.
        diacritics: what follows WITH, in lower case, e.g. `("psili", "oxia")`.
    """

    name: str
    script: str
    case: str
    base: str
    diacritics: tuple[str, ...]


def parse_name(character: str) -> LetterName:
    """Take the Unicode name of a letter apart.

    Raises:
        ValueError: the character is not a letter.
    """
    category = unicodedata.category(character)
    if not category.startswith("L"):
        raise ValueError(f"character must be a letter (Unicode category L), got {character!r} ({category})")
    name = unicodedata.name(character)
    first = name.split()[0].lower()
    stem, *marks = name.split(" WITH ")
    base = re.sub(r"^.*\b(?:LETTER|LIGATURE|VOWEL SIGN)\s+", "", stem)
    base = re.sub(r"^(?:.*\b(?:CAPITAL|SMALL)\s+)", "", base)
    return LetterName(
        name=name,
        script=first if first in SCRIPTS else "symbol",
        case=CASES.get(category, "none"),
        base=base.lower(),
        diacritics=tuple(part.lower() for mark in marks for part in mark.split(" AND ")),
    )
