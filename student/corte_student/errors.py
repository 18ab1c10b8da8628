"""What can go wrong on the student's side, and the exit code of each.

    CorteError (corte_protocol)
        StudentError
            SettingsError           2   a setting, flag or recipe is wrong
            TeacherError            3   the teacher cannot or will not answer
                Unavailable             unreachable, overloaded or broken for longer than the deadline
                Refused                 it answers, but not to us, or not this
                BrokeContract           it answered something that breaks the protocol
                ImageRefused            it will not take this one image, which is set aside
                    AnswerLost              it took the image, and the answer was lost on the way
                Changed                 its revision or its classes are not those the run began with
                BudgetExhausted         the next request would pass the budget
            DataError               4   images, labels or a class map cannot be used
            CheckpointError         4   a run folder or checkpoint cannot be used
            LedgerError             4   the ledger cannot be read or written
            TrainingDiverged        5   the loss is no longer a number
        Interrupted                 130 SIGINT; 143 SIGTERM: the state was saved first

Every message is one line and names the remedy.
"""

from corte_protocol import CorteError


class StudentError(CorteError):
    """A failure that the user can do something about."""

    exit_code = 1


class SettingsError(StudentError):
    """A setting, flag or recipe is wrong."""

    exit_code = 2


class TeacherError(StudentError):
    """The teacher cannot or will not answer."""

    exit_code = 3


class Unavailable(TeacherError):
    """Unreachable, overloaded or broken for longer than the deadline."""


class Refused(TeacherError):
    """The teacher answers, but not to us, or not this."""


class ImageRefused(TeacherError):
    """The teacher will not take this one image: it is set aside and the run goes on."""


class AnswerLost(ImageRefused):
    """It was asked, may have been paid, and no answer came: set aside, another run asks again."""


class BrokeContract(TeacherError):
    """The teacher answered something that breaks the protocol."""


class Changed(TeacherError):
    """The teacher is not the one that the run began with."""


class BudgetExhausted(TeacherError):
    """The next request would pass the budget."""


class DataError(StudentError):
    """Images, labels or a class map cannot be used."""

    exit_code = 4


class CheckpointError(StudentError):
    """A run folder or checkpoint cannot be used."""

    exit_code = 4


class LedgerError(StudentError):
    """The ledger cannot be read or written."""

    exit_code = 4


class TrainingDiverged(StudentError):
    """The loss is no longer a number."""

    exit_code = 5


class Interrupted(CorteError):
    """A signal asked to stop; the running step was finished and the state saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped by a signal; go on with --resume")
        self.exit_code = 128 + signal_number
