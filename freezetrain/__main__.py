"""`python -m freezetrain`: the command line."""

from freezetrain.cli import main

if __name__ == "__main__":
    main()
