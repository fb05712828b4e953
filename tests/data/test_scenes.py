"""`scenes`: the pictures agree with the factors, masks, boxes and captions they come with."""

import math
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data import load
from glocal.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES, STYLES, TEXTURES, look_again, sample_factors
from glocal.data.scene_render import PALETTE, hashed, render, signed_distance, smooth_noise, texture_shade
from glocal.data.scenes import SceneData, render_scenes
from glocal.seeding import torch_generator

NO_PHOTO = ("plain", "gradient", "noise")


@pytest.fixture(scope="module")
def scenes() -> SceneData:
    """Scenes of all kinds."""
    data: SceneData = load("scenes", n=400, styles=STYLES)
    return data


def test_shapes_and_ranges(scenes: SceneData) -> None:
    assert scenes.images.shape == (400, 3, 32, 32)
    assert scenes.masks.shape == (400, 5, 32, 32)
    assert 0 <= float(scenes.images.min()) <= float(scenes.images.max()) <= 1
    assert torch.equal(scenes.places, torch.arange(400))
    counts = scenes.factors.present.sum(1)
    assert sorted(counts.unique().tolist()) == [1, 2, 3, 4, 5]
    for name, values in (("shapes", SHAPES), ("colours", COLOURS), ("textures", TEXTURES)):
        assert getattr(scenes.factors, name).unique().tolist() == list(range(len(values)))
    assert scenes.factors.styles.unique().tolist() == list(range(len(STYLES)))
    assert scenes.factors.backgrounds.unique().tolist() == list(range(len(BACKGROUNDS)))


def test_masks_are_disjoint_and_only_present_objects_are_seen(scenes: SceneData) -> None:
    assert int(scenes.masks.sum(1).max()) == 1
    assert not (scenes.visible & ~scenes.factors.present).any()
    assert (scenes.visible == scenes.factors.present).float().mean() > 0.98  # few are hidden behind others


def test_boxes_are_tight(scenes: SceneData) -> None:
    boxes, masks = scenes.boxes(), scenes.masks
    for i, o in scenes.visible.nonzero()[:200].tolist():
        rows, columns = masks[i, o].any(1).nonzero(), masks[i, o].any(0).nonzero()
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[i, o].tolist() == [float(value) for value in expected]
    assert not boxes[~scenes.visible].any()


def test_segmentation_names_the_shape_of_every_pixel(scenes: SceneData) -> None:
    segmentation = scenes.segmentation()
    assert torch.equal(segmentation > 0, scenes.masks.any(1))
    for i, o in scenes.visible.nonzero()[:50].tolist():
        assert segmentation[i][scenes.masks[i, o]].unique().tolist() == [1 + int(scenes.factors.shapes[i, o])]


def test_objects_have_their_colour() -> None:
    data = load("scenes", n=200, n_objects=(1, 1), textures=("solid",), backgrounds=NO_PHOTO, scales=(0.4, 0.6))
    inner = -torch.nn.functional.max_pool2d(-data.masks.float(), 3, 1, 1)  # leave the smooth edge out
    weight = inner.sum((1, 2, 3))
    mean = (data.images * inner).sum((2, 3)) / weight[:, None]
    seen = weight > 0
    expected = PALETTE[data.factors.colours[:, 0]]
    assert seen.float().mean() > 0.9
    assert torch.allclose(mean[seen], expected[seen], atol=0.01)


def test_centre_of_mass_is_the_given_place() -> None:
    data = load("scenes", n=100, n_objects=(1, 1), shapes=("circle", "square", "ring", "cross"), size=64)
    line = (torch.arange(64) + 0.5) / 32 - 1
    mask = data.masks[:, 0].float()
    area = mask.sum((1, 2))
    x, y = (mask.sum(1) * line).sum(1) / area, (mask.sum(2) * line).sum(1) / area
    assert torch.allclose(torch.stack([x, y], 1), data.factors.centres[:, 0], atol=0.03)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 0.9**2),
        ("square", 1.56**2),
        ("ring", math.pi * (0.9**2 - 0.46**2)),
        ("cross", 4 * 0.9 * 0.3 * 2 - 0.36),
        ("star", 10 * 0.5 * 0.95 * 0.95 * 0.45 * math.sin(math.pi / 5)),
    ],
)
def test_shapes_have_their_area(shape: str, area: float) -> None:
    line = (torch.arange(600) + 0.5) / 300 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    inside = signed_distance(shape, u[None], v[None])[0] < 0
    assert float(inside.float().mean() * 4) == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_their_frame_and_differ(shape: str) -> None:
    line = (torch.arange(200) + 0.5) / 100 * 1.2 - 1.2
    v, u = torch.meshgrid(line, line, indexing="ij")
    inside = signed_distance(shape, u[None], v[None])[0] < 0
    assert not inside[torch.maximum(u.abs(), v.abs()) > 1.02].any()
    assert torch.equal(inside, inside.flip(1)) or shape == "crescent"
    for other in SHAPES:
        if other != shape:
            twin = signed_distance(other, u[None], v[None])[0] < 0
            assert (inside & twin).sum() / (inside | twin).sum() < 0.9


