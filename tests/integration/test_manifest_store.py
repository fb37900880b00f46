"""A manifest in a real S3, its inputs beside it: read in ranges, checked row by row."""

import json
from io import BytesIO

import pytest
from PIL import Image

from farm.config import load_settings
from farm.errors import InputNotFound
from producer.client import Client
from producer.manifest import Manifest
from producer.preflight import Preflight


@pytest.fixture
def client(s3_server, s3_store, s3_bucket, redis_url, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return Client(load_settings(store=f"s3://{s3_bucket}/farm", redis_url=redis_url), store=s3_store)


def png(colour: int, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = BytesIO()
    Image.new("L", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_rows_of_a_stored_manifest_are_checked_where_their_objects_lie(client, s3_bucket):
    def put(name: str, data: bytes) -> None:
        uri = f"s3://{s3_bucket}/{name}"
        client.store.put(uri, data, content_type="application/octet-stream", create_only=True)

    half = Image.new("L", (64, 48), 0)
    half.paste(255, (0, 0, 32, 48))
    buffer = BytesIO()
    half.save(buffer, "PNG")
    for name, data in {"photo.png": png(90), "mask.png": buffer.getvalue(), "black.png": png(0)}.items():
        put(f"runs/{name}", data)
    masks = ["mask.png", "black.png", "none.png"]
    rows = [{"image": "photo.png", "mask": mask, "prompt": "p" * 2000} for mask in masks] * 500
    put("runs/catalogue.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    manifest = Manifest(f"s3://{s3_bucket}/runs/catalogue.jsonl", settings=client.settings, store=client.store)
    examined = list(Preflight(client).examine(manifest))
    assert len(examined) == 1500
    codes = [{finding.code for finding in row.findings} for row in examined[-3:]]
    assert codes == [set(), {"MaskEmpty"}, {"InputNotFound"}]
    assert examined[0].coverage == 0.5
    with pytest.raises(InputNotFound):
        list(Manifest(f"s3://{s3_bucket}/none.csv", settings=client.settings, store=client.store))
