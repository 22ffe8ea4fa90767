"""Conversations that were tokenised before: the same text comes back in every epoch, and often within one."""

from __future__ import annotations

from vlmkit.data.sample import Conversation
from vlmkit.data.tokens import TokenRow

# Tokens that are kept, at some 50 bytes each with Python's integers.
ROOM = 2**20


class KnownRows:
    """Rows of tokens by conversation, one token an image, for one tokenizer and prompt format.

    When there is no room, new rows are not kept. Throwing out the oldest would be worse: every epoch passes
    through all rows in turn, so each would be thrown out just before it is needed again.

    Args:
        room: Most tokens of all rows.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._rows: dict[Conversation, TokenRow] = {}
        self._room = room

    def get(self, conversation: Conversation) -> TokenRow | None:
        """The row, or None."""
        return self._rows.get(conversation)

    def put(self, conversation: Conversation, row: TokenRow) -> None:
        """Keep a row."""
        if len(row.ids) <= self._room:
            self._rows[conversation] = row
            self._room -= len(row.ids)