def test_textures_are_dark_in_part() -> None:
    line = (torch.arange(300) + 0.5) / 150 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    shares = [float((texture_shade(name, u[None], v[None]) < 1).float().mean()) for name in TEXTURES]
    assert shares[0] == 0
    assert all(0.2 < share < 0.6 for share in shares[1:])


def test_later_objects_hide_earlier_ones(generator: torch.Generator) -> None:
    factors = sample_factors(1, n_objects=(2, 2), shapes=("circle",), generator=generator, scales=(0.5, 0.5))
    factors = replace(factors, centres=torch.zeros(1, 2, 2), scales=torch.tensor([[0.3, 0.6]]))
    _, masks = render(replace(factors, backgrounds=torch.zeros(1, dtype=torch.long)), 32)
    assert not masks[0, 0].any()
    assert masks[0, 1].any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), style=st.sampled_from(STYLES), pick=st.lists(st.integers(0, 5), min_size=1))
def test_a_subset_of_factors_renders_the_same_pictures(seed: int, style: str, pick: list[int]) -> None:
    factors = sample_factors(6, styles=(style,), backgrounds=NO_PHOTO, generator=torch_generator(seed))
    images, masks = render(factors, 24)
    index = torch.tensor(pick)
    part, part_masks = render(factors.subset(index), 24)
    assert torch.allclose(part, images[index], atol=1e-5)
    assert torch.equal(part_masks, masks[index])


def test_styles_change_pixels_but_not_masks(generator: torch.Generator) -> None:
    factors = sample_factors(30, styles=("flat",), backgrounds=NO_PHOTO, generator=generator)
    flat, masks = render(factors, 32)
    for style in STYLES[1:]:
        other, same = render(replace(factors, styles=torch.full((30,), STYLES.index(style))), 32)
        assert torch.equal(masks, same)
        assert (other - flat).abs().mean() > 0.01
        if style == "inverted":
            assert torch.allclose(other, 1 - flat)
        if style == "dim":
            assert other.max() < 0.4
        if style == "sketch":
            assert torch.equal(other[:, 0], other[:, 2])
        if style == "blurred":
            assert torch.allclose(other.mean((2, 3)), flat.mean((2, 3)), atol=0.03)
        if style == "noisy":
            middle = (flat > 0.4) & (flat < 0.6)
            assert float((other - flat)[middle].std()) == pytest.approx(0.12, abs=0.01)


def test_a_camera_shift_moves_the_picture(generator: torch.Generator) -> None:
    factors = sample_factors(10, n_objects=(1, 1), backgrounds=("plain",), scales=(0.2, 0.3), generator=generator)
    factors = replace(factors, centres=factors.centres * 0.3)
    shifted = replace(factors, cameras=torch.tensor([0.25, 0.0, 0.0, 1.0]).repeat(10, 1))  # 4 of 32 pixels
    a, b = render(factors, 32)[0], render(shifted, 32)[0]
    assert torch.allclose(a[..., 4:], b[..., :-4], atol=1e-4)
    zoomed = replace(factors, centres=torch.zeros(10, 1, 2), cameras=torch.tensor([0.0, 0.0, 0.0, 2.0]).repeat(10, 1))
    still = replace(zoomed, cameras=factors.cameras)
    ratio = render(zoomed, 128)[1].sum((2, 3)) / render(still, 128)[1].sum((2, 3))
    assert torch.allclose(ratio, torch.full_like(ratio, 4.0), rtol=0.1)


def test_views_share_their_scene() -> None:
    data = load("scenes", n=20, n_views=4, backgrounds=NO_PHOTO)
    assert len(data) == 80
    assert data.places.tolist() == [place for place in range(20) for _ in range(4)]
    assert torch.equal(
        data.factors.shapes.view(20, 4, -1)[:, :1].expand(-1, 4, -1).reshape(80, -1), data.factors.shapes
    )
    images = data.images.flatten(1)
    same, other = (
        (images[0::4] - images[1::4]).square().mean(1),
        (images[0::4] - images[1::4].roll(1, 0)).square().mean(1),
    )
    assert 0 < float(same.mean()) < float(other.mean())
    still = look_again(data.factors, 1, max_shift=0.0, max_degrees=0.0, max_zoom=1.0, generator=torch_generator(0))
    assert torch.equal(still.cameras, torch.tensor([0.0, 0, 0, 1]).repeat(80, 1))


