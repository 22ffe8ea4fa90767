"""Make an index hold what folders hold. Any prefix of the work may survive a kill; the next run finishes it.

plan.py says which files there are and what may be removed, stored.py what the index has of them, units.py in
which portions files are worked on, slots.py what each encoder needs, embed.py makes vectors, write.py stores.
"""

from vlmkit_retrieval.sync.run import Encoded, Progress, Sync, SyncOptions
from vlmkit_retrieval.sync.units import FILES

__all__ = ["FILES", "Encoded", "Progress", "Sync", "SyncOptions"]
