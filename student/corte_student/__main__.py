"""`python -m corte_student` is `corte-student`."""

from corte_student.cli import app

if __name__ == "__main__":
    app(prog_name="corte-student")
