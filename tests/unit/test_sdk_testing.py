"""The farm in memory, and through it the SDK: what a user's own tests stand on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from farm.errors import (
    Canceled,
    IdempotencyConflict,
    InvalidParameter,
    JobFailed,
    LoraHashMismatch,
    MaskSizeMismatch,
    ResultTimeout,
    StoreUnavailable,
)
from farm.schemas import LoraRef
from producer import AsyncClient, InpaintJob, JobState
from producer.testing import FakeFarm
from producer.testing.render import WRITES_PLAIN, pasted_mask
from worker.images import masks


def job(farm: FakeFarm, name: str = "", **fields: object) -> InpaintJob:
    named = {"image": farm.photo("photo.png"), "mask": farm.mask("mask.png"), "custom_id": name}
    return InpaintJob(**{**named, **fields})


def picture(farm: FakeFarm, uri: str) -> Image.Image:
    return Image.open(BytesIO(farm.store.get(uri, max_bytes=10**7).data)).convert("RGB")


def test_a_job_keeps_its_promise_and_its_result_has_what_a_worker_s_has():
    farm = FakeFarm()
    result = farm.client().submit(job(farm, "sku-1", seed=7, num_images_per_prompt=2)).result()
    assert (result.custom_id, result.status, result.seed) == ("sku-1", JobState.SUCCEEDED, 7)
    assert [output.seed for output in result.outputs] == [7, 8]
    assert result.receipt is not None and result.receipt.max_abs_diff_outside == 0
    assert result.hashes.image and result.hashes.mask and result.hashes.checkpoint
    before, after = picture(farm, result.image), picture(farm, result.outputs[0].uri)
    mask = picture(farm, result.mask or "").convert("L")
    changed = ImageChops.difference(before, after).convert("L").point(lambda value: 255 if value else 0)
    assert ImageChops.difference(changed, mask).getbbox() is None


def test_a_render_is_deterministic_and_depends_on_what_was_asked():
    asked = [{}, {}, {"prompt": "oak"}, {"guidance_scale": 3.0}, {"num_inference_steps": 4}, {"scheduler": "euler"}]
    digests = []
    for fields in asked:
        farm = FakeFarm()
        digests.append(farm.client().submit(job(farm, "a", seed=1, **fields)).result().outputs[0].sha256)
    assert digests[0] == digests[1] and len(set(digests)) == len(asked) - 1


RINGS = Image.new("L", (60, 40), 0)
for number, level in enumerate((255, 0, 255, 0)):  # one touches the picture's edge, all lie in one another
    ImageDraw.Draw(RINGS).ellipse((8 + 5 * number, 3 * number, 59 - 5 * number, 39 - 3 * number), fill=level)
ImageDraw.Draw(RINGS).line((0, 5, 9, 5), fill=255)


@pytest.mark.parametrize("holes", [False, True])
def test_what_is_pasted_is_what_a_worker_pastes(holes):
    asked = InpaintJob(image="s3://fake/a.png", mask="s3://fake/m.png", fill_holes=holes)
    edits = np.asarray(RINGS)
    expected = masks.filled(edits) if holes else edits
    assert np.array_equal(np.asarray(pasted_mask(asked, RINGS)), expected)
    grown = asked.model_copy(update={"paste": "grown", "grow_mask": 3})
    assert np.array_equal(np.asarray(pasted_mask(grown, RINGS)), masks.grown(expected, 3))
    assert (expected == 255).sum() > (edits == 255).sum() or not holes


@pytest.mark.parametrize(
    ("fields", "outside"), [({}, 0), ({"paste": "grown"}, 5), ({"preserve_unmasked": False}, None)]
)
def test_pixels_change_as_far_as_the_job_lets_them(fields, outside):
    farm = FakeFarm()
    result = farm.client().submit(job(farm, "a", **fields)).result()
    before, after = (np.asarray(picture(farm, uri)).astype(int) for uri in (result.image, result.outputs[0].uri))
    changed = np.abs(after - before).max(axis=-1) > 0
    mask = np.asarray(picture(farm, result.mask or "").convert("L"))
    assert np.array_equal(changed, masks.grown(mask, outside) > 0 if outside is not None else np.ones_like(changed))
    if outside is None:
        assert result.receipt is None
    else:
        assert result.receipt is not None and result.receipt.max_abs_diff_outside == 0
        assert result.receipt.outside == ("grown" if outside else "submitted")
        assert result.receipt.pixels_outside == (~changed).sum()


def test_what_it_does_not_keep_of_a_picture_it_says():
    farm = FakeFarm()
    cut_out = Image.new("RGBA", (40, 30), (200, 90, 30, 255))
    cut_out.paste((0, 0, 0, 0), (0, 0, 20, 30))
    result = farm.client().submit(job(farm, "a", image=farm.put("cut-out.png", cut_out), mask=None)).result()
    assert result.warnings == (WRITES_PLAIN,) and result.receipt is not None
    assert result.receipt.pixels_outside == 20 * 30
    assert farm.client().submit(job(farm, "b")).result().warnings == ()


def test_jpeg_says_honestly_how_far_it_is_off():
    farm = FakeFarm()
    result = farm.client().submit(job(farm, output_format="jpeg", output_quality=40)).result()
    assert result.outputs[0].uri.endswith(".jpg")
    assert result.receipt is not None and result.receipt.max_abs_diff_outside > 0


def test_a_worker_s_verdicts_come_as_results():
    farm = FakeFarm()
    handle = farm.client().submit(job(farm, mask=farm.mask("small.png", (32, 32))))
    with pytest.raises(JobFailed, match="MaskSizeMismatch") as failure:
        handle.result()
    assert failure.value.result.error.code == MaskSizeMismatch.code
    pinned = LoraRef(path=farm.put("brand.safetensors", b"x"), sha256="0" * 64)
    assert farm.client().submit(job(farm, loras=(pinned,))).result(check=False).error.code == LoraHashMismatch.code
    for fields, code in (
        ({"embeddings": [{"path": "s3://fake/none.safetensors"}]}, "LoraNotFound"),
        ({"embeddings": [{"path": pinned.path}]}, "EmbeddingInvalid"),
        ({"ip_adapter": {"path": pinned.path, "image": farm.photo("look.png")}}, "CheckpointInvalid"),
    ):
        assert farm.client().submit(job(farm, **fields)).result(check=False).error.code == code


def test_faults_are_met_as_often_as_they_were_asked_for():
    farm = FakeFarm()
    farm.fail("a", "NsfwContent")
    client = farm.client()
    assert client.submit(job(farm, "a")).result(check=False).error.code == "NsfwContent"
    assert client.submit(job(farm, "a", seed=2)).result().status is JobState.SUCCEEDED
    farm.fail("b", StoreUnavailable("503"), times=2)
    assert client.submit(job(farm, "b")).result().attempt == 3
    farm.fail("c", "StoreUnavailable", times=99)
    given_up = client.submit(job(farm, "c")).result(check=False)
    assert (given_up.error.code, given_up.attempt) == ("StoreUnavailable", farm.settings.max_attempts)


def test_without_auto_jobs_wait_until_there_is_work():
    farm = FakeFarm(auto=False)
    client = farm.client()
    urgent, later = client.submit(job(farm, "u", priority=90)), client.submit(job(farm, "l"))
    assert (urgent.status(), later.status()) == (JobState.QUEUED, JobState.QUEUED)
    with pytest.raises(ResultTimeout):
        later.result(timeout=0.01)
    assert farm.work(1) == 1
    assert (urgent.status(), later.status()) == (JobState.SUCCEEDED, JobState.QUEUED)
    assert later.cancel() is JobState.CANCELED
    with pytest.raises(Canceled):
        later.result()
    assert urgent.cancel() is JobState.SUCCEEDED
    assert farm.work() == 0


def test_events_tell_each_state_once_and_end_with_the_result():
    farm = FakeFarm(auto=False)
    handle = farm.client().submit(job(farm, "a"))
    events = handle.events(timeout=5)
    assert next(events).state is JobState.QUEUED
    farm.work()
    last = next(events)
    assert last.state is JobState.SUCCEEDED and last.result is not None and last.result.custom_id == "a"
    assert list(events) == []


def test_a_handle_is_opened_again_by_its_address():
    farm = FakeFarm()
    client = farm.client()
    handle = client.submit(job(farm, "a"))
    for address in (handle.address, handle.batch_id):
        assert farm.client().job(address).result() == handle.result()
    batch = client.submit_batch([job(farm, f"sku-{n}") for n in range(5)])
    assert client.job(f"{batch.id}/sku-3").result().custom_id == "sku-3"
    for wrong in ("0" * 32, f"{batch.id}/nobody", f"{handle.batch_id}/b"):
        with pytest.raises(InvalidParameter):
            client.job(wrong)


def test_batches_are_paused_canceled_and_retried():
    farm = FakeFarm(auto=False)
    client = farm.client()
    farm.fail("sku-1", "NsfwContent")
    batch = client.submit_batch([job(farm, f"sku-{n}") for n in range(4)], idempotency_key="k")
    assert client.submit_batch([job(farm, f"sku-{n}") for n in range(4)], idempotency_key="k").id == batch.id
    with pytest.raises(IdempotencyConflict):
        client.submit_batch([job(farm, "else")], idempotency_key="k")
    batch.pause()
    assert farm.work() == 0 and batch.status().paused
    batch.resume()
    farm.work()
    assert batch.status().counts == {JobState.SUCCEEDED: 3, JobState.FAILED: 1}
    assert batch.retry_failed() == 1
    farm.work()
    assert batch.status().counts == {JobState.SUCCEEDED: 4}
    assert [result.generation for result in batch.results()] == [0, 1, 0, 0]
    canceled = client.submit_batch([job(farm, f"sku-{n}") for n in range(3)])
    canceled.cancel()
    farm.work()
    assert canceled.wait(timeout=1).counts == {JobState.CANCELED: 3}


# map


@pytest.mark.parametrize("ordered", [True, False])
def test_map_gives_every_result_once(ordered):
    farm = FakeFarm()
    farm.fail("sku-7", "NsfwContent")
    jobs = [job(farm, f"sku-{n}") for n in range(30)]
    results = list(farm.client().map(jobs, ordered=ordered, window=10, chunk=4))
    names = [result.custom_id for result in results]
    assert names == [one.custom_id for one in jobs] if ordered else sorted(names) == sorted(j.custom_id for j in jobs)
    assert [result.custom_id for result in results if result.error] == ["sku-7"]


def test_map_reads_an_endless_source_only_as_results_are_taken():
    farm = FakeFarm()
    read = count()

    def endless():
        for number in count():
            next(read)
            yield job(farm, f"sku-{number}")

    results = farm.client().map(endless(), window=20, chunk=5)
    for _ in range(12):
        next(results)
    assert next(read) <= 12 + 20 + 5
    results.close()


def test_as_completed_does_not_wait_for_the_slow_and_in_order_does():
    farm = FakeFarm(auto=False)
    jobs = [job(farm, "slow", priority=0), *(job(farm, f"quick-{n}", priority=90) for n in range(3))]
    client = farm.client()
    results = client.map(jobs, ordered=False, timeout=5, idempotency_key="k")
    client.submit_batch(jobs, idempotency_key="k/0")  # what `map` is going to submit
    farm.work(3)
    assert sorted(next(results).custom_id for _ in range(3)) == ["quick-0", "quick-1", "quick-2"]
    farm.work()
    assert [result.custom_id for result in results] == ["slow"]
    assert next(client.map(jobs, idempotency_key="k")).custom_id == "slow"
    assert len(farm.rendered) == 4  # the same key again renders nothing again


def test_map_says_so_when_nothing_ends():
    farm = FakeFarm(auto=False)
    with pytest.raises(ResultTimeout, match="1 jobs"):
        list(farm.client().map([job(farm, "a")], timeout=0.1))


# asyncio


def test_the_asyncio_twin_does_the_same_without_holding_up_the_loop():
    farm = FakeFarm(auto=False)

    async def use() -> list[str]:
        client = AsyncClient(client=farm.client())
        handle = await client.submit(job(farm, "a"))
        assert await handle.status() is JobState.QUEUED
        waiting = asyncio.create_task(handle.result(timeout=10))
        await asyncio.sleep(0)  # the loop goes on while a thread waits
        farm.work()
        assert (await waiting).custom_id == "a"
        assert [event.state async for event in (await client.job(handle.address)).events()] == [JobState.SUCCEEDED]
        farm.auto = True
        batch = await client.submit_batch([job(farm, f"b{n}") for n in range(3)])
        assert (await batch.wait(timeout=10)).counts == {JobState.SUCCEEDED: 3}
        assert [result.custom_id async for result in (await client.batch(batch.id)).follow(skip=1)] == ["b1", "b2"]
        other = await client.submit(job(farm, "c"))
        assert await other.cancel() is JobState.SUCCEEDED
        return [result.custom_id async for result in client.map((job(farm, f"m{n}") for n in range(5)), chunk=2)]

    with ThreadPoolExecutor(1) as thread:  # a browser's driver may keep a loop in this one
        assert thread.submit(asyncio.run, use()).result(60) == [f"m{n}" for n in range(5)]
