"""`python -m launcher` is the `trestle` command."""

import sys

from launcher.cli import main

sys.exit(main())
