"""`python -m bnfold` is the command `bnfold`."""

import sys

from bnfold.cli.app import main

sys.exit(main())
