"""How many answers are generated at once, and how many requests wait for their turn."""

from __future__ import annotations

import asyncio
from collections import deque

from fastchat.serve.api.errors import ApiError


class Admission:
    """At most `most` answers at once, first come first served, and `most_waiting` waiting requests."""

    def __init__(self, most: int, most_waiting: int):
        self.most, self.most_waiting = most, most_waiting
        self.running = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, num: int) -> None:
        """Wait until `num` answers may begin. Raises ApiError if they never may, or if too many requests wait."""
        if num > self.most:
            raise ApiError(
                400, f"The request asks for {num} answers; this server gives at most {self.most} at once.", "n"
            )
        if not self._waiting and self.running + num <= self.most:
            self.running += num
            return
        if len(self._waiting) >= self.most_waiting:
            message = (
                f"{self.running} answers are being generated and {len(self._waiting)} requests wait; try again later."
            )
            raise ApiError(429, message, code="queue_full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, num))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(num)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[0] is not turn)
                self._admit()
            raise

    def leave(self, num: int) -> None:
        """`num` answers are complete, or given up."""
        self.running -= num
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running + self._waiting[0][1] <= self.most:
            turn, num = self._waiting.popleft()
            if not turn.done():
                self.running += num
                turn.set_result(None)
