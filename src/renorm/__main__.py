"""``python -m renorm``: the command line where its script is not installed."""

import sys

from renorm.cli import main

sys.exit(main())
