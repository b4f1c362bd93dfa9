"""What is wrong with something that a user has given, in one sentence."""


class ModelError(ValueError):
    """An error that a user can fix. The message is one sentence: what is wrong and where.

    A stage adds which command or setting fixes it.
    """
