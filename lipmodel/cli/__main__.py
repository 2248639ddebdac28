"""`python -m lipmodel.cli`, where the `lipmodel` script is not on the path."""

from __future__ import annotations

import sys

from lipmodel.cli import main

if __name__ == "__main__":
    sys.exit(main())
