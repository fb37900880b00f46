"""From a submission to a request that can step: texts and pictures encoded, noise drawn, its reference loaded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from worker.engine.picture_cache import PictureCache
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.prepare import pictures_of
from worker.engine.request import Request
from worker.engine.stopwatch import Stopwatch, Work
from worker.engine.submission import ImagePrompt, Submission, Ticket
from worker.engine.swaps import Swaps, key_of, text_part
from worker.engine.text_cache import TextCache

_OVERTAKEN = 8  # later calls that fit may be admitted before one that does not, so often


def admitted(
    waiting: Sequence[Ticket], active: Sequence[Ticket], fits: Callable[[Ticket, Sequence[Ticket]], bool]
) -> list[Ticket]:
    """Of `waiting`, in their order, what `fits` beside what is active and was admitted before it. Their futures run
    from here on, but for those that were taken back."""
    chosen: list[Ticket] = []
    skipped: list[Ticket] = []
    beside = list(active)
    for ticket in waiting:
        if fits(ticket, beside):
            chosen.append(ticket)
            if ticket.future.running() or ticket.future.set_running_or_notify_cancel():
                beside.append(ticket)
            for other in skipped:
                other.overtaken += 1
        else:
            skipped.append(ticket)
            if ticket.alone or ticket.overtaken >= _OVERTAKEN:
                break
    return chosen


class Beginnings:
    """For the engine's thread."""

    def __init__(self, pipe: StableDiffusionInpaintPipeline, swaps: Swaps, watch: Stopwatch):
        self.pipe, self._swaps, self._watch = pipe, swaps, watch
        self._texts = TextCache(pipe.tokenizer, pipe.text_encoder)
        self._pictures = PictureCache(pipe.vae)
        self._image_prompt: ImagePrompt | None = None
        # A CPU only loses: SD 1.5's encoder, 128 px, one thread: 5.0 s for four pictures at once, 4.1 s one by one.
        self.batches = pipe.device.type != "cpu"

    def encode(self, tickets: Sequence[Ticket]) -> None:
        """Have what was not seen before of the pictures of `tickets`, all of one size, encoded in one forward, where
        that is quicker, so that `request` finds it. What it raises may be the fault of any one of them."""
        if not self.batches:
            return
        missing = {ticket: self._pictures.missing(self._pictures_of(ticket)) for ticket in tickets}
        together = {key: picture for pictures in missing.values() for key, picture in pictures.items()}
        if len(together) > 1:
            whose = [ticket for ticket, pictures in missing.items() if pictures]
            rows = sum(ticket.reading.call.rows for ticket in whose)
            with self._watch.of("vae_encode", whose, Work(*whose[0].size(self.pipe.vae_scale_factor), rows)):
                self._pictures.encode_together(together)

    def _pictures_of(self, ticket: Ticket) -> list[torch.Tensor]:
        """``[1, 3, H, W]`` each, as `request` will have them encoded; none where the cache is passed by."""
        if ticket.reading is None or not isinstance(ticket.reading.call.generator, list):
            return []
        vae, unet = self.pipe.vae, self.pipe.unet
        plain = unet.config.in_channels == vae.config.latent_channels
        made = [pictures.to(vae.device, vae.dtype) for pictures in pictures_of(ticket.reading, plain=plain)]
        return [picture for pictures in made for picture in pictures.split(1)]

    def request(self, ticket: Ticket) -> Request:
        """Raises the pipeline's errors; a ticket that is begun again has to be rewound."""
        submission, reading = ticket.submission, ticket.reading
        weights = _text_key(submission)
        with self._watch.of("vae_encode", [ticket], Work(*ticket.size(self.pipe.vae_scale_factor), reading.call.rows)):
            texts = self._texts.texts(reading.call, reading.guided, weights, lambda: self._encoding(ticket))
            encode = self._pictures.latents_of
            request = self.pipe.begin(reading, scheduler=submission.scheduler, texts=texts, encode=encode)
        if submission.path_seeds:
            request = replace(request, state=replace(request.state, seed=submission.path_seeds))
        return request

    @contextmanager
    def _encoding(self, ticket: Ticket) -> Iterator[None]:
        """Within, the text encoder has the ticket's LoRAs and knows its words."""
        ticket.lora_seconds += self._swaps.text(text_part(ticket.submission.loras))
        words = ticket.submission.words
        try:
            for word in words:
                self.pipe.load_textual_inversion(word.tensors, token=word.token)
            yield
        finally:
            if words:
                self.pipe.unload_textual_inversion()

    def look_at(self, prompt: ImagePrompt | None) -> None:
        """Have the UNet look at this reference, or at none; what is active looks at the same already."""
        if same_reference(prompt, self._image_prompt):
            return
        if self._image_prompt is not None:
            self.pipe.unload_ip_adapter()
            self._image_prompt = None
        if prompt is not None:
            try:
                self.pipe.load_ip_adapter(prompt.groups, image_encoder_folder=None)
                self.pipe.set_ip_adapter_scale(prompt.scale)
            except BaseException:
                self.pipe.unload_ip_adapter()  # what was loaded by half
                raise
            self._image_prompt = prompt


def same_reference(one: ImagePrompt | None, other: ImagePrompt | None) -> bool:
    """Whether calls that look at them can be in the UNet together."""
    return (one and one.key) == (other and other.key)


def _text_key(submission: Submission) -> tuple[object, ...]:
    return key_of(text_part(submission.loras)), tuple((word.token, word.sha256) for word in submission.words)
