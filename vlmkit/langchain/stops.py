"""An answer's text as it comes, without what must not be shown: stop sequences and space at both ends."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Lets text through up to the first stop sequence.

    What could still turn out to be a stop sequence, or space at the end, is held back until more is known.
    All that comes out is what `VLM.ask` would give of the same text: without space at both ends.

    Args:
        stops: Sequences that end the text and are no part of it.

    Attributes:
        found: Whether a stop sequence was seen.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.found = False
        self._stops = stops
        self._held = ""
        self._begun = False

    def push(self, text: str) -> str:
        """Take the next piece, and give what is certain to belong to the answer."""
        if self.found:
            return ""
        self._held += text
        if self._cut():
            return self.end()
        certain = self._held[: len(self._held) - self._undecided()].rstrip()
        self._held = self._held[len(certain) :]
        return self._out(certain)

    def end(self) -> str:
        """The rest of the text, when nothing more comes."""
        rest, self._held = self._held.rstrip(), ""
        return self._out(rest)

    def would_stop(self, text: str) -> bool:
        """Whether a stop sequence is there once `text` has come; nothing is taken."""
        return any(stop in self._held + text for stop in self._stops)

    def _cut(self) -> bool:
        """Drop the stop sequence that is complete first, and what follows it.

        One that starts earlier and ends later does not count: token by token it would not have been seen.
        """
        places = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start) for start, stop in places if start >= 0]
        if found:
            self._held, self.found = self._held[: min(found)[1]], True
        return self.found

    def _undecided(self) -> int:
        """Length of the longest end of the text that a stop sequence starts with."""
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)

    def _out(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
