"""`python -m bnfold` is the command `bnfold`."""

import sys

from bnfold.cli import main

sys.exit(main())
