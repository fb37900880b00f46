"""Manifests: each format gives the same jobs, bad rows are told by their place, and nothing is held as a whole."""

import csv
import json
import tracemalloc

import pytest

from farm.errors import InputNotFound, InvalidParameter, InvalidPrompt, SpecTooLarge, UnknownField, UrlNotAllowed
from farm.schemas import InpaintJob
from producer.manifest import Manifest
from producer.manifest.dialects import A1111, FAL, NEUTRAL, SAMPLERS, SHORT, translated
from producer.testing.store import MemoryStore

ROWS = [
    {
        "custom_id": f"sku-{n}", "image": f"photos/{n}.png", "mask": f"s3://bucket/masks/{n}.png",
        "prompt": 'a "b", c\nd', "num_inference_steps": 20 + n, "guidance_scale": 7.25, "seed": 2**40 + n,
        "loras": [{"path": "brand.safetensors", "scale": 0.5}], "metadata": {"shop": "é"}, "preserve_unmasked": True,
    }
    for n in range(3)
]  # fmt: skip


def written(folder, kind):
    path = folder / f"catalogue.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))  # blank lines are no rows
    elif kind == "csv":
        flat = [{**row, "loras": json.dumps(row["loras"]), "metadata.shop": row["metadata"]["shop"]} for row in ROWS]
        names = [name for name in flat[0] if name != "metadata"]
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(flat)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def expected(folder):
    beside = f"file://{folder}/"
    return [
        InpaintJob(**{
            **row, "image": beside + row["image"], "loras": [{"path": f"{beside}brand.safetensors", "scale": 0.5}]
        })
        for row in ROWS
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_jobs(tmp_path, kind):
    manifest = Manifest(written(tmp_path, kind))
    assert list(manifest) == expected(tmp_path)
    assert list(manifest) == expected(tmp_path), "a second time, too"
    assert list(manifest.jobs(1, 2)) == expected(tmp_path)[1:2]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_manifest_in_a_store_is_read_in_ranges(tmp_path, kind, monkeypatch):
    store = MemoryStore()
    data = written(tmp_path, kind).read_bytes()
    store.put(f"s3://bucket/runs/m.{kind}", data, content_type="x", create_only=True)
    monkeypatch.setattr(store, "get", lambda *a, **k: pytest.fail("the whole object was asked for"))
    from farm.config import load_settings

    settings = load_settings(store="s3://bucket/farm")
    jobs = list(Manifest(f"s3://bucket/runs/m.{kind}", settings=settings, store=store))
    assert [job.image for job in jobs] == [f"s3://bucket/runs/photos/{n}.png" for n in range(3)]


def test_fields_hold_for_every_row_and_over_it(tmp_path):
    manifest = Manifest(written(tmp_path, "jsonl"), fields={"prompt": "oak", "num_inference_steps": 4})
    assert {(job.prompt, job.num_inference_steps) for job in manifest} == {("oak", 4)}


def test_a_row_without_a_name_is_called_by_its_number(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a.png", "mask": "m.png"}\n' * 3)
    assert [job.custom_id for job in Manifest(path)] == ["00000000", "00000001", "00000002"]
    assert [job.custom_id for job in Manifest(path).jobs(2)] == ["00000002"], "whatever row one begins with"


def test_the_fingerprint_is_the_content_s(tmp_path):
    path = written(tmp_path, "jsonl")
    first = Manifest(path).fingerprint()
    assert Manifest(path).fingerprint() == first
    assert Manifest(path, fields={"seed": 1}).fingerprint() != first
    path.write_text(path.read_text() + "\n")
    assert Manifest(path).fingerprint() != first


BAD = [
    ("{", InvalidParameter, "JSON"),
    ("[1]", InvalidParameter, "object"),
    ('{"image": "a.png", "sede": 1}', UnknownField, "did you mean 'seed'"),
    ('{"image": "a.png", "num_inference_steps": 0}', InvalidParameter, "num_inference_steps"),
    ('{"image": "https://a/b.png"}', UrlNotAllowed, "image"),
    ('{"image": "a.png", "prompt": "\\u0000"}', InvalidPrompt, "NUL"),
    ('{"image": "' + "a" * 70_000 + '"}', SpecTooLarge, "shorten"),
    ('{"prompt": "no image"}', InvalidParameter, "image"),
]


@pytest.mark.parametrize(("line", "error", "word"), BAD)
def test_a_bad_row_is_told_by_its_place_and_the_others_go_on(tmp_path, line, error, word):
    good = '{"image": "a.png", "mask": "m.png"}'
    path = tmp_path / "m.jsonl"
    path.write_text(f"{good}\n{line}\n{good}")
    rows = list(Manifest(path).rows())
    assert [row.job is None for row in rows] == [False, True, False]
    assert type(rows[1].error) is error and word in str(rows[1].error) and str(rows[1].error).startswith("line 2: ")
    with pytest.raises(error, match="line 2: "):
        list(Manifest(path))


def test_what_is_no_manifest_says_so(tmp_path):
    with pytest.raises(InvalidParameter, match="xlsx"):
        Manifest(tmp_path / "m.xlsx")
    with pytest.raises(InputNotFound, match="nowhere"):
        list(Manifest(tmp_path / "nowhere.csv"))
    (tmp_path / "m.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(InvalidParameter, match="Parquet"):
        list(Manifest(tmp_path / "m.parquet"))
    (tmp_path / "m.csv").write_bytes(b"image,mask\n\xff\xfe,b\n")
    with pytest.raises(InvalidParameter, match="UTF-8"):
        list(Manifest(tmp_path / "m.csv"))
    (tmp_path / "twice.csv").write_text("image,image\na,b\n")
    with pytest.raises(InvalidParameter, match="one name"):
        list(Manifest(tmp_path / "twice.csv"))
    (tmp_path / "long.csv").write_text("image,mask\na,b,c\n")
    assert "3 cells" in str(next(Manifest(tmp_path / "long.csv").rows()).error)


def test_a_csv_may_name_one_lora_in_two_columns(tmp_path):
    (tmp_path / "m.csv").write_text("id,image,mask,lora,lora_scale\na,a.png,m.png,b.safetensors,0.7\n")
    (job,) = Manifest(tmp_path / "m.csv")
    assert (job.custom_id, job.loras[0].scale) == ("a", 0.7)
    assert job.loras[0].path == f"file://{tmp_path}/b.safetensors"


# Other tools' names

A1111_ROW = {
    "init_images": ["s3://bucket/a.png"], "mask": "s3://bucket/m.png", "prompt": "marble", "negative_prompt": "text",
    "denoising_strength": 0.8, "cfg_scale": 6, "steps": 25, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
    "seed": -1, "mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": True, "inpaint_full_res_padding": 48,
    "inpainting_mask_invert": 1, "n_iter": 2, "batch_size": 2, "width": 512, "height": 640, "restore_faces": False,
    "override_settings": {"CLIP_stop_at_last_layers": 2}, "send_images": True,
}  # fmt: skip
FAL_ROW = {
    "image_url": "s3://bucket/a.png", "mask_url": "s3://bucket/m.png", "prompt": "marble", "num_images": 2,
    "guidance_scale": 6,
    "num_inference_steps": 25, "scheduler": "Euler A", "seed": 3, "enable_safety_checker": True, "clip_skip": 1,
    "loras": [{"path": "s3://bucket/l.safetensors", "scale": 0.5}], "noise_strength": 0.9, "image_format": "jpeg",
    "embeddings": [{"path": "s3://bucket/e.safetensors", "tokens": ["<brand>"]}],
    "image_size": {"width": 512, "height": 512},
}  # fmt: skip


def test_an_a1111_request_is_a_job():
    job = InpaintJob(**translated(A1111_ROW))
    assert job == InpaintJob(
        image="s3://bucket/a.png", mask="s3://bucket/m.png", prompt="marble", negative_prompt="text", strength=0.8,
        guidance_scale=6, num_inference_steps=25, scheduler="dpmpp_2m_karras", mask_blur=4, padding_mask_crop=48,
        mask_polarity="black_edits", num_images_per_prompt=4, width=512, height=640, clip_skip=1,
    )  # fmt: skip


def test_without_full_res_the_whole_picture_is_rendered():
    whole = {**A1111_ROW, "inpaint_full_res": False}
    assert InpaintJob(**translated(whole)).padding_mask_crop is None


def test_a_fal_request_is_a_job():
    job = InpaintJob(**translated(FAL_ROW))
    assert job == InpaintJob(
        image="s3://bucket/a.png", mask="s3://bucket/m.png", prompt="marble", num_images_per_prompt=2, guidance_scale=6,
        num_inference_steps=25, scheduler="euler_ancestral", seed=3, clip_skip=1, strength=0.9, output_format="jpeg",
        loras=[{"path": "s3://bucket/l.safetensors", "scale": 0.5}], width=512, height=512,
        embeddings=[{"path": "s3://bucket/e.safetensors", "token": "<brand>"}],
    )  # fmt: skip


def test_a_line_of_an_openai_batch_is_unwrapped():
    line = {"custom_id": "x", "method": "POST", "url": "/v1/images/edits", "body": FAL_ROW}
    assert InpaintJob(**translated(line)).custom_id == "x"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"inpainting_fill": 2}, "inpainting_fill"),
        ({"restore_faces": True}, "restore_faces"),
        ({"sampler_name": "DPM fast"}, "sampler_name"),
        ({"init_images": ["a", "b"]}, "init_images"),
        ({"scheduler": "Exponential"}, "scheduler"),
        ({"override_settings": {"sd_vae": "x"}}, "sd_vae"),
        ({"prompt": "a <lora:brand:0.8>"}, "loras"),
        ({"strength": 0.5}, "twice"),
    ],
)
def test_what_would_change_the_picture_is_refused_and_never_dropped(change, word):
    with pytest.raises(InvalidParameter, match=word):
        translated({**A1111_ROW, **change})


