"""``python -m fedfair`` is the command ``fedfair``."""

import sys

from fedfair.cli import main

sys.exit(main())
