"""The conformance kit: what every encoder has to keep, as a table of checks, for our tests and yours."""

from __future__ import annotations

from vlmkit.testing.encoder import check_encoder
from vlmkit.testing.references import transformers_reference
from vlmkit.testing.report import Report
from vlmkit.testing.table import CHECKS

__all__ = ["CHECKS", "Report", "check_encoder", "transformers_reference"]
