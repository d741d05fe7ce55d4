"""``python -m specprof``."""

from specprof.commands import main

if __name__ == "__main__":
    main()
