"""From a query to ranked hits, each with its reasons: ask several spaces, fuse, collapse, diversify, show."""

from vlmkit_retrieval.search.asked import AskedSpace, image_space, patch_space, term_space, text_space
from vlmkit_retrieval.search.fusion import RankedList, fuse
from vlmkit_retrieval.search.hits import Duplicate, Explanation, SearchHit, Share
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.searcher import Searcher
from vlmkit_retrieval.search.terms import Bm25Terms, TermEncoder

__all__ = [
    "AskedSpace",
    "Bm25Terms",
    "Duplicate",
    "Explanation",
    "RankedList",
    "SearchHit",
    "SearchOptions",
    "Searcher",
    "Share",
    "TermEncoder",
    "fuse",
    "image_space",
    "patch_space",
    "term_space",
    "text_space",
]