def test_captions_say_what_is_drawn() -> None:
    data = load("scenes", n=300, n_objects=(2, 2), textures=("solid",), backgrounds=NO_PHOTO)
    factors = data.factors
    for k, caption in enumerate(data.captions()):
        relation = "left of" if " left of " in caption else "above"
        names = caption.split(f" {relation} ")
        phrases = [
            f"{'an' if COLOURS[c][0] in 'aeiou' else 'a'} {COLOURS[c]} {SHAPES[s]}"
            for c, s in zip(factors.colours[k].tolist(), factors.shapes[k].tolist(), strict=True)
        ]
        assert sorted(names) == sorted(phrases)
        first = phrases.index(names[0])
        delta = factors.centres[k, 1 - first] - factors.centres[k, first]
        axis = 0 if relation == "left of" else 1
        if phrases[0] != phrases[1]:
            assert float(delta[axis]) >= 0
        assert abs(float(delta[axis])) >= abs(float(delta[1 - axis]))
    counted = load("scenes", n=50, n_objects=(0, 3), backgrounds=("plain",))
    for caption, count in zip(counted.captions(), counted.factors.present.sum(1).tolist(), strict=True):
        assert (caption == "an empty scene") == (count == 0)
        assert count != 3 or (caption.count(", ") == 1 and caption.count(" and ") == 1)


def test_labels_combine_factors(scenes: SceneData) -> None:
    data = scenes.as_images(by=("colour", "shape"))
    assert len(data.class_names) == 64
    k = int(data.labels[7])
    expected = f"{COLOURS[int(scenes.factors.colours[7, 0])]} {SHAPES[int(scenes.factors.shapes[7, 0])]}"
    assert data.class_names[k] == expected
    assert data.domain_names == STYLES
    with pytest.raises(ValueError, match="by must name some of shape, colour, texture, got"):
        scenes.as_images(by=("size",))
    with pytest.raises(ValueError, match="needs at least one object in every scene"):
        load("scenes", n=20, n_objects=(0, 1), backgrounds=("plain",)).as_images()


def test_objects_keep_apart_where_there_is_room() -> None:
    data = load("scenes", n=200, n_objects=(2, 2), scales=(0.2, 0.3), backgrounds=("plain",))
    gap = (data.factors.centres[:, 0] - data.factors.centres[:, 1]).norm(dim=1) - data.factors.scales.sum(1)
    assert float(gap.min()) > 0


def test_seeds_and_restrictions() -> None:
    options = {"n": 60, "shapes": ("star", "ring"), "colours": ("red",), "backgrounds": ("noise",), "size": 24}
    a, b, c = (load("scenes", seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, c.images)
    assert {SHAPES[s] for s in a.factors.shapes.unique().tolist()} == {"star", "ring"}
    assert a.factors.colours.unique().tolist() == [COLOURS.index("red")]


def test_photographs_make_backgrounds() -> None:
    data = load("scenes", n=40, n_objects=(0, 0), backgrounds=("photo",), photo_names=("grass", "coffee"))
    grey = (data.images[:, 0] - data.images[:, 2]).abs().mean((1, 2)) < 1e-6
    assert torch.equal(grey, data.factors.photos == 0)  # grass is grey, coffee is not
    factors = data.factors
    with pytest.raises(ValueError, match="photos must hold at least 2 photographs, got 0"):
        render_scenes(factors, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_objects": (3, 2)}, "n_objects must satisfy 0 <= smallest <= largest <= 5"),
        ({"n_objects": (1, 6)}, "n_objects must satisfy"),
        ({"shapes": ("hexagon",)}, "shapes must be among circle, .*; got 'hexagon'"),
        ({"styles": ()}, "styles must name at least one"),
        ({"scales": (0.5, 0.4)}, "scales must satisfy"),
        ({"size": 200}, "size must be between 16 and 128"),
        ({"n": 0}, "n must be at least 1"),
        ({"n_views": 0}, "n_views must be at least 1"),
        ({"max_stretch": 0.5}, "max_stretch must be in"),
        ({"photo_names": ("mona_lisa",)}, "names must be among"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("scenes", **options)


def test_two_thousand_scenes_take_less_than_five_seconds() -> None:
    start = time.process_time()
    load("scenes", n=2000, styles=STYLES)
    assert time.process_time() - start < 5


def test_hashed_noise_is_uniform_and_without_structure() -> None:
    i, j = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    values = hashed(i, j)
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.std()) == pytest.approx(1 / math.sqrt(12), abs=0.005)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.015
    assert torch.allclose(smooth_noise(i.float()[None], j.float()[None])[0], values)  # interpolates its lattice
