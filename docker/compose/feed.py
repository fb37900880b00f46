"""Gives a trial farm something to do: draws products, uploads them, submits an edit of each, and prints what came.

FEED_JOBS pictures at once (12), again FEED_SECONDS (20) after they are done, FEED_ROUNDS times (0: for ever).
FEED_WAIT (300) is how long a round may take; 0 waits for nothing.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from farm.errors import FarmError
from farm.schemas import InpaintJob, LoraRef
from farm.storage import ObjectStore
from producer.client import Client

JOBS, ROUNDS = int(os.environ.get("FEED_JOBS", "12")), int(os.environ.get("FEED_ROUNDS", "0"))
SECONDS, WAIT = float(os.environ.get("FEED_SECONDS", "20")), float(os.environ.get("FEED_WAIT", "300"))
LORAS = Path(os.environ.get("FEED_LORAS", "/models/loras"))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def picture(seed: int) -> tuple[Image.Image, Image.Image]:
    """A bottle before a backdrop, 320×320 px, and the mask of the backdrop: white is what is painted anew."""
    dice = random.Random(seed)
    colour = [dice.randrange(40, 216) for _ in range(6)]
    image = Image.new("RGB", (320, 320), tuple(colour[:3]))
    mask = Image.new("L", image.size, 255)
    left, top = dice.randrange(90, 130), dice.randrange(60, 100)
    body, neck = (left, top + 50, left + 100, 290), (left + 35, top, left + 65, top + 60)
    for box in (body, neck):
        ImageDraw.Draw(image).rounded_rectangle(box, radius=14, fill=tuple(colour[3:]))
        ImageDraw.Draw(mask).rounded_rectangle(box, radius=14, fill=0)
    return image, mask


def put(store: ObjectStore, uri: str, image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    store.put(uri, buffer.getvalue(), content_type="image/png", create_only=False)
    return uri


def loras(store: ObjectStore, at: str) -> list[str]:
    """The demo model's, uploaded."""
    found = []
    for path in sorted(LORAS.glob("*.safetensors")):
        store.put(
            f"{at}/loras/{path.name}", path.read_bytes(), content_type="application/octet-stream", create_only=False
        )
        found.append(f"{at}/loras/{path.name}")
    return found


def jobs(client: Client, at: str, known: list[str], first: int) -> Iterator[InpaintJob]:
    for number in range(first, first + JOBS):
        image, mask = picture(number)
        yield InpaintJob(
            custom_id=f"bottle-{number}",
            image=put(client.store, f"{at}/inputs/{number}.png", image),
            mask=put(client.store, f"{at}/inputs/{number}-mask.png", mask),
            prompt="a bottle on a marble table, soft light",
            loras=(LoraRef(path=known[number % len(known)]),) if known else (),
            num_inference_steps=8,
            seed=number,
            output=f"{at}/pictures/",
        )


def main() -> None:
    client = Client()
    at = client.settings.store.rsplit("/", 1)[0]  # beside the farm's own objects
    known, first, done = loras(client.store, at), int(time.time()), 0
    while not ROUNDS or done < ROUNDS:
        handles = [client.submit(job) for job in jobs(client, at, known, first)]
        say(f"{len(handles)} jobs submitted")
        if WAIT:
            results = [handle.result(timeout=WAIT, check=False) for handle in handles]
            good = sum(result.status == "succeeded" for result in results)
            say(f"{good} of {len(results)} succeeded" + "".join(f"; {r.error.code}" for r in results if r.error))
        first, done = first + JOBS, done + 1
        time.sleep(SECONDS)


if __name__ == "__main__":
    try:
        main()
    except FarmError as error:
        sys.exit(f"feed: {error.code}: {error}")
