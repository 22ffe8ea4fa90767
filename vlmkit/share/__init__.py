"""Work that runs have in common, done once: finished stages, tokenised conversations, frozen features."""

from __future__ import annotations

# Most gigabytes of one encoder's features: 8,000 images at the 576 patches of 1,024 numbers of LLaVA 1.5.
SHARE_LIMIT = 20.0
