"""What an engine tells whoever runs it."""

from worker.engine.stopwatch import Work


class Listener:
    """Called on the engine's thread; what is done in here, the device waits for."""

    def worked(self, stage: str, work: Work, seconds: float) -> None:
        """The device worked so long: stage vae_encode (texts included), denoise or vae_decode.

        What is done around the forwards for them counts here, too.
        """

    def computed(self, seconds: float) -> None:
        """A forward of one of the networks took so long, whether it came to something or not."""

    def swapped(self) -> None:
        """The weights were changed for other LoRAs. Raise DeviceLost where they are not what they should be."""

    def short_of_memory(self) -> None:
        """Memory ran out; a smaller attempt follows."""

    def broken_down(self, why: str, error: BaseException | None) -> None:
        """Nothing can be rendered any more, because of `error`, or of `InpaintEngine.give_up`. Called before any
        future says so.
        """
