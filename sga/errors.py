"""Exceptions that the command line turns into one readable line."""


class UserError(ValueError):
    """Wrong input, said so that it can be mended: what is wrong, where, and how to put it right.

    The command line prints the message without a traceback and exits with code 2 (set SGA_TRACEBACK=1 to see where it
    was raised). Everything else that is raised is a defect of this package, but for what stands below and for what the
    operating system refuses (a full disk, say), which ends in exit code 1.
    """


class StoppedError(RuntimeError):
    """A run that cannot go on, though nothing was wrong with what it was given. Exit code 1.

    Attributes:
        kept: Which weights are left, and where; a sentence, or empty where nobody has said.
    """

    kept = ""

    def __str__(self) -> str:
        return f"{super().__str__()}. {self.kept}" if self.kept else super().__str__()


class DivergenceError(StoppedError):
    """The loss or a gradient is no longer a number; training on would destroy the weights."""


class Interruption(Exception):
    """A signal ended a run, which can go on. Exit code 128 plus the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
