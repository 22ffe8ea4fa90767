"""How far a sync is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Self

from rich.console import Console

from vlmkit.cli.console import bars

# A log gets a line every tenth of the files, and after so many seconds at the latest.
_SECONDS = 30.0


class SyncConsole:
    """Draws on stderr: files done, contents encoded a second, time left.

    Args:
        console: Where; None for stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = bars(self._console) if self._console.is_terminal else None
        self._task = self._bars.add_task("sync", total=None, values="") if self._bars else None
        self._began = self._last = time.monotonic()
        self._tenth = 0
        self._encoded: Counter[str] = Counter()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bars is not None:
            self._bars.stop()

    def encoded(self, encoder: str, count: int) -> None:
        """Note what went through an encoder."""
        self._encoded[encoder] += count

    def files(self, done: int, total: int) -> None:
        """Show how many files are done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, values=self._rate())
            return
        now, tenth = time.monotonic(), 10 * done // max(1, total)
        if tenth > self._tenth or now - self._last > _SECONDS:
            self._tenth, self._last = tenth, now
            left = (now - self._began) / done * (total - done)
            text = f"sync {done}/{total} files  {self._rate()}  {_clock(left)} left"
            self._console.print(text, highlight=False, soft_wrap=True)

    def _rate(self) -> str:
        """By the encoder that took most: each takes an image once."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{max(self._encoded.values(), default=0) / seconds:,.1f} images/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
