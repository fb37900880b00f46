"""InpaintEngine: one warm pipeline, one thread that owns its device, and the calls of many that share every step.

    submit ──▶ waiting ──admit──▶ active ──step──▶ … ──retire──▶ the submission's future
                (texts, pictures encoded)  (one UNet forward)  (decoded, judged)

Between two steps calls come and go: each has its own schedule, guidance, seed and LoRAs, and its pictures are those it
would have alone. What fails fails alone, too: whose fault a failed forward was is found by stepping each by itself.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from worker.engine.batch_limit import BatchLimit
from worker.engine.beginnings import Beginnings, admitted, same_reference
from worker.engine.compiled import CompileMode
from worker.engine.conditions import ImageKeysValues, KeysValues, TimeStates
from worker.engine.denoise import Conditions, advance, group_key, predict
from worker.engine.faults import DeviceLost, Fault, MemoryExhausted, fault_of, first_line, within_memory
from worker.engine.listener import Listener
from worker.engine.lora.choice import Costs
from worker.engine.output import decode_together
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.stopwatch import Stopwatch, Work
from worker.engine.submission import GaveWay, Painted, Submission, Ticket
from worker.engine.swaps import Swaps
from worker.engine.turns import Turn, Turns, best_rows

T = TypeVar("T")

logger = logging.getLogger(__name__)

SMALLER = "out of memory: rendered in smaller batches"


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
        self._watch = Stopwatch(pipe.device, self._listener.worked, self._listener.computed, pipe.networks())
        self._swaps = Swaps(pipe.unet, pipe.text_encoder, self._watch.synchronize, self._listener.swapped)
        self.merger = self._swaps.merger
        self._turns = Turns(pipe.unet, self._swaps, pipe.vae_scale_factor, self._watch)
        self._prompts_of_batch: tuple[tuple[int, ...], KeysValues, list[ImageKeysValues]] | None = None
        self._beginnings = Beginnings(pipe, self._swaps, self._watch)
        self._limit = BatchLimit()
        self._channels = pipe.unet.config.in_channels
        self._sliced = False
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._work = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # For any thread

    def submit(self, submission: Submission) -> "Future[Painted]":
        """Have it painted; cancel the future to take it back while it waits.

        The call is checked and its pictures are read here. Raises InvalidParameter and LoraIncompatible; the future
        raises GaveWay, MemoryExhausted, what `on_step` raised, and the engine's errors.
        """
        loras = self._turns.footprint(submission.loras)
        ticket = Ticket(submission, request=submission.resume, loras=loras)
        if submission.resume is None:
            prompt = submission.image_prompt
            picture = {} if prompt is None else {"ip_adapter_image": prompt.picture}
            ticket.reading = self.pipe.read_call(ip_adapters=len(picture), **submission.arguments, **picture)
        with self._work:
            if self._ending:
                raise RuntimeError(self.broken or "the engine is closed")
            self._waiting.append(ticket)
            self._work.notify()
        return ticket.future

    def quicken(self, width: int, height: int, *, rows: int, repeats: int = 3) -> None:
        """Try what may make forwards of so many rows of pictures of this size quicker, and keep what does."""
        self._call(lambda: self._turns.quicken(self._grid(width, height), rows, repeats))

    def compile(self, mode: CompileMode, width: int, height: int, *, rows: Sequence[int]) -> None:
        """Have steps of so many rows of pictures of this size made by `torch.compile`. Takes a minute for each.

        Raises InvalidParameter for a mode that it does not have, FeatureUnavailable where it does not work here.
        """
        self._call(lambda: self._turns.compile(mode, self._grid(width, height), rows))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        return height // self.pipe.vae_scale_factor, width // self.pipe.vae_scale_factor

    def measure(self, width: int, height: int, *, rows: Sequence[int], sets: Sequence[int], repeats: int = 3) -> Costs:
        """Find out what batches and LoRAs cost at pictures of this size, and decide by it from now on.

        Waits for its turn like a submission. `rows`: numbers of rows to try; the best becomes `max_rows`.
        """
        costs = self._call(lambda: self._turns.measure(self._grid(width, height), rows, sets, repeats))
        self.use(costs, width, height)
        return costs

    def use(self, costs: Costs, width: int, height: int) -> None:
        """Decide by what was measured before, at pictures of this size on a device like this."""
        self._call(lambda: self._turns.use(costs, width * height))
        self.max_rows = best_rows(costs)

    def _call(self, do: Callable[[], T]) -> T:
        """What `do` gives, on the engine's thread, once nothing is being painted."""
        future: Future[T] = Future()
        with self._work:
            if self._ending:
                raise RuntimeError(self.broken or "the engine is closed")
            self._calls.append((do, future))
            self._work.notify()
        return future.result()

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
            self._work.wait_for(lambda: self._ending or self._active or self._waiting or self._calls)
            calls = [] if self._active else [self._calls.popleft() for _ in range(len(self._calls))]
        for do, future in calls:
            try:
                future.set_result(do())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
        return not self._ending

    @property
    def _ending(self) -> bool:
        return self._closing or bool(self.broken)

    def _end(self, error: BaseException) -> None:
        with self._work:
            left, calls = [*self._active, *self._waiting], list(self._calls)
            self._active, self._waiting, self._calls = [], deque(), deque()
        self._fail(left, error)
        for _, future in calls:
            future.set_exception(error)

    # Admission

    def _admit(self) -> None:
        """Take from the waiting, in their order, what fits beside what is active."""
        with self._work:
            waiting = list(self._waiting)
        chosen = admitted(waiting, self._active, self._fits)
        self._encode([ticket for ticket in chosen if ticket.future.running()])
        for ticket in chosen:
            if self.broken:
                return
            with self._work:
                self._waiting.remove(ticket)
            if ticket.future.running():
                self._begin(ticket)

    def _fits(self, ticket: Ticket, active: Sequence[Ticket]) -> bool:
        if not active:
            return True
        beside = active[0]
        return (
            not (ticket.alone or beside.alone)
            and self._size(ticket) == self._size(beside)
            and same_reference(ticket.submission.image_prompt, beside.submission.image_prompt)
            and sum(one.rows for one in (*active, ticket)) <= min(self.max_rows, self._limit.rows or self.max_rows)
            and self._turns.together(active, ticket)
        )

    def _size(self, ticket: Ticket) -> tuple[int, int]:
        return ticket.size(self.pipe.vae_scale_factor)

    def _encode(self, tickets: Sequence[Ticket]) -> None:
        """Their pictures together. Where that fails, each is encoded as it begins, and only the guilty one fails."""
        try:
            self._within_memory(lambda: self._beginnings.encode(tickets))
        except MemoryExhausted:
            for ticket in tickets:
                ticket.note(SMALLER)
        except Exception as error:  # noqa: BLE001 - whatever it is, it comes again where one of them begins
            logger.warning("pictures are encoded one by one: %s", first_line(error))

    def _begin(self, ticket: Ticket) -> None:
        """From the call to a request that can step."""
        try:
            if ticket.submission.give_way(ticket):
                raise GaveWay(ticket.request)
            self._beginnings.look_at(ticket.submission.image_prompt)
            if ticket.request is None:
                ticket.request = self._within_memory(lambda: self._beginnings.request(ticket))
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
        """Those of `group` whose turn it is one step further, all in one forward."""
        if self.broken:
            return
        turn = self._turns.next(group)
        try:
            outputs = self._within_memory(lambda: self._predicted(turn))
        except MemoryExhausted as shortage:
            return self._smaller(turn.tickets, shortage)
        except BaseException as error:  # noqa: BLE001 - it is looked for whose it is, and the others go on
            return self._failed(turn.tickets, error, self._forward)
        self._limit.fits()
        for ticket, output in zip(turn.tickets, outputs, strict=True):
            self._advance(ticket, output)

    def _predicted(self, turn: Turn) -> list[torch.Tensor]:
        tickets = turn.tickets
        requests = [ticket.request for ticket in tickets]
        with (
            self._turns.acting(turn, self._limit.rows) as rows,
            self._watch.of("denoise", tickets, self._work_of(tickets)),
        ):
            unet = self.pipe.unet if self._sliced else self._turns.network(turn)
            return predict(unet, requests, self._channels, self._limit.rows, rows, self._conditions(tickets))

    def _conditions(self, tickets: Sequence[Ticket]) -> Conditions:
        steps = [(ticket, ticket.request.step_index) for ticket in tickets]
        now = [ticket.times.rows(slice(i, i + 1)).repeated(ticket.rows) for ticket, i in steps]
        key = tuple(ticket.serial for ticket in tickets)
        if self._prompts_of_batch is None or self._prompts_of_batch[0] != key:
            images = [ImageKeysValues.cat(each) for each in zip(*(ticket.images for ticket in tickets), strict=True)]
            self._prompts_of_batch = key, KeysValues.cat([ticket.texts for ticket in tickets]), images
        return TimeStates.cat(now), *self._prompts_of_batch[1:]

    def _work_of(self, tickets: Sequence[Ticket]) -> Work:
        return Work(*self._size(tickets[0]), sum(ticket.rows for ticket in tickets))

    def _smaller(self, group: Sequence[Ticket], shortage: MemoryExhausted) -> None:
        """Take fewer rows at once from now on, and for one row less memory: the step is made again."""
        for ticket in group:
            ticket.note(SMALLER)
        self._turns.forget()  # which made room on the device for batches that it does not hold
        if self._limit.too_much(self._work_of(group).rows):
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

    # Ends

    def _retire(self) -> None:
        done: dict[object, list[Ticket]] = {}
        for ticket in self._active:
            if ticket.request.done:
                done.setdefault(self._decodes_with(ticket), []).append(ticket)
        for tickets in done.values():
            self._decode(tickets)
        if self._sliced and not self._active:
            self.pipe.disable_attention_slicing()
            self._sliced = False

    def _decodes_with(self, ticket: Ticket) -> object:
        """Tickets of one key are decoded together: a GPU gains by it, a CPU only needs more memory."""
        latents = ticket.request.latents
        alone = latents.device.type == "cpu" or ticket.request.pixels is not None
        return ticket.serial if alone else (latents.shape[1:], latents.dtype)

    def _decode(self, tickets: list[Ticket], at_once: int | None = None) -> None:
        """Their pictures, all at once; where memory does not hold that, one by one."""
        try:
            judged = self._within_memory(lambda: self._judged(tickets, at_once))
        except MemoryExhausted as shortage:
            if at_once == 1:
                return self._fail(tickets, shortage)
            for ticket in tickets:
                ticket.note(SMALLER)
            return self._decode(tickets, 1)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is one ticket's, and the others go on
            return self._failed(tickets, error, self._decode)
        for ticket, (pictures, flags) in zip(tickets, judged, strict=True):
            self._active.remove(ticket)
            ticket.future.set_result(ticket.painted(pictures, flags))

    def _judged(self, tickets: list[Ticket], at_once: int | None) -> list[tuple[torch.Tensor, list[bool] | None]]:
        requests = [ticket.request for ticket in tickets]
        work = Work(*self._size(tickets[0]), sum(len(request.latents) for request in requests))
        with self._watch.of("vae_decode", tickets, work):
            decoded = decode_together(self.pipe.vae, requests, at_once)
            judged = [self.pipe.judge(*pair) for pair in zip(requests, decoded, strict=True)]
        return [(pictures.cpu(), flags) for pictures, flags in judged]

    def _failed(
        self, tickets: Sequence[Ticket], error: BaseException, again: Callable[[list[Ticket]], None] | None = None
    ) -> None:
        """What is not for want of memory: the device's end, or the fault of one of `tickets`, each of which is then
        tried `again` by itself.
        """
        if fault_of(error) is Fault.STICKY:
            self.give_up(_reason(error), error)
            self._fail(tickets, error)  # one that was just beginning is in neither list
            return self._end(error)
        if len(tickets) == 1:
            return self._fail(tickets, error)
        for ticket in tickets:
            again([ticket])

    def _within_memory(self, do: Callable[[], T]) -> T:
        try:
            return within_memory(self._device, do)
        except MemoryExhausted:
            self._listener.short_of_memory()
            raise

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            if ticket in self._active:
                self._active.remove(ticket)
            if not ticket.future.cancelled() and (
                ticket.future.running() or ticket.future.set_running_or_notify_cancel()
            ):
                ticket.future.set_exception(error)


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DeviceLost) else f"The device failed: {first_line(error)}"
