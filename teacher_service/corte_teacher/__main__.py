"""`python -m corte_teacher` is `corte-teacher`."""

from corte_teacher.cli import app

if __name__ == "__main__":
    app()
