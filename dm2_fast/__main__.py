"""`python -m dm2_fast` is the command `dm2-fast`."""

from dm2_fast.cli import main

if __name__ == "__main__":
    main()
