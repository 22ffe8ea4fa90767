"""`python -m vlmkit`, which `accelerate launch -m vlmkit` needs."""

import sys

from vlmkit.cli import main

sys.exit(main())
