"""How far a sync is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console

from vlmkit.cli.console import bars

# A log gets a line every tenth of the files, and after so many seconds at the latest.
_SECONDS = 30.0
# Rates are of so many seconds at least: files that did not change go by at once and say nothing of the rest.
_WINDOW = 60.0
_FILES = "files"


class Pace:
    """How many a second lately, of each thing that is counted.

    Rates are from one mark to another, a minute or more apart: what is half done counts on neither side.

    Args:
        began: In seconds.
    """

    def __init__(self, began: float) -> None:
        self._marks: deque[tuple[float, Counter[str]]] = deque([(began, Counter())])

    def mark(self, now: float, counts: Counter[str]) -> None:
        """Note how many are done by now."""
        self._marks.append((now, counts.copy()))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()

    def rate(self, name: str) -> float:
        """Of one thing; 0 where none was done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after[name] - before[name]) / max(end - start, 1e-9)


class SyncConsole:
    """Draws on stderr: files done, images and texts encoded a second, time left.

    Args:
        console: Where; None for stderr.
        clock: Tells the seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._bars = bars(self._console, time_left=False) if self._console.is_terminal else None
        self._task = self._bars.add_task("sync", total=None, values="") if self._bars else None
        self._clock, self._told, self._tenth = clock, clock(), 0
        self._counts: Counter[str] = Counter()
        self._units: dict[str, str] = {}
        self._files, self._contents = Pace(self._told), Pace(self._told)
        self._done, self._total, self._counted = 0, 0, self._told

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bars is not None:
            self._bars.stop()

    def encoded(self, encoder: str, count: int, unit: str = "images") -> None:
        """Note what went through an encoder.

        Args:
            encoder: Its name.
            count: How many.
            unit: What they are: `images` or `texts`.
        """
        self._units[encoder] = unit
        self._counts[encoder] += count
        self._contents.mark(self._clock(), self._counts)
        self._show()

    def files(self, done: int, total: int) -> None:
        """Show how many files are done."""
        self._done, self._total, self._counted = done, total, self._clock()
        self._files.mark(self._counted, Counter({_FILES: done}))
        self._contents.mark(self._counted, self._counts)
        self._show()

    def _show(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, completed=self._done, total=self._total or None, values=self._values()
            )
            return
        now, tenth = self._clock(), 10 * self._done // max(1, self._total)
        if tenth > self._tenth or now - self._told > _SECONDS:
            self._tenth, self._told = tenth, now
            text = f"sync {self._done}/{self._total or '?'} files  {self._values()}"
            self._console.print(text.rstrip(), highlight=False, soft_wrap=True)

    def _values(self) -> str:
        left = self._left()
        return "  ".join([*self._rates(), *([] if left is None else [f"{_as_clock(left)} left"])])

    def _rates(self) -> list[str]:
        """Images and texts a second, each by the encoder that took most: it takes an image once."""
        rates = dict.fromkeys(self._units.values(), 0.0)
        for encoder, unit in self._units.items():
            rates[unit] = max(rates[unit], self._contents.rate(encoder))
        return [f"{rate:,.1f} {unit}/s" for unit, rate in rates.items() if rate > 0]

    def _left(self) -> float | None:
        """Seconds, at the pace of the last files; None before the first ones are done."""
        pace = self._files.rate(_FILES)
        if not pace:
            return None
        return max(0.0, (self._total - self._done) / pace - (self._clock() - self._counted))


def _as_clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
