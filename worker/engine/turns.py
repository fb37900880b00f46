"""Whose LoRAs act in the next step: one set merged into the weights, or a set of its own for every row.

What each way costs was measured (`measure`); until it was, sets take turns and nothing is mixed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

from torch import nn

from worker.engine.compiled import CompiledUNet, CompileMode
from worker.engine.denoise import Rows, all_alike, halves, image_tokens, parts
from worker.engine.lora.choice import Choice, Costs, Demand, choose
from worker.engine.lora.measure import forward_of, measure
from worker.engine.lora.mixed import MixedLoras
from worker.engine.lora.sets import Adapter, terms_of
from worker.engine.savings import packed_where_quicker
from worker.engine.stopwatch import Stopwatch
from worker.engine.submission import Footprint, Ticket
from worker.engine.swaps import Swaps, key_of, unet_part
from worker.engine.unet import UNet2DConditionModel

_TOKENS = 77
_NO_CHANGE = 0.05  # a larger batch has to be so much quicker a row, to be worth the wait


class Turn(NamedTuple):
    """Those that step now, and how."""

    mode: str
    tickets: tuple[Ticket, ...]


class Turns:
    """Of one UNet, whose merged set `swaps` keeps. For the engine's thread."""

    def __init__(self, unet: UNet2DConditionModel, swaps: Swaps, scale: int, watch: Stopwatch):
        """`scale`: pixels of a picture to a cell of the latent grid, along one side."""
        self._unet, self._swaps, self._scale, self._watch = unet, swaps, scale, watch
        self._mixed = MixedLoras(unet, swaps.merger.table)
        self._compiled: CompiledUNet | None = None
        self._costs: Costs | None = None
        self._pixels = 0  # of the pictures that the costs were measured at
        self._choice: tuple[object, Choice] | None = None

    def quicken(self, latent_size: tuple[int, int], rows: int, repeats: int) -> None:
        """Keep what makes forwards of `rows` rows at latents of (height, width) quicker here."""
        if self._swaps.packed is None:
            trial = forward_of(self._unet, latent_size, _TOKENS, rows)
            self._swaps.packed = packed_where_quicker(self._unet, trial, repeats)

    def compile(self, mode: CompileMode, latent_size: tuple[int, int], rows: Sequence[int]) -> None:
        """Make graphs for steps of so many rows; raises as CompiledUNet does."""
        if self._compiled is None:
            self._compiled = CompiledUNet(self._unet, mode)
            self._watch.also(self._compiled)
        for count in rows:
            self._compiled.prepare(latent_size, _TOKENS, count)

    def network(self, turn: Turn) -> nn.Module:
        """What makes the turn's forward: rows with LoRAs of their own need the layers that they hang on."""
        return self._unet if turn.mode == "mixed" or self._compiled is None else self._compiled

    def measure(self, latent_size: tuple[int, int], rows: Sequence[int], sets: Sequence[int], repeats: int) -> Costs:
        """What steps, merges and mixed steps cost at latents of (height, width), with whatever makes them quicker."""
        merger = self._swaps.merger
        trials = {"rows": rows, "ranks": (16, 128), "sets": sets, "repeats": repeats}
        return measure(self._unet, merger, self._mixed, latent_size=latent_size, **trials)

    def use(self, costs: Costs, pixels: int) -> None:
        """Decide by `costs`, measured at pictures of so many pixels."""
        self._costs, self._pixels, self._choice = costs, pixels, None

    def footprint(self, loras: Sequence[Adapter]) -> Footprint:
        """What a call's LoRAs are to the UNet. For any thread. Raises LoraIncompatible (read for another model) and
        InvalidParameter (a strength that is not finite), of the text encoder's part, too.
        """
        terms_of(loras, self._swaps.merger.table)
        mine = unet_part(loras)
        rank, share = self._mixed.size_of(mine)
        return Footprint(key_of(mine), mine, rank, share, self._mixed.mixable(mine))

    def together(self, active: Sequence[Ticket], ticket: Ticket) -> bool:
        """Whether the work ends sooner if `ticket` joins `active` now."""
        if all(ticket.loras.name == other.loras.name for other in active):
            return True
        if self._costs is None:
            return False
        return len(self._chosen((*active, ticket)).phases[0].members) == len(active) + 1

    def next(self, active: Sequence[Ticket]) -> Turn:
        """Those of `active`, not empty, that step now."""
        if all(ticket.loras.name == self._swaps.merged for ticket in active):
            return Turn("merged", tuple(active))
        if self._costs is None:
            first = active[0].loras.name
            return Turn("merged", tuple(ticket for ticket in active if ticket.loras.name == first))
        phase = self._chosen(active).phases[0]
        return Turn(phase.mode, tuple(active[i] for i in phase.members))

    @contextmanager
    def acting(self, turn: Turn, most_rows: int | None = None) -> Iterator[Rows]:
        """Within, the turn's LoRAs act on its rows, and what its texts and times come to under them is made.

        `most_rows`: of a forward (None: all).
        """
        if turn.mode == "merged":
            self._note(turn, self._swaps.unet(turn.tickets[0].loras.unet))
            self._condition(turn, lambda ticket, rows: nullcontext())
            yield all_alike
        else:
            sets = [ticket.loras.unet for ticket in turn.tickets for _ in range(ticket.rows)]
            seconds = self._swaps.unet(())
            # Conditions lay out batches of their own, of which few are remembered: the step's come last.
            self._condition(turn, lambda ticket, rows: self._mixed.rows([ticket.loras.unet] * rows))
            for part in parts(len(sets), most_rows):
                seconds += self._swaps.seconds_of(partial(self._mixed.prepare, sets[part]))
            self._note(turn, seconds)
            yield lambda part: self._mixed.rows(sets[part])

    def forget(self) -> None:
        """Free what is prepared of sets that are not painted with any more."""
        self._mixed.forget()

    def _note(self, turn: Turn, seconds: float) -> None:
        for ticket in turn.tickets:
            ticket.lora_seconds += seconds / len(turn.tickets)
            if ticket.loras.unet:
                ticket.modes.add(turn.mode)

    def _condition(self, turn: Turn, acting) -> None:
        for ticket in turn.tickets:
            if ticket.times is None:  # which are made last
                request = ticket.request
                texts = halves(request, request.prompt_embeds, request.negative_prompt_embeds)
                with acting(ticket, len(texts)):
                    ticket.texts = self._unet.text_keys_values(texts)
                    if images := image_tokens(request):
                        ticket.images = self._unet.image_keys_values(images)
                condition = None if request.timestep_cond is None else request.timestep_cond[:1]
                with acting(ticket, request.num_timesteps):
                    ticket.times = self._unet.time_states(request.state.schedule.float(), condition)

    def _chosen(self, tickets: Sequence[Ticket]) -> Choice:
        key = (self._swaps.merged, *((ticket.serial, ticket.evaluations_left // 8) for ticket in tickets))
        if self._choice is None or self._choice[0] != key:
            demands = [self._demand(ticket) for ticket in tickets]
            self._choice = key, choose(demands, self._costs, _demand(self.footprint(self._swaps.unet_set), 0, 0))
        return self._choice[1]

    def _demand(self, ticket: Ticket) -> Demand:
        width, height = ticket.size(self._scale)
        rows = ticket.rows * width * height / self._pixels
        return _demand(ticket.loras, rows, max(1, ticket.evaluations_left))


def _demand(loras: Footprint, rows: float, steps: int) -> Demand:
    return Demand(loras.name, rows, steps, loras.rank, loras.share, loras.mixable)


def best_rows(costs: Costs) -> int:
    """The largest batch measured that is worth it: quicker a row than the one before."""
    best, *others = sorted(costs.step)
    for rows in others:
        if costs.step[rows] / rows > (1 - _NO_CHANGE) * costs.step[best] / best:
            break
        best = rows
    return best
