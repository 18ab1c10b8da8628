"""Answers that were paid for, on disk, each asked for once, and what they cost.

`store` holds the ledger, `schema` its tables, `rows` one stored answer, `spending` the money, `owners` the
proof that a process which claimed a question still lives, `spill` what came when the disk was full. `care`
looks after a ledger, `exchange` brings answers from one to another, `guest` reads another's.
"""

from corte_student.ledger.care import Checked, Group, Pruned, Stock, prune, take_stock, verify, weigh
from corte_student.ledger.exchange import Exported, Merged, export, merge
from corte_student.ledger.rows import Selection
from corte_student.ledger.spending import Spending
from corte_student.ledger.store import Counts, Ledger, Question, default_ledger_path, ensure_outside

__all__ = [
    "Ledger",
    "Question",
    "Counts",
    "Spending",
    "default_ledger_path",
    "ensure_outside",
    "Selection",
    "take_stock",
    "Stock",
    "Group",
    "verify",
    "Checked",
    "weigh",
    "prune",
    "Pruned",
    "export",
    "Exported",
    "merge",
    "Merged",
]
