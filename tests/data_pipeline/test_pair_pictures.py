"""Pictures of every kind become the pixels they show; crops are the paper's and torchvision's; bad files are told."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.config import ImageConfig
from data_pipeline.errors import BadConfig
from data_pipeline.pairs.augment import Augmentation, crop_of, draws, flipped, recoloured
from data_pipeline.pairs.decode import BadPicture, decode, read_header
from data_pipeline.pairs.pictures import augmented, evaluated
from tests.data_pipeline.pair_sets import encoded, smooth


def augmentation(**settings: Any) -> Augmentation:
    return Augmentation.of(ImageConfig(**settings))


def as_pillow(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


PIXELS = smooth(37, 52, 1)
IMAGE = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (encoded(PIXELS, "PNG"), "png"),
        (encoded(PIXELS, "WEBP", lossless=True), "webp"),
        (encoded(PIXELS, "WEBP", quality=80), "webp"),
        (encoded(PIXELS, "JPEG", quality=95, subsampling=0), "jpg"),
        (encoded(PIXELS, "JPEG", progressive=True), "jpg"),
        (encoded(IMAGE.convert("L"), "JPEG"), "jpg"),
        (encoded(IMAGE.convert("CMYK"), "JPEG"), "jpg"),
        (encoded(IMAGE.convert("L"), "PNG"), "png"),
        (encoded(IMAGE.convert("1"), "PNG"), "png"),
        (encoded(IMAGE.convert("P"), "PNG"), "png"),
        (encoded(IMAGE.convert("L"), "WEBP", lossless=True), "webp"),
    ],
)
def test_a_picture_without_transparency_is_as_pillow_sees_it(picture: bytes, kind: str) -> None:
    header = read_header(picture)
    assert (header.format, header.width, header.height) == (kind, 52, 37)
    difference = np.abs(decode(picture).astype(int) - as_pillow(picture))
    assert difference.max() <= (0 if kind == "png" else 3)  # decoders upsample chroma differently


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_shows_white(kind: str) -> None:
    alpha = np.zeros((37, 52), dtype=np.uint8)
    alpha[:, 10:20], alpha[:, 20:30] = 255, 128
    picture = encoded(
        Image.fromarray(np.dstack([PIXELS, alpha])), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    found = decode(picture)
    assert (found[:, :10] == 255).all() and np.array_equal(found[:, 10:20], PIXELS[:, 10:20])
    half = (PIXELS[:, 20:30] * (128 / 255) + 255 * (127 / 255)).round()
    assert np.abs(found[:, 20:30] - half).max() <= 1


def test_grey_with_transparency_and_16_bits() -> None:
    grey = np.full((5, 6), 100, dtype=np.uint8)
    alpha = np.full((5, 6), 255, dtype=np.uint8)
    alpha[0] = 0
    found = decode(encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])))
    assert (found[0] == 255).all() and (found[1:] == 100).all()
    deep = (np.arange(30, dtype=np.uint16) * 2000).reshape(5, 6)
    assert np.array_equal(decode(encoded(deep))[..., 0], deep >> 8)
    _, colours = cv2.imencode(".png", np.dstack([deep, deep // 2, deep // 3]))
    assert np.array_equal(decode(colours.tobytes()), np.dstack([deep // 3, deep // 2, deep]) >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(PIXELS, "JPEG", exif=exif, quality=95, subsampling=0)
    upright = np.asarray(_transposed(Image.open(io.BytesIO(picture))))
    header = read_header(picture)
    assert (header.height, header.width) == upright.shape[:2]
    found = decode(picture)
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).max() <= 3
    assert decode(picture, header, 2).shape[:2] == tuple(-(-n // 2) for n in upright.shape[:2])


def _transposed(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    assert turned is not None
    return turned


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_is_bad(kind: str) -> None:
    picture = encoded(smooth(60, 60, 3), kind)
    for length in {0, 1, 5, 20, 29, 40, len(picture) // 2, len(picture) - 3}:
        with pytest.raises(BadPicture):
            decode(picture[:length])


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a" + bytes(50), b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(40)]
)
def test_what_is_no_picture_is_bad(content: bytes) -> None:
    with pytest.raises(BadPicture):
        decode(content)


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", ""]), st.integers(0, 400))
def test_arbitrary_bytes_never_do_more_than_be_bad(noise: bytes, kind: str, at: int) -> None:
    picture = encoded(PIXELS, kind) if kind else b""
    try:
        pixels = decode(picture[:at] + noise + picture[at + len(noise) :])
    except BadPicture:
        return
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(BadPicture, match="60000 x 60000 pixels are more than"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 9000), (224, 224), (7, 5)])
@pytest.mark.parametrize("augment", ["none", "square_crop", "random_resized_crop"])
def test_any_size_becomes_the_models(height: int, width: int, augment: str) -> None:
    out = np.zeros((3, 32, 32), dtype=np.uint8)
    picture = encoded(np.full((height, width, 3), (10, 20, 30), dtype=np.uint8))
    augmented(picture, augmentation(augment=augment), draws(1, np.array([5]))[0].tolist(), out)
    assert [set(np.unique(plane).tolist()) for plane in out] == [{10}, {20}, {30}]


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (64, 64), (50, 90), (500, 480)])
def test_evaluation_is_open_clips(shape: tuple[int, int]) -> None:
    pixels = smooth(*shape, 4)
    out = np.empty((3, 64, 64), dtype=np.uint8)
    evaluated(encoded(pixels), out)
    height, width = shape
    short = min(shape)
    to = (int(64 * width / short), int(64 * height / short))
    image = Image.fromarray(pixels).resize(to, Image.Resampling.BICUBIC) if short != 64 else Image.fromarray(pixels)
    left, top = round((image.width - 64) / 2), round((image.height - 64) / 2)
    expected = np.asarray(image.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("factor", [1.0, 1.15, 1.5, 3.0, 4.5, 9.0, 20.0])
def test_training_pictures_are_near_pillows(factor: float) -> None:
    """Of a soft picture, whatever the way it is made small: nothing is shifted or upside down."""
    side = int(40 * factor)
    pixels = smooth(side, side, 5)
    out = np.empty((3, 40, 40), dtype=np.uint8)
    augmented(encoded(pixels, "JPEG", quality=95, subsampling=0), augmentation(), [0.0] * 60, out)
    expected = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC))
    assert np.abs(out.transpose(1, 2, 0).astype(int) - expected).mean() < 2


def test_the_papers_square_crop_takes_the_whole_shorter_side_at_any_place() -> None:
    crops = [crop_of(augmentation(), drawn, 30, 50) for drawn in draws(3, np.arange(4000)).tolist()]
    assert all((c.height, c.width, c.top) == (30, 30, 0) for c in crops)
    counts = np.bincount([c.left for c in crops], minlength=21)
    assert len(counts) == 21 and (abs(counts - 4000 / 21) < 5 * math.sqrt(4000 / 21)).all()


@pytest.mark.parametrize(("scale", "ratio"), [((0.9, 1.0), (3 / 4, 4 / 3)), ((0.08, 0.5), (0.5, 2.0))])
def test_random_resized_crops_are_torchvisions(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Beside a transcription of `RandomResizedCrop.get_params` with numpy's generator: the same distributions."""
    height, width, count = 300, 400, 8000
    settings = augmentation(augment="random_resized_crop", crop_scale=list(scale), crop_ratio=list(ratio))
    ours = [crop_of(settings, drawn, height, width) for drawn in draws(7, np.arange(count)).tolist()]
    found = np.array([(c.top, c.left, c.height, c.width) for c in ours])
    generator = np.random.default_rng(0)
    expected = np.array([torchvisions(generator, height, width, scale, ratio) for _ in range(count)])
    area = found[:, 2] * found[:, 3] / (height * width)
    assert scale[0] * 0.99 < area.min() and area.max() <= scale[1] * 1.01
    shape = found[:, 3] / found[:, 2]
    assert ratio[0] * 0.98 < shape.min() and shape.max() < ratio[1] * 1.02
    assert (found[:, 0] + found[:, 2] <= height).all() and (found[:, 1] + found[:, 3] <= width).all()
    for mine, theirs in zip(found.T, expected.T, strict=True):
        assert kolmogorov(mine, theirs) < 1.95 * math.sqrt(2 / count)  # one in a thousand


