"""`python -m flows` is the command line, which itself lies above the flows."""

from commands.__main__ import main

if __name__ == "__main__":
    main()
