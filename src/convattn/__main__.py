"""`python -m convattn`, which is how `torchrun -m convattn` starts each process."""

import sys

from convattn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
