"""``specprof`` and ``python -m specprof``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C is no failure, also while it is being read in, and when all is said."""
    try:
        from specprof.commands import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # What Python and its libraries do on the way out is not to be interrupted with a traceback.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