def torchvisions(
    generator: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(10):
        target = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def kolmogorov(first: np.ndarray, second: np.ndarray) -> float:
    """The greatest difference between two empirical distributions."""
    values = np.unique(np.concatenate([first, second]))
    below = (np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second))
    a, b = below
    return float(np.abs(a - b).max())


def test_draws_are_uniform_unrelated_and_those_of_the_sample_alone() -> None:
    numbers = draws(1, np.arange(20000))
    assert np.array_equal(numbers[[3, 777]], draws(1, np.array([3, 777])))
    assert not np.array_equal(numbers[:5], draws(2, np.arange(5)))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean(axis=0) - 0.5).max() < 5 / math.sqrt(12 * 20000)
    flat = numbers - 0.5
    for other in (np.roll(flat, 1, axis=0), np.roll(flat, 1, axis=1)):
        assert abs((flat * other).mean(axis=0)).max() * 12 < 5 / math.sqrt(20000)


def test_flips_and_greys_come_as_often_as_is_asked() -> None:
    settings = augmentation(flip=0.3, grayscale=0.2)
    numbers = draws(1, np.arange(10000)).tolist()
    assert abs(np.mean([flipped(settings, drawn) for drawn in numbers]) - 0.3) < 0.02
    pixels = smooth(4, 4, 1)
    grey = [len(np.unique(recoloured(settings, drawn, pixels)[0, 0])) == 1 for drawn in numbers[:3000]]
    assert abs(np.mean(grey) - 0.2) < 0.03
    out, mirrored = np.empty((3, 16, 16), dtype=np.uint8), np.empty((3, 16, 16), dtype=np.uint8)
    picture = encoded(smooth(16, 16, 2))
    augmented(picture, augmentation(), numbers[0], out)
    augmented(picture, augmentation(flip=1.0), numbers[0], mirrored)
    assert np.array_equal(out[:, :, ::-1], mirrored)


