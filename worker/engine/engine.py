"""InpaintEngine: one warm pipeline, one thread that owns its device, and the calls of many that share every step.

    submit ──▶ waiting ──admit──▶ active ──step──▶ … ──retire──▶ the submission's future
                (texts, pictures encoded)  (one UNet forward)  (decoded, judged)

Between two steps calls come and go: each has its own schedule, guidance, seed and LoRAs, and its pictures are those it
would have alone. What fails fails alone, too: whose fault a failed forward was is found by stepping each by itself.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from worker.engine.batch_limit import BatchLimit
from worker.engine.denoise import Rows, advance, all_alike, group_key, predict
from worker.engine.faults import DeviceLost, Fault, MemoryExhausted, fault_of, first_line, within_memory
from worker.engine.listener import Listener
from worker.engine.output import decode
from worker.engine.picture_cache import PictureCache
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.request import Request
from worker.engine.stopwatch import Stopwatch, Work
from worker.engine.submission import GaveWay, ImagePrompt, Painted, Submission, Ticket
from worker.engine.swaps import Swaps, key_of, text_part, unet_part
from worker.engine.text_cache import TextCache

T = TypeVar("T")

logger = logging.getLogger(__name__)

SMALLER = "out of memory: rendered in smaller batches"
_OVERTAKEN = 8  # later calls that fit may be admitted before one that does not, so often


class InpaintEngine:
    """Made on a pipeline that nobody else uses while it lives. `max_rows`: of one forward, 2 a picture under guidance;
    calls share it as far as it goes.
    """

    def __init__(self, pipe: StableDiffusionInpaintPipeline, *, max_rows: int = 16, listener: Listener | None = None):
        self.pipe = pipe
        self.broken = ""
        """Why nothing can be rendered any more; empty while it can."""
        self.max_rows = max_rows
        self._listener = listener or Listener()
        self._device = str(pipe.device)
        self._watch = Stopwatch(pipe.device, self._listener.worked)
        self._swaps = Swaps(pipe.unet, pipe.text_encoder, self._watch.synchronize, self._listener.swapped)
        self.merger = self._swaps.merger
        self._texts = TextCache(pipe.tokenizer, pipe.text_encoder)
        self._pictures = PictureCache(pipe.vae)
        self._limit = BatchLimit()
        self._channels = pipe.unet.config.in_channels
        self._image_prompt: ImagePrompt | None = None
        self._sliced = False
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []
        self._work = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # For any thread

    def submit(self, submission: Submission) -> "Future[Painted]":
        """Have it painted; cancel the future to take it back while it waits.

        The call is checked and its pictures are read here. Raises the pipeline's InvalidParameter; the future raises
        GaveWay, MemoryExhausted, what `on_step` raised, and the engine's errors.
        """
        ticket = Ticket(submission, request=submission.resume)
        if submission.resume is None:
            prompt = submission.image_prompt
            picture = {} if prompt is None else {"ip_adapter_image": prompt.picture}
            ticket.reading = self.pipe.read_call(ip_adapters=len(picture), **submission.arguments, **picture)
        with self._work:
            if self.broken or self._closing:
                raise RuntimeError(self.broken or "the engine is closed")
            self._waiting.append(ticket)
            self._work.notify()
        return ticket.future

    @property
    def busy(self) -> bool:
        """Whether anything is being painted or waits for it."""
        return bool(self._active or self._waiting)

    @property
    def rows(self) -> int:
        """In flight: of the next step's forwards."""
        return sum(ticket.rows for ticket in list(self._active))

    def give_up(self, why: str, error: BaseException | None = None) -> None:
        """Render nothing more; what is in hand ends after the current step."""
        with self._work:
            first, self.broken = not self.broken, self.broken or why
            self._work.notify()
        if first:
            self._listener.broken_down(why, error)

    def close(self) -> None:
        """End the thread after the current step; what is not painted by then raises RuntimeError."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()

    # The engine's thread

    def _run(self) -> None:
        error: BaseException = RuntimeError(self.broken or "the engine was closed")
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._admit()
                    self._step()
                    self._retire()
        except BaseException as end:
            logger.exception("the engine's thread ended")
            error = end
            self.give_up(f"The engine's thread ended: {first_line(end)}", end)
        self._end(error)

    def _has_work(self) -> bool:
        with self._work:
            self._work.wait_for(lambda: self._closing or self.broken or self._active or self._waiting)
            return not (self._closing or self.broken)

    def _end(self, error: BaseException) -> None:
        with self._work:
            left = [*self._active, *self._waiting]
            self._active, self._waiting = [], deque()
        self._fail(left, error)

    # Admission

    def _admit(self) -> None:
        """Take from the waiting, in their order, what fits beside what is active."""
        skipped: list[Ticket] = []
        for ticket in list(self._waiting):
            if self.broken:
                return
            if not self._fits(ticket):
                skipped.append(ticket)
                if ticket.alone or ticket.overtaken >= _OVERTAKEN:
                    return
                continue
            self._waiting.remove(ticket)
            for other in skipped:
                other.overtaken += 1
            if ticket.future.running() or ticket.future.set_running_or_notify_cancel():
                self._begin(ticket)

    def _fits(self, ticket: Ticket) -> bool:
        if not self._active:
            return True
        beside = self._active[0]
        return (
            not (ticket.alone or beside.alone)
            and self._size(ticket) == self._size(beside)
            and _key(ticket.submission.image_prompt) == _key(self._image_prompt)
            and self.rows + ticket.rows <= min(self.max_rows, self._limit.rows or self.max_rows)
            and _loras(ticket) == _loras(beside)
        )

    def _size(self, ticket: Ticket) -> tuple[int, int]:
        """Width and height of its pictures in px."""
        if ticket.request is not None:
            height, width = ticket.request.latents.shape[-2:]
            return width * self.pipe.vae_scale_factor, height * self.pipe.vae_scale_factor
        return ticket.reading.call.width, ticket.reading.call.height

    def _begin(self, ticket: Ticket) -> None:
        """From the call to a request that can step."""
        try:
            if ticket.submission.give_way(ticket):
                raise GaveWay(ticket.request)
            self._look_at(ticket.submission.image_prompt)
            if ticket.request is None:
                ticket.request = self._within_memory(lambda: self._prepared(ticket))
            self._active.append(ticket)
        except MemoryExhausted as shortage:
            if not self._active:
                return self._fail([ticket], shortage)
            ticket.alone = True
            ticket.rewind()
            ticket.note(SMALLER)
            self._waiting.appendleft(ticket)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is this ticket's, and the others go on
            self._failed([ticket], error)

    def _prepared(self, ticket: Ticket) -> Request:
        submission, reading = ticket.submission, ticket.reading
        weights = _text_key(submission)
        with self._watch.of("vae_encode", [ticket], Work(*self._size(ticket), reading.call.rows)):
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

    def _look_at(self, prompt: ImagePrompt | None) -> None:
        """Have the UNet look at this reference, or at none; what is active looks at the same already."""
        if _key(prompt) == _key(self._image_prompt):
            return
        if self._image_prompt is not None:
            self.pipe.unload_ip_adapter()
            self._image_prompt = None
        if prompt is not None:
            self._image_prompt = prompt  # first, so that one that loads by half is unloaded
            self.pipe.load_ip_adapter(prompt.groups, image_encoder_folder=None)
            self.pipe.set_ip_adapter_scale(prompt.scale)

    # Steps

    def _step(self) -> None:
        groups: dict[object, list[Ticket]] = {}
        for ticket in self._active:
            if ticket.request.done:  # one that resumes after its last step is only decoded
                continue
            groups.setdefault(group_key(ticket.request), []).append(ticket)
        for group in groups.values():
            self._forward(group)

    def _forward(self, group: list[Ticket]) -> None:
        """Each of `group` one step further, all in one forward."""
        if self.broken:
            return
        try:
            outputs = self._within_memory(lambda: self._predicted(group))
        except MemoryExhausted as shortage:
            return self._smaller(group, shortage)
        except BaseException as error:  # noqa: BLE001 - it is looked for whose it is, and the others go on
            return self._failed(group, error)
        self._limit.fits()
        for ticket, output in zip(group, outputs, strict=True):
            self._advance(ticket, output)

    def _predicted(self, group: list[Ticket]) -> list[torch.Tensor]:
        requests = [ticket.request for ticket in group]
        with self._loras(group) as rows, self._watch.of("denoise", group, Work(*self._size(group[0]), _rows(group))):
            return predict(self.pipe.unet, requests, self._channels, self._limit.rows, rows)

    def _smaller(self, group: list[Ticket], shortage: MemoryExhausted) -> None:
        """Take fewer rows at once from now on, and for one row less memory: the step is made again."""
        for ticket in group:
            ticket.note(SMALLER)
        if self._limit.too_much(_rows(group)):
            return
        if self._sliced:
            return self._fail(group, shortage)
        self.pipe.enable_attention_slicing()
        self._sliced = True

    def _advance(self, ticket: Ticket, output: torch.Tensor) -> None:
        try:
            ticket.request = advance(ticket.request, output)
            ticket.submission.on_step(ticket)
            if ticket.submission.give_way(ticket):
                raise GaveWay(ticket.request)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is this ticket's, and the others go on
            self._failed([ticket], error)

    @contextmanager
    def _loras(self, group: list[Ticket]) -> Iterator[Rows]:
        seconds = self._swaps.unet(unet_part(group[0].submission.loras))
        for ticket in group:
            ticket.lora_seconds += seconds / len(group)
            if _loras(ticket):
                ticket.modes.add("merged")
        yield all_alike

    # Ends

    def _retire(self) -> None:
        for ticket in [ticket for ticket in self._active if ticket.request.done]:
            try:
                pictures, flags = self._decoded(ticket)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is this ticket's, and the others go on
                self._failed([ticket], error)
            else:
                self._active.remove(ticket)
                ticket.future.set_result(ticket.painted(pictures, flags))
        if self._sliced and not self._active:
            self.pipe.disable_attention_slicing()
            self._sliced = False

    def _decoded(self, ticket: Ticket) -> tuple[torch.Tensor, list[bool] | None]:
        """Its pictures, all at once, or where memory does not hold that one by one."""
        try:
            return self._within_memory(lambda: self._judged(ticket, len(ticket.request.latents)))
        except MemoryExhausted:
            ticket.note(SMALLER)
        return self._within_memory(lambda: self._judged(ticket, 1))

    def _judged(self, ticket: Ticket, rows: int) -> tuple[torch.Tensor, list[bool] | None]:
        with self._watch.of("vae_decode", [ticket], Work(*self._size(ticket), len(ticket.request.latents))):
            pictures, flags = self.pipe.judge(ticket.request, decode(self.pipe.vae, ticket.request, rows))
        return pictures.cpu(), flags

    def _failed(self, tickets: list[Ticket], error: BaseException) -> None:
        """What is not for want of memory: the device's end, or the fault of one of `tickets`."""
        if fault_of(error) is Fault.STICKY:
            self.give_up(_reason(error), error)
            self._fail(tickets, error)  # one that was just beginning is in neither list
            return self._end(error)
        if len(tickets) == 1:
            return self._fail(tickets, error)
        for ticket in tickets:
            self._forward([ticket])

    def _within_memory(self, do: Callable[[], T]) -> T:
        try:
            return within_memory(self._device, do)
        except MemoryExhausted:
            self._listener.short_of_memory()
            raise

    def _fail(self, tickets: list[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            if ticket in self._active:
                self._active.remove(ticket)
            if not ticket.future.cancelled() and (
                ticket.future.running() or ticket.future.set_running_or_notify_cancel()
            ):
                ticket.future.set_exception(error)


def _key(prompt: ImagePrompt | None) -> tuple[str, float] | None:
    return prompt and prompt.key


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DeviceLost) else f"The device failed: {first_line(error)}"


def _rows(group: list[Ticket]) -> int:
    return sum(ticket.rows for ticket in group)


def _loras(ticket: Ticket) -> tuple[object, ...]:
    """What tells sets apart that act on the UNet."""
    return key_of(unet_part(ticket.submission.loras))


def _text_key(submission: Submission) -> tuple[object, ...]:
    return key_of(text_part(submission.loras)), tuple((word.token, word.sha256) for word in submission.words)
