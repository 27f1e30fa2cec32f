"""`python -m tui`; `macft` without arguments becomes this process."""

from tui.app import Studio


def main() -> None:
    """Open the studio."""
    Studio().run()


if __name__ == "__main__":
    main()