def test_colours_are_changed_as_torchvision_changes_them() -> None:
    from PIL import ImageEnhance

    pixels = smooth(20, 20, 6)
    drawn = [0.5] * 41 + [0.0, 0.9, 0.9, 0.9, 0.0, 1.0, 0.0]
    factor = 1 - 0.4 + 0.8 * 0.9
    enhancers: dict[str, Any] = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name, enhancer in enhancers.items():
        found = recoloured(augmentation(**{name: 0.4}), drawn, pixels)
        expected = np.asarray(enhancer(Image.fromarray(pixels)).enhance(factor))
        assert np.abs(found.astype(int) - expected).max() <= 1, name
        assert np.array_equal(recoloured(augmentation(**{name: 0.4}, jitter=0.0), drawn, pixels), pixels)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": [0.5]},
        {"crop_scale": [0.0, 1.0]},
        {"crop_scale": [0.5, 1.5]},
        {"crop_ratio": [2.0, 1.0]},
        {"flip": 1.5},
        {"grayscale": -0.1},
        {"brightness": 2.0},
        {"workers": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=rf"data\.images\.{next(iter(settings))} is "):
        augmentation(**settings)


def test_a_description_gives_the_same_augmentation_and_leaves_out_what_is_without_effect() -> None:
    settings = augmentation(augment="random_resized_crop", crop_scale=[0.5, 0.9], flip=0.5)
    assert Augmentation.from_json(settings.to_json()) == settings
    assert augmentation(crop_scale=[0.5, 0.9]) == augmentation()
