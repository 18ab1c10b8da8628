"""`python -m corte_teacher` is `corte-teacher`."""

from corte_teacher.cli import main

if __name__ == "__main__":
    main()
