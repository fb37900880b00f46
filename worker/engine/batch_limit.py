"""How many rows the device takes at once, learnt from its refusals."""

_PATIENCE = 256  # forwards that went well before twice as many rows are tried again


class BatchLimit:
    """`rows` in one forward, None while nothing was refused: halved by a refusal, doubled after a long time without."""

    def __init__(self) -> None:
        self.rows: int | None = None
        self._refused = self._well = 0

    def fits(self) -> None:
        """Note a forward that went well."""
        if self.rows is None:
            return
        self._well += 1
        if self._well >= _PATIENCE:
            self._well, self.rows = 0, 2 * self.rows
            if self.rows > self._refused:
                self.rows = None

    def too_much(self, rows: int) -> bool:
        """Note that memory did not hold a forward of a batch of `rows`. False if it was one row at a time already."""
        tried = min(rows, self.rows or rows)
        self._refused, self._well, self.rows = tried, 0, max(1, tried // 2)
        return tried > 1
