"""`glyphs`: coverage, side information, determinism, speed; and the geometric augmentation."""

import time
import unicodedata

import pytest
import torch

from glocal.data import load
from glocal.data.augment import jitter
from glocal.data.typefaces import FACES, coverage, parse_name
from glocal.data.types import GlyphData
from glocal.seeding import torch_generator


@pytest.fixture(scope="module")
def glyphs() -> GlyphData:
    """All letters, at the default size."""
    data: GlyphData = load("glyphs")
    return data


def test_size_and_coverage(glyphs: GlyphData) -> None:
    assert len(glyphs) > 20_000
    assert 1850 <= len(glyphs.table) <= 1950
    assert glyphs.images.shape[1:] == (1, 28, 28)
    assert len(glyphs.face_names) == 22
    assert glyphs.domain_names == ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIX", "Computer Modern")
    per_class = glyphs.labels.bincount(minlength=len(glyphs.table))
    assert int(per_class.min()) >= 8
    assert float(per_class.float().mean()) > 12
    assert {"latin", "greek", "cyrillic", "armenian", "georgian"} <= set(glyphs.table.script_names)


def test_no_face_draws_a_letter_twice_and_none_is_blank(glyphs: GlyphData) -> None:
    pairs = glyphs.labels * len(glyphs.face_names) + glyphs.faces
    assert torch.equal(pairs, pairs.sort().values)  # by letter, then by face
    assert len(pairs.unique()) == len(pairs)
    assert float(glyphs.images.flatten(1).max(1).values.min()) > 0.2
    assert float(glyphs.images.min()) == 0
    assert float(glyphs.images.max()) == 1


def test_domains_follow_from_faces(glyphs: GlyphData) -> None:
    for face, name in enumerate(glyphs.face_names):
        domains = glyphs.domains[glyphs.faces == face].unique()
        assert len(domains) == 1
        assert name.startswith(glyphs.domain_names[int(domains)])
    counts = glyphs.domains.bincount()
    assert int(counts[-1]) == 6 * 52  # Computer Modern: A-Z and a-z in six faces


def test_letters_look_like_themselves_across_faces(glyphs: GlyphData) -> None:
    """The upright sans face is a nearest-neighbour classifier of the bold one, far above chance."""
    letters = torch.tensor([glyphs.table.characters.index(c) for c in "ABDEFGHKMNRSTZabdeghkmrstz"])
    keep = torch.isin(glyphs.labels, letters)
    plain, bold = (keep & (glyphs.faces == face) for face in (0, 1))
    a, b = glyphs.images[plain].flatten(1), glyphs.images[bold].flatten(1)
    nearest = torch.cdist(b, a).argmin(1)
    assert (glyphs.labels[plain][nearest] == glyphs.labels[bold]).float().mean() > 0.8


def test_upper_case_is_larger_and_descenders_reach_below_the_baseline(glyphs: GlyphData) -> None:
    def rows(character: str) -> torch.Tensor:
        index = (glyphs.labels == glyphs.table.characters.index(character)) & (glyphs.faces == 0)
        return glyphs.images[index][0, 0].sum(1).nonzero().squeeze(1)

    assert len(rows("O")) > 1.2 * len(rows("o"))
    assert int(rows("p").max()) > int(rows("o").max()) + 2
    assert int(rows("o").max()) == pytest.approx(int(rows("x").max()), abs=1)


@pytest.mark.parametrize(
    ("character", "script", "case", "base", "diacritics"),
    [
        ("é", "latin", "small", "e", ("acute",)),
        ("Ᾱ", "greek", "capital", "alpha", ("macron",)),
        ("ἤ", "greek", "small", "eta", ("psili", "oxia")),
        ("й", "cyrillic", "small", "short i", ()),
        ("Ω", "greek", "capital", "omega", ()),
        ("ﬁ", "latin", "small", "fi", ()),
        ("ᴀ", "latin", "small", "a", ()),
        ("ℂ", "symbol", "capital", "c", ()),
        ("ა", "georgian", "small", "an", ()),
        ("ກ", "lao", "none", "ko", ()),
    ],
)
def test_names_are_taken_apart(character: str, script: str, case: str, base: str, diacritics: tuple[str, ...]) -> None:
    name = parse_name(character)
    assert (name.script, name.case, name.base, name.diacritics) == (script, case, base, diacritics)
    assert name.name == unicodedata.name(character)


def test_only_letters_have_names() -> None:
    with pytest.raises(ValueError, match="must be a letter"):
        parse_name("3")


def test_attributes_describe_the_classes(glyphs: GlyphData) -> None:
    table = glyphs.table
    attributes, names = table.attributes()
    assert attributes.shape == (len(table), len(names))
    assert set(attributes.unique().tolist()) == {0.0, 1.0}
    row = attributes[table.characters.index("é")]
    assert {names[int(j)] for j in row.nonzero()} == {"script=latin", "case=small", "base=e", "with acute"}
    one_hot = sum(len(group) for group in (table.script_names, table.case_names, table.base_names))
    assert torch.equal(attributes[:, :one_hot].sum(1), torch.full((len(table),), 3.0))
    assert torch.equal(glyphs.superclasses, table.scripts[glyphs.labels])


