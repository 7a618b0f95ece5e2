"""`python -m minedit` is `minedit`."""

import sys

from minedit.cli import main

sys.exit(main())
