"""`freezetrain`, and `python -m freezetrain`: the command line, once all that it needs is there."""

import sys

from freezetrain.extras import MissingPackageError, require


def main() -> None:
    try:
        require("train", "the command line")
    except MissingPackageError as error:
        print(f"freezetrain: {error}", file=sys.stderr)
        sys.exit(2)
    from freezetrain.cli import main as run

    run()


if __name__ == "__main__":
    main()
