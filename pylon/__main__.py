"""`python -m pylon` is the `pylon` command."""

from pylon.cli.app import main

if __name__ == "__main__":
    main()
