"""The mask is a promise: outside it nothing changes, whatever the size, the feather or the shape."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.errors import FarmError, OutputExists
from worker import images


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_mask(size, box) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def decode(picture, mask, polarity="white_edits"):
    return images.decode(png(picture), mask and png(mask), polarity=polarity, max_pixels=10**8)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    left=st.floats(0, 0.9),
    top=st.floats(0, 0.9),
    extent=st.floats(0.05, 1),
    padding=st.none() | st.integers(0, 40),
    grow=st.integers(0, 9),
    feather=st.integers(0, 9),
)
def test_outside_the_mask_nothing_changes(size, left, top, extent, padding, grow, feather):
    width, height = size
    x, y = int(left * width), int(top * height)
    mask = box_mask(size, (x, y, min(width, x + 1 + int(extent * width)), min(height, y + 1 + int(extent * height))))
    source = decode(noise(width, height), mask)
    region = images.cut(source, (64, 96), padding=padding, grow=grow)
    assert region.image.size == region.mask.size == (64, 96)
    painted = noise(64, 96, seed=1)
    out = images.paste(source, region, painted, feather_px=feather, preserve=True)
    before, after, inside = source.image.samples, out.rows(0, height), source.edits > 0
    assert (after[~inside] == before[~inside]).all()
    assert (after[inside] != before[inside]).any()
    receipt = images.receipt(source, images.encode(out, "png", 95), region)
    assert receipt.max_abs_diff_outside == 0
    assert receipt.pixels_outside == int((~inside).sum())


def test_the_receipt_tells_of_a_pixel_that_changed():
    source = decode(noise(32, 32), box_mask((32, 32), (8, 8, 16, 16)))
    touched = source.image.samples.copy()
    value = int(touched[0, 0, 0])
    touched[0, 0, 0] ^= 7
    receipt = images.receipt(source, png(Image.fromarray(touched)))
    assert (receipt.max_abs_diff_outside, receipt.mode, receipt.bits) == (abs(value - (value ^ 7)), "RGB", 8)


def test_the_receipt_of_a_jpeg_is_honest():
    source = decode(noise(64, 64), box_mask((64, 64), (8, 8, 16, 16)))
    region = images.cut(source, (64, 64), padding=0, grow=0)
    out = images.paste(source, region, noise(64, 64, seed=1), feather_px=0, preserve=True)
    assert images.receipt(source, images.encode(out, "jpeg", 80)).max_abs_diff_outside > 0


@pytest.mark.parametrize("written", [b"", b"rubbish", png(noise(32, 31)), png(noise(32, 32))[:-30]])
def test_what_lies_at_the_output_and_is_not_what_was_written_gets_no_receipt(written):
    with pytest.raises(OutputExists, match="not this job's"):
        images.receipt(decode(noise(32, 32), box_mask((32, 32), (8, 8, 16, 16))), written)


def test_the_bytes_decide_and_a_misleading_name_is_logged(caplog):
    mask = png(box_mask((16, 16), (0, 0, 8, 8)))
    names = {"image_name": "s3://photos/a\n.jpg", "mask_name": "s3://photos/mask.png"}
    images.decode(png(noise(16, 16)), mask, polarity="white_edits", max_pixels=10**8, **names)
    (record,) = caplog.records
    assert record.getMessage() == r"the image s3://photos/a\n.jpg is PNG by its bytes, which count"


def test_a_refusal_says_which_picture_it_is_about():
    with pytest.raises(FarmError, match=r"^mask: The file is text"):
        images.decode(png(noise(16, 16)), b"hello, this is text", polarity="white_edits", max_pixels=10**8)


def test_the_feather_runs_inward_and_not_along_the_edge_of_the_picture():
    alpha = images.feather(np.array(box_mask((20, 20), (0, 5, 20, 20))), 4)
    assert (alpha[:5] == 0).all()
    assert list(alpha[5:9, 10]) == [0.25, 0.5, 0.75, 1]
    assert (alpha[9:] == 1).all()  # also at the left, right and lower edge of the picture


def test_a_thin_mask_is_still_edited():
    alpha = images.feather(np.array(box_mask((20, 20), (10, 0, 11, 20))), 8)
    assert (alpha[:, 10] > 0).all()


@pytest.mark.parametrize(
    ("polarity", "edited"),
    [("white_edits", (0, 0)), ("black_edits", (15, 15))],
)
def test_polarity(polarity, edited):
    source = decode(noise(16, 16), box_mask((16, 16), (0, 0, 8, 8)), polarity)
    assert source.mask.getpixel(edited) == 255
    assert source.mask.getpixel((15 - edited[0], 15 - edited[1])) == 0


def test_the_transparent_part_of_an_image_is_its_mask():
    cutout = noise(16, 16).convert("RGBA")
    cutout.putalpha(box_mask((16, 16), (0, 0, 8, 16)))
    source = images.decode(png(cutout), None, polarity="white_edits", max_pixels=10**8)
    assert source.mask.getpixel((2, 2)) == 0
    assert source.mask.getpixel((12, 2)) == 255


def test_orientation_is_applied():
    turned = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    mask = box_mask((30, 20), (0, 0, 8, 8))
    source = images.decode(buffer.getvalue(), png(mask), polarity="white_edits", max_pixels=10**8)
    assert source.image.size == (30, 20)


def test_the_model_sees_sixteen_bits_of_grey_scaled_and_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64))
    region = images.cut(decode(ramp, box_mask((64, 64), (0, 0, 8, 8))), (64, 64), padding=None, grow=0)
    grey = np.asarray(region.image)[..., 0].astype(int)
    assert np.abs(grey - np.linspace(0, 255, 64 * 64).reshape(64, 64)).max() <= 1


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (Image.new("L", (30, 16), 255), "MaskSizeMismatch"),
        (Image.new("L", (16, 16), 0), "MaskEmpty"),
        (None, "InvalidParameter"),
    ],
    ids=["size", "empty", "none"],
)
def test_masks_that_cannot_be_used(mask, code):
    with pytest.raises(FarmError) as caught:
        decode(noise(16, 16), mask)
    assert caught.value.code == code


def test_a_mask_that_keeps_nothing_is_accepted_with_a_warning():
    assert decode(noise(16, 16), Image.new("L", (16, 16), 255)).warnings


@pytest.mark.parametrize(
    ("region", "bucket"),
    [((500, 500), (512, 512)), ((90, 100), (256, 256)), ((900, 500), (640, 384)), ((100, 300), (384, 640))],
)
def test_the_bucket_has_the_regions_shape(region, bucket):
    assert images.choose_bucket(((256, 256), (512, 512), (640, 384), (384, 640)), region) == bucket


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(8, 64), st.integers(8, 64)),
    st.data(),
)
def test_a_widened_box_holds_the_old_one_and_stays_inside(limits, shape, data):
    left = data.draw(st.integers(0, limits[0] - 1))
    top = data.draw(st.integers(0, limits[1] - 1))
    box = (left, top, data.draw(st.integers(left + 1, limits[0])), data.draw(st.integers(top + 1, limits[1])))
    wide = images.widen(box, shape, limits)
    assert 0 <= wide[0] <= box[0] and 0 <= wide[1] <= box[1]
    assert box[2] <= wide[2] <= limits[0] and box[3] <= wide[3] <= limits[1]
