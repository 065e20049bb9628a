"""The command `python -m dmdd_lite.train`; the function of that name is `from dmdd_lite import train`."""

import sys

from .own import main

if __name__ == "dmdd_lite.train":  # an import would put this module in the place of the function
    raise ImportError(
        "dmdd_lite.train is a command; use `from dmdd_lite import train`, or dmdd_lite.own.main"
    )
if __name__ == "__main__":
    sys.exit(main())
