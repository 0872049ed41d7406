"""`python -m selkern.cli`."""

import sys

from selkern.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
