"""Exceptions that the command line turns into one readable line."""


class UserError(ValueError):
    """Wrong input, said so that it can be mended: what is wrong, where, and how to put it right.

    The command line prints the message without a traceback and exits with code 2 (set SGA_TRACEBACK=1 to see where it
    was raised). Everything else that is raised is a defect of this package.
    """


class DivergenceError(RuntimeError):
    """The loss is no longer a number; training on would destroy the weights. Exit code 1."""
