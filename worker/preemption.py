"""How a render that has to stop says so, and what it leaves for the worker that goes on. Free of torch."""

from __future__ import annotations

from farm.errors import Preempted


class Preemption(Preempted):
    """A render stopped between two steps.

    `state` is everything that the next attempt needs to go on there: a safetensors blob, to be kept until the job has
    ended and then given back as the request's `resume`. `step` counts the model evaluations that it holds, of one
    picture. A render that is stopped before it began raises plain `Preempted`; a state that it was given stays good.
    """

    def __init__(self, state: bytes, step: int):
        super().__init__(f"The render was stopped after step {step}; its state is saved and the next attempt goes on.")
        self.state, self.step = state, step
