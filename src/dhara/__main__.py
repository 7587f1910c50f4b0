"""`python -m dhara`."""

from dhara.cli.main import main

if __name__ == "__main__":
    main()
