"""`python -m vft_lib` is `vft`."""

import sys

from .cli.vft import main

if __name__ == "__main__":
    sys.exit(main())