def test_no_alias_is_a_field_s_own_name():
    aliases = {**A1111, **FAL, **SHORT}.keys() | NEUTRAL.keys()
    assert not aliases & InpaintJob.model_fields.keys()
    for name in SAMPLERS.values():
        InpaintJob(image="s3://bucket/a.png", scheduler=name)


# Memory


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path, kind):
    def peak(rows):
        path = tmp_path / f"{rows}.{kind}"
        fields = {"image": "s3://bucket/a.png", "mask": "s3://bucket/m.png", "prompt": "p" * 300}
        if kind == "parquet":
            import pyarrow
            from pyarrow import parquet

            table = pyarrow.table({name: [value] * rows for name, value in fields.items()})
            parquet.write_table(table, path, row_group_size=1000)
        else:
            line = json.dumps(fields) if kind == "jsonl" else ",".join(fields.values())
            head = "" if kind == "jsonl" else ",".join(fields) + "\n"
            path.write_text(head + f"{line}\n" * rows)
        manifest = Manifest(path)
        tracemalloc.start()
        assert sum(1 for _ in manifest) == rows
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(500)  # what is made once
    few, many = peak(2_000), peak(8_000)
    assert many < few + 200_000, f"{few:,} bytes for 2,000 rows, {many:,} for 8,000"
