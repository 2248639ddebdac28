"""`python -m lipmodel`, the same as the command `lipmodel`."""

from lipmodel.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
