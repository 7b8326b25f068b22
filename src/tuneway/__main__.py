"""`python -m tuneway` is the `tuneway` command."""

from tuneway.cli import main

if __name__ == "__main__":
    main()
