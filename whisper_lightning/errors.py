"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake of the user's: one line with the offending value and the remedy, shown without a traceback."""
