"""The one exception that a person is meant to read."""


class InputError(ValueError):
    """What was given cannot be used; the message says in one sentence what was wrong and what to do."""
