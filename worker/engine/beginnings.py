"""From a submission to a request that can step: texts and pictures encoded, noise drawn, its reference loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from worker.engine.picture_cache import PictureCache
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.request import Request
from worker.engine.stopwatch import Stopwatch, Work
from worker.engine.submission import ImagePrompt, Submission, Ticket
from worker.engine.swaps import Swaps, key_of, text_part
from worker.engine.text_cache import TextCache


class Beginnings:
    """For the engine's thread."""

    def __init__(self, pipe: StableDiffusionInpaintPipeline, swaps: Swaps, watch: Stopwatch):
        self.pipe, self._swaps, self._watch = pipe, swaps, watch
        self._texts = TextCache(pipe.tokenizer, pipe.text_encoder)
        self._pictures = PictureCache(pipe.vae)
        self._image_prompt: ImagePrompt | None = None

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

    def looks_at(self, prompt: ImagePrompt | None) -> bool:
        """Whether the UNet looks at exactly this reference, or at none."""
        return _key(prompt) == _key(self._image_prompt)

    def look_at(self, prompt: ImagePrompt | None) -> None:
        """Have the UNet look at this reference, or at none; what is active looks at the same already."""
        if self.looks_at(prompt):
            return
        if self._image_prompt is not None:
            self.pipe.unload_ip_adapter()
            self._image_prompt = None
        if prompt is not None:
            self._image_prompt = prompt  # first, so that one that loads by half is unloaded
            self.pipe.load_ip_adapter(prompt.groups, image_encoder_folder=None)
            self.pipe.set_ip_adapter_scale(prompt.scale)


def _key(prompt: ImagePrompt | None) -> tuple[str, float] | None:
    return prompt and prompt.key


def _text_key(submission: Submission) -> tuple[object, ...]:
    return key_of(text_part(submission.loras)), tuple((word.token, word.sha256) for word in submission.words)
