"""Entry point of `mmlab` and `python -m mmlab`."""

import sys

from mmlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
