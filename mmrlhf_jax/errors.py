"""The one exception that a person at the command line is meant to read."""


class UserError(Exception):
    """Something the user gave (a file, a record, a key) is wrong.

    The message is one line: what is wrong, where (file, record id, key), and what to do. The command line prints it as
    `error: ...` and exits with status 2, without a traceback.
    """
