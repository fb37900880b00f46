"""What a client says of pictures and LoRAs before it submits them is what a worker says at their turn."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save

from farm.errors import FarmError, from_foreign
from farm.lora_targets import TargetTable, glimpse
from farm.models import ModelCard, publish, read_card
from farm.weights import read_header, read_header_by
from producer import InpaintJob, LoraRef
from producer.cli import main
from producer.inspection import inspect
from producer.preflight import Preflight
from producer.testing import FakeFarm
from producer.testing.store import MemoryStore
from tests.engine import lora_samples as samples
from worker import images
from worker.engine.lora import TargetTable as EngineTable
from worker.engine.lora import read_lora, target_table

SIZE = (40, 24)


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size=SIZE) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode)


def box(mode: str = "L", size=SIZE, level=255) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(level, (8, 6, 30, 18))
    return mask.convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise(size=(24, 40)), "JPEG", exif=exif, quality=95)


def deep() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)))


def see_through(level: int) -> Image.Image:
    picture = noise().convert("RGBA")
    picture.putalpha(box().point(lambda value: level if value else 255))
    return picture


PHOTO, MASK = saved(noise()), saved(box())
PICTURES = {
    "plain": (PHOTO, MASK, "white_edits"),
    "black edits": (PHOTO, MASK, "black_edits"),
    "grey just above": (PHOTO, saved(box(level=128)), "white_edits"),
    "grey just below": (PHOTO, saved(box(level=127)), "white_edits"),
    "colours": (PHOTO, saved(noise()), "white_edits"),
    "mask with alpha": (PHOTO, saved(noise("RGBA")), "white_edits"),
    "palette": (saved(noise().quantize(16)), saved(box().quantize(2)), "white_edits"),
    "grey photo": (saved(noise("L")), MASK, "white_edits"),
    "cmyk": (saved(noise("CMYK"), "JPEG", quality=95), MASK, "white_edits"),
    "turned by EXIF": (turned(), MASK, "white_edits"),
    "16 bits": (PHOTO, deep(), "white_edits"),
    "transparent mask": (PHOTO, saved(see_through(100)), "transparent_edits"),
    "mask not transparent enough": (PHOTO, saved(see_through(200)), "transparent_edits"),
    "opaque mask for transparency": (PHOTO, saved(noise()), "transparent_edits"),
    "cut-out": (saved(see_through(0)), None, "white_edits"),
    "soft cut-out": (saved(see_through(254)), None, "white_edits"),
    "opaque and no mask": (PHOTO, None, "white_edits"),
    "RGBA and opaque": (saved(see_through(255)), None, "white_edits"),
    "another size": (PHOTO, saved(box(size=(40, 25))), "white_edits"),
    "nothing to edit": (PHOTO, saved(Image.new("L", SIZE, 0)), "white_edits"),
    "everything": (PHOTO, saved(Image.new("L", SIZE, 255)), "white_edits"),
    "text": (b"no picture, only words", MASK, "white_edits"),
    "empty": (b"", MASK, "white_edits"),
    "cut PNG": (PHOTO[: len(PHOTO) // 2], MASK, "white_edits"),
    "cut JPEG": (turned()[:-200], MASK, "white_edits"),
    "GIF": (saved(noise(), "GIF"), MASK, "white_edits"),
    "too small": (saved(noise(size=(8, 8))), saved(box(size=(8, 8))), "white_edits"),
    "too many pixels": (saved(Image.new("L", (1200, 1000))), MASK, "white_edits"),
    "webp": (saved(noise(), "WEBP", lossless=True), saved(box(), "WEBP", lossless=True), "white_edits"),
    "tiff": (saved(noise(), "TIFF"), saved(box(), "TIFF"), "white_edits"),
}


def verdict(look, image, mask, polarity):
    try:
        seen = look(image, mask, polarity=polarity, max_pixels=1_000_000)
    except FarmError as error:
        return error.code, str(error)
    edits = getattr(seen, "edits", None)
    return "good", np.asarray(edits).reshape(SIZE[1], SIZE[0]).tolist()


@pytest.mark.parametrize("name", PICTURES)
def test_a_client_sees_a_job_s_pictures_as_its_worker(name):
    client, worker = (verdict(look, *PICTURES[name]) for look in (inspect, images.decode))
    assert client == worker


# LoRAs


@pytest.fixture(scope="module")
def table():
    """The engine's own table, and the client's, which went through the store."""
    unet, text_encoder = samples.models()
    store = MemoryStore()
    card = ModelCard("tiny", "0" * 64, ((64, 64),), target_table(unet, text_encoder))
    publish(store, "s3://bucket/farm", card)
    assert read_card(store, "s3://bucket/farm", "other") is None
    return EngineTable.of(unet, text_encoder), read_card(store, "s3://bucket/farm", "tiny").table()


def files() -> dict[str, bytes]:
    models, draw = samples.models(), samples.Draw(0)

    def shape(name: str) -> tuple[int, ...]:
        return tuple(samples.weight_of(*models, name).shape)

    made = {
        f"{family} as {key.__name__}": samples.write({name: make(draw, shape(name), 2) for name in samples.NAMES}, key)
        for family, make in samples.FAMILIES.items()
        for key in (samples.kohya_key, samples.peft_key)
    }
    good = samples.lora(draw, shape(samples.LINEAR), 2)
    name = samples.LINEAR

    def one(roles, key=samples.kohya_key, of=name) -> bytes:
        return samples.write({of: roles}, key)

    wide = {role: torch.cat([tensor, tensor], -1 if role == "down" else 0) for role, tensor in good.items()}
    return {
        **made,
        "with alpha": one({**good, "alpha": torch.tensor(1.0)}),
        "DoRA": one({**good, "dora_scale": torch.ones(shape(name)[0], 1)}),
        "of a wider model": one(wide),
        "ranks that differ": one({"down": draw(2, shape(name)[1]), "up": draw(shape(name)[0], 3)}),
        "half a pair": one({"down": good["down"]}),
        "two families": one({**good, "lokr_w1": draw(2, 2)}),
        "a LoHa without a part": one({"hada_w1_a": draw(4, 2), "hada_w1_b": draw(2, 4)}),
        "a vector for a factor": one({"down": draw(4), "up": good["up"]}),
        "a core that does not fit": one({**good, "mid": draw(3, 2, 3, 3)}, of=samples.CONV),
        "modules of another model": save({**dict(_keys(good)), "lora_unet_foo_bar.lora_down.weight": draw(2, 4)}),
        "nothing of this model": save({"lora_unet_foo_bar.lora_down.weight": draw(2, 4)}),
        "no LoRA at all": save({"model.diffusion_model.x.weight": draw(2, 4)}),
        "a stranger beside it": save({**dict(_keys(good)), "optimizer.state": draw(2)}),
        "the same twice": save({**dict(_keys(good)), f"{name}.lora_A.weight": good["down"].clone()}),
    }


def _keys(roles):
    return ((samples.kohya_key(samples.LINEAR, role), tensor.contiguous()) for role, tensor in roles.items())


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_a_client_judges_a_lora_by_its_header_as_the_engine_by_its_tensors(name, table):
    data, (engine, client) = FILES[name], table
    header = read_header_by(len(data), lambda offset, length: data[offset : offset + length])
    assert header == read_header(data)
    try:
        read_lora(data, engine)
        expected = "good"
    except ValueError as error:
        expected = from_foreign(error).code
    try:
        facts = client.judge(header)
        found = "good"
    except FarmError as error:
        found = error.code
    assert found == expected
    if found == "good":
        assert facts.modules == len(read_lora(data, engine).deltas)
        assert set(facts.components) == read_lora(data, engine).components
        assert facts.written_by == glimpse(header).written_by != "unknown"


def test_a_header_alone_tells_format_and_rank():
    facts = glimpse(read_header(FILES["LoHa as kohya_key"]))
    assert (facts.written_by, facts.families, facts.ranks) == ("kohya", {"LoHa": 11}, {2: 11})


def test_a_table_of_another_version_is_refused():
    with pytest.raises(FarmError, match="version"):
        TargetTable.from_json({"version": 99, "targets": {}, "stems": {}, "leaves": []})


@pytest.fixture
def lora_command(tmp_path, monkeypatch):
    """Calls `farm lora` with a file of FILES, and no farm about."""
    monkeypatch.delenv("FARM_STORE", raising=False)
    (tmp_path / "table.json").write_text(json.dumps(target_table(*samples.models())))

    def call(name: str, *options: str):
        path = tmp_path / "brand.safetensors"
        path.write_bytes(FILES[name])
        return CliRunner().invoke(main, ["lora", str(path), *options])

    return call


def test_the_command_says_what_a_lora_is_and_whether_it_fits(lora_command, tmp_path):
    table = ("--table", str(tmp_path / "table.json"))
    fits = json.loads(lora_command("LoKr, Tucker as kohya_key", *table, "--json").stdout)
    assert (fits["fits"], fits["families"], fits["written_by"]) == (True, {"LoKr": 11}, "kohya")
    alone = lora_command("LoRA as peft_key")
    assert alone.exit_code == 0 and "rank 2" in alone.stdout and "not known" in alone.stdout
    wrong = lora_command("of a wider model", *table)
    assert wrong.exit_code == 2 and "LoraIncompatible" in wrong.stderr and wrong.stderr.count("\n") == 1
    pinned = lora_command("LoRA as peft_key", "--sha256", "0" * 64)
    assert pinned.exit_code == 2 and "LoraHashMismatch" in pinned.stderr


def test_a_preflight_knows_the_published_model_s_table():
    farm = FakeFarm()
    card = ModelCard(farm.settings.model, "0" * 64, ((64, 64),), target_table(*samples.models()))
    publish(farm.store, farm.settings.store, card)
    photo, mask = farm.photo("photo.png"), farm.mask("mask.png")
    found = {}
    for name in ("LoRA as kohya_key", "of a wider model", "nothing of this model", "half a pair"):
        lora = LoraRef(path=farm.put(f"{name.replace(' ', '-')}.safetensors", FILES[name]))
        findings, _ = Preflight(farm.client()).check(InpaintJob(image=photo, mask=mask, loras=(lora,)))
        found[name] = [finding.code for finding in findings]
    assert found == {
        "LoRA as kohya_key": [], "of a wider model": ["LoraIncompatible"],
        "nothing of this model": ["LoraNoEffect"], "half a pair": ["LoraInvalid"],
    }  # fmt: skip
