"""What a file becomes: images with captions, text and Markdown in chunks, pages of PDF files.

with Reader(found.files, kinds=("images", "pdf")) as reader:
    for file in found.files.values():
        for item in reader.read(file):
            ...
    reader.refused  # files, or parts of them, that gave no items, with the reason
"""

from __future__ import annotations

from vlmkit_retrieval.sources.items import Item, Rules, Source, as_line
from vlmkit_retrieval.sources.reader import SOURCES, Reader, suffixes_of

__all__ = ["SOURCES", "Item", "Reader", "Rules", "Source", "as_line", "suffixes_of"]
