"""What is edited: masks grown, filled, read from transparency; and how the painting is laid into the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from farm.errors import InvalidInput, InvalidParameter
from tests.unit import icc_files
from tests.unit.image_kinds import png16
from tests.unit.picture_files import saved
from worker import images
from worker.images import masks, regions
from worker.images.raster import Form, Raster

RED = Image.new("RGB", (64, 64), (250, 10, 20))


def box_mask(size, box) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def decode(picture, mask=None, **options) -> images.Source:
    data = saved(picture, "PNG") if isinstance(picture, Image.Image) else picture
    options = {"polarity": "white_edits", "max_pixels": 10**8, **options}
    return images.decode(data, mask and saved(mask, "PNG"), **options)


def painted(source: images.Source, painting=RED, *, grow=0, feather=0, preserve=True, paste="inner", padding=4):
    region = images.cut(source, painting.size, padding=padding, grow=grow, paste=paste)
    composite = images.paste(source, region, painting, feather_px=feather, preserve=preserve)
    return composite.rows(0, source.image.height), region, composite


# Masks


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_growing_and_feathering_are_repeated_filters(pixels, seed):
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((40, 50)) > rng.uniform(0.02, 0.98), 255, 0).astype(np.uint8)
    picture = bigger = Image.fromarray(mask)
    total, eroded = np.zeros(mask.shape), picture
    for _ in range(pixels):
        bigger = bigger.filter(ImageFilter.MaxFilter(3))
        total += np.array(eroded) / 255
        eroded = eroded.filter(ImageFilter.MinFilter(3))
    assert (masks.grown(mask, pixels) == np.array(bigger)).all()
    assert np.allclose(masks.feather(mask, pixels), total / pixels, atol=1e-6)


def test_holes_are_filled_and_bays_are_not():
    mask = Image.new("L", (60, 40), 0)
    draw = ImageDraw.Draw(mask)
    draw.rectangle((5, 5, 40, 35), fill=255)
    draw.rectangle((10, 10, 20, 20), fill=0)  # a hole
    draw.ellipse((24, 24, 30, 30), fill=0)  # another
    draw.rectangle((30, 8, 40, 12), fill=0)  # a bay
    before, after = np.array(mask), masks.filled(np.array(mask))
    assert after[15, 15] == after[27, 27] == 255
    assert after[10, 35] == 0 and after[0, 0] == 0 and after[39, 59] == 0
    assert (after >= before).all()
    source = decode(Image.fromarray(noise(40, 60, 3)), mask, fill_holes=True)
    assert (source.edits == after).all()


def test_a_hole_may_lie_at_the_pictures_own_edge_and_is_none():
    mask = np.full((20, 20), 255, np.uint8)
    mask[0:5, 8:12] = 0
    assert (masks.filled(mask) == mask).all()
    assert not masks.filled(np.zeros((5, 5), np.uint8)).any()


def test_holes_of_an_images_own_transparency_are_refused():
    cutout = Image.fromarray(noise(32, 32, 4))
    with pytest.raises(InvalidParameter, match="fill_holes"):
        decode(cutout, fill_holes=True)


def test_a_mask_in_cmyk_sixteen_bits_or_a_palette_is_a_mask():
    mask = box_mask((32, 32), (4, 4, 20, 20))
    wanted = np.array(mask)
    deep = Image.fromarray(wanted.astype(np.uint16) * 257)
    photo = saved(Image.fromarray(noise(32, 32, 3)), "PNG")
    for data in (
        saved(deep, "PNG"),
        saved(mask.convert("P"), "PNG"),
        saved(mask.convert("1"), "PNG"),
        saved(mask.convert("RGB").convert("CMYK"), "TIFF"),
        saved(mask.convert("RGBA"), "WEBP", lossless=True),
    ):
        assert (images.decode(photo, data, polarity="white_edits", max_pixels=10**6).edits == wanted).all()


# Into the picture


def test_the_grown_mask_is_pasted_only_when_asked_for():
    photo, mask = Image.fromarray(noise(64, 64, 3)), box_mask((64, 64), (20, 20, 40, 40))
    source = decode(photo, mask)
    inner, region, composite = painted(source, grow=5, feather=3)
    changed = (inner != source.image.samples).any(-1)
    assert not changed[np.array(mask) == 0].any()
    grown, region, composite = painted(source, grow=5, feather=3, paste="grown", padding=12)
    changed = (grown != source.image.samples).any(-1)
    outside = region.pasted == 0
    assert changed[np.array(mask) == 0].any() and not changed[outside].any()
    assert (region.pasted >= source.edits).all() and region.pasted.sum() > source.edits.sum()
    receipt = images.receipt(source, images.encode(composite, "png", 95), region)
    assert (receipt.max_abs_diff_outside, receipt.outside) == (0, "grown")
    assert receipt.pixels_outside == int(outside.sum())
    assert images.receipt(source, images.encode(composite, "png", 95)).max_abs_diff_outside > 0


def cutout(alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate([noise(*alpha.shape, 3), alpha[..., None]], -1))


def test_a_background_is_painted_beneath_a_cut_out():
    alpha = np.zeros((64, 64), np.uint8)
    alpha[20:40, 20:40] = 255
    alpha[20:40, 40:44] = (200, 128, 60, 1)  # a soft edge
    picture = cutout(alpha)
    source = decode(picture)
    assert source.beneath and (source.edits == np.where(alpha < 255, 255, 0)).all()
    result, region, composite = painted(source, feather=8, padding=None)
    own = np.array(picture)
    assert (result[alpha == 255] == own[alpha == 255]).all()
    assert (result[..., 3] == 255).all()
    assert (result[alpha == 0][:, :3] == (250, 10, 20)).all()
    soft = (alpha > 0) & (alpha < 255)
    share = alpha[soft][:, None] / 255
    wanted = own[soft][:, :3] * share + np.array([250, 10, 20]) * (1 - share)
    assert np.abs(result[soft][:, :3] - wanted).max() <= 0.51
    for output in ("png", "webp", "jpeg", "tiff", "avif"):
        receipt = images.receipt(source, images.encode(composite, output, 100), region)
        assert receipt.max_abs_diff_outside == 0 or output == "jpeg"


def test_the_colour_under_transparent_pixels_is_kept():
    alpha = np.where(np.indices((64, 64)).sum(0) % 3, 0, 255).astype(np.uint8)
    picture = cutout(alpha)
    source = decode(picture, box_mask((64, 64), (10, 10, 30, 30)))
    result, _, composite = painted(source)
    outside = source.edits == 0
    for output in ("png", "webp", "tiff", "avif"):
        written = Image.open(io.BytesIO(images.encode(composite, output, 100)))
        assert (np.array(written)[outside] == np.array(picture)[outside]).all()
    assert (result[~outside] == (250, 10, 20, 255)).all()  # what is painted is opaque


def test_a_feather_over_transparency_fades_into_it():
    picture = cutout(np.zeros((64, 64), np.uint8))
    result, *_ = painted(decode(picture, box_mask((64, 64), (20, 20, 44, 44))), feather=4)
    assert list(result[32, 19:25, 3]) == [0, 64, 128, 191, 255, 255]
    assert (result[32, 20:25, :3] == (250, 10, 20)).all()


def test_what_is_laid_on_white_is_laid_on_white():
    alpha = np.full((64, 64), 128, np.uint8)
    picture = cutout(alpha)
    source = decode(picture, box_mask((64, 64), (20, 20, 44, 44)), output_format="jpeg")
    _, _, composite = painted(source)
    written = np.array(Image.open(io.BytesIO(images.encode(composite, "jpeg", 100)))).astype(int)
    white = Image.alpha_composite(Image.new("RGBA", (64, 64), "white"), picture).convert("RGB")
    assert np.abs(written - np.array(white))[source.edits == 0].mean() < 2


def test_without_preserving_the_whole_region_is_replaced():
    photo = Image.fromarray(noise(64, 64, 3))
    source = decode(photo, box_mask((64, 64), (20, 20, 40, 40)))
    result, region, _ = painted(source, preserve=False)
    left, top, right, bottom = region.box
    assert (result[top:bottom, left:right] == (250, 10, 20)).all()
    result[top:bottom, left:right] = np.array(photo)[top:bottom, left:right]
    assert (result == np.array(photo)).all()


def test_the_model_sees_srgb_and_what_it_paints_comes_back_in_the_pictures_own_colours():
    orange = Image.new("RGB", (64, 64), (200, 120, 40))
    data = saved(orange, "PNG", icc_profile=icc_files.WIDE)
    source = decode(data, box_mask((64, 64), (20, 20, 40, 40)))
    result, region, _ = painted(source)
    seen = np.array(region.image)[32, 32]
    assert np.abs(seen.astype(int) - (200, 120, 40)).max() > 8  # these numbers mean another colour there
    same, *_ = painted(source, region.image)
    assert np.abs(same[30, 30].astype(int) - (200, 120, 40)).max() <= 2
    assert (result[0, 0] == (200, 120, 40)).all()
    plain, region, _ = painted(decode(orange, box_mask((64, 64), (20, 20, 40, 40))))
    assert (np.array(region.image) == (200, 120, 40)).all() and (plain[30, 30] == (250, 10, 20)).all()


def test_sixteen_bits_are_painted_in_sixteen_bits():
    samples = noise(64, 64, 3, dtype=np.uint16)
    source = decode(png16(samples, 2), box_mask((64, 64), (20, 20, 40, 40)))
    result, *_ = painted(source, feather=4)
    assert result.dtype == np.uint16
    assert (result[30, 30] == np.array((250, 10, 20)) * 257).all()
    mean = samples[30, 20] * 0.75 + np.array((250, 10, 20)) * 257 * 0.25
    assert np.abs(result[30, 20] - mean).max() <= 1


# In strips


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_composite_is_the_same_in_any_strips(data):
    mode = data.draw(st.sampled_from(["RGB", "RGBA", "L"]))
    shape = (data.draw(st.integers(20, 60)), data.draw(st.integers(20, 60)))
    picture = Image.fromarray(noise(*shape, len(mode)) if len(mode) > 1 else noise(*shape))
    left, top = data.draw(st.integers(0, 15)), data.draw(st.integers(0, 15))
    source = decode(picture, box_mask(picture.size, (left, top, left + 12, top + 9)))
    painting = Image.fromarray(noise(32, 48, 3))
    region = images.cut(source, painting.size, padding=data.draw(st.integers(0, 9)), grow=2)
    composite = images.paste(source, region, painting, feather_px=data.draw(st.integers(0, 6)), preserve=True)
    whole, step = composite.rows(0, shape[0]), data.draw(st.integers(1, 30))
    strips = [composite.rows(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]
    assert np.abs(np.concatenate(strips).astype(int) - whole).max() <= 1  # one rounding


@pytest.mark.parametrize("bucket", [(64, 64), (96, 32), (8, 8), (200, 300)])
def test_a_region_is_shrunk_in_bands_as_it_is_whole(bucket, monkeypatch):
    place = np.indices((150, 130))[..., None]
    samples = np.rint(127 + 90 * np.sin(place[0] / (7, 9, 11)) * np.cos(place[1] / (6, 8, 5))).astype(np.uint8)
    raster, box = Raster(samples, Form("rgb", False, 8)), (7, 11, 127, 140)
    cropped = Image.fromarray(samples).crop(box).resize(bucket, Image.Resampling.LANCZOS)
    for pixels in (1 << 22, 2000, 1):
        monkeypatch.setattr(regions, "_BAND_PIXELS", pixels)
        small = Image.fromarray(np.ascontiguousarray(regions._shrunk(raster, box, bucket)))
        assert max(high for _, high in ImageChops.difference(small, cropped).getextrema()) <= 2  # a rounding a pass


def test_a_picture_too_wide_for_webp_is_refused_before_it_is_rendered():
    wide = Image.new("L", (16_384, 16), 7)
    with pytest.raises(InvalidInput, match="WebP holds at most"):
        decode(wide, box_mask(wide.size, (0, 0, 9, 9)), output_format="webp")
    assert decode(wide, box_mask(wide.size, (0, 0, 9, 9)), output_format="png").warnings == ()