def test_look_alikes_are_the_same_picture(glyphs: GlyphData) -> None:
    table = glyphs.table
    index = table.characters.index
    assert table.look_alikes[index("Α")] == index("A")  # Greek Alpha, Latin A
    assert table.look_alikes[index("В")] == index("B")  # Cyrillic Ve, Latin B
    assert table.look_alikes[index("b")] == index("b")
    first = glyphs.images[(glyphs.faces == 0) & (glyphs.labels == index("A"))]
    twin = glyphs.images[(glyphs.faces == 0) & (glyphs.labels == index("Α"))]
    assert torch.equal(first, twin)
    distinct = load("glyphs", distinct=True)
    assert len(distinct.table) == int((table.look_alikes == torch.arange(len(table))).sum())
    assert torch.equal(distinct.table.look_alikes, torch.arange(len(distinct.table)))
    plain = distinct.images[distinct.faces == 0].flatten(1)
    assert len(plain.unique(dim=0)) > 0.99 * len(plain)  # up to the coarse grid of 28 pixels


def test_options_select() -> None:
    greek = load("glyphs", scripts=("greek",), faces=("DejaVu Serif", "STIX Bold"), size=40, min_faces=5)
    assert greek.images.shape[1:] == (1, 40, 40)
    assert greek.table.script_names == ("greek",)
    assert greek.face_names == (
        "DejaVu Serif",
        "DejaVu Serif Bold",
        "DejaVu Serif Italic",
        "DejaVu Serif Bold Italic",
        "STIX Bold",
    )
    assert greek.labels.bincount().unique().tolist() == [5]
    part = greek.subset(torch.tensor([3, 0]))
    assert torch.equal(part.images[1], greek.images[0])
    images = greek.as_images()
    assert images.class_names == greek.table.characters
    assert images.domain_names == ("DejaVu Serif", "STIX")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size must be between 16 and 128 pixels, got 8"),
        ({"min_faces": 0}, "min_faces must be between 1 and 22, got 0"),
        ({"faces": ("Comic Sans",)}, "faces must be among DejaVu Sans, .*; got 'Comic Sans'"),
        ({"scripts": ("klingon",)}, "scripts must be among armenian, .*, got klingon"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("glyphs", **options)


def test_ten_thousand_glyphs_take_less_than_five_seconds() -> None:
    start = time.process_time()
    data = load("glyphs", scripts=("latin",))
    assert len(data) > 10_000
    assert time.process_time() - start < 5


def test_the_fake_has_the_same_classes_faces_and_families(glyphs: GlyphData) -> None:
    fake = load("glyphs", fake=True)
    assert fake.face_names == glyphs.face_names
    assert fake.domain_names == glyphs.domain_names
    assert abs(len(fake.table) - len(glyphs.table)) <= 20
    assert set(fake.labels.tolist()) == set(range(len(fake.table)))
    families = [face.family for face in FACES]
    expected = [fake.domain_names.index(families[f]) for f in fake.faces.tolist()]
    assert fake.domains.tolist() == expected


def test_computer_modern_offers_basic_letters_only() -> None:
    assert {chr(p) for p in coverage(FACES[-1])} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def test_jitter_without_limits_is_the_identity(glyphs: GlyphData, generator: torch.Generator) -> None:
    images = glyphs.images[:50]
    same = jitter(images, max_degrees=0.0, max_shift=0.0, max_scale=0.0, generator=generator)
    assert torch.allclose(same, images, atol=1e-5)


def test_jitter_shifts_the_centre_of_mass_within_its_limit(generator: torch.Generator) -> None:
    images = torch.zeros(300, 1, 40, 40)
    images[:, :, 18:22, 18:22] = 1
    moved = jitter(images, max_degrees=0.0, max_shift=0.2, max_scale=0.0, generator=generator)
    line = torch.arange(40.0)
    x = (moved[:, 0].sum(1) * line).sum(1) / moved[:, 0].sum((1, 2)) - 19.5
    assert float(x.abs().max()) <= 8.01
    assert float(x.abs().max()) > 7
    assert abs(float(x.mean())) < 1


def test_jitter_turns_oblong_pictures_rigidly(generator: torch.Generator) -> None:
    """A disc stays a disc under rotation, also when the picture is wider than high."""
    v, u = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(80.0) - 39.5, indexing="ij")
    disc = ((u**2 + v**2) < 100).float().expand(20, 1, 40, 80)
    turned = jitter(disc, max_degrees=90.0, max_shift=0.0, max_scale=0.0, generator=generator)
    assert (turned - disc).abs().mean() < 0.01


def test_jitter_is_determined_by_its_generator(glyphs: GlyphData) -> None:
    images = glyphs.images[:20]
    a, b, c = (jitter(images, generator=torch_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    with pytest.raises(ValueError, match="max_shift must be a finite number of at least 0, got -1"):
        jitter(images, max_shift=-1.0, generator=torch_generator(0))
