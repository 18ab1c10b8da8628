"""Answers that were paid for, on disk, each asked for once.

`store` holds the ledger, `owners` the proof that a process which reserved a question still lives.
"""

from corte_student.ledger.store import Counts, Ledger, Question, default_ledger_path, ensure_outside

__all__ = ["Counts", "Ledger", "Question", "default_ledger_path", "ensure_outside"]
