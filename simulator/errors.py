"""The one error that a user can cause."""


class UserError(ValueError):
    """Input that cannot be used: the command line answers with one line and exit code 2.

    Parameters
    ----------
    what
        The option, file or key that is wrong.
    got
        What was given.
    expected
        What would have been accepted.
    do
        What to do about it; may be empty.
    """

    def __init__(self, what: str, got: object, expected: str, do: str = "") -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.do = do
        advice = f". {do[0].upper()}{do[1:]}" if do else ""
        super().__init__(f"{what}: got {got}, expected {expected}{advice}")


def did_you_mean(what: str, name: str, known: list[str]) -> UserError:
    """Return the error for an unknown `name`, with the list and the nearest known one."""
    import difflib

    near = difflib.get_close_matches(name.lower(), known, n=1)
    return UserError(what, repr(name), "one of " + ", ".join(known), f"did you mean {near[0]!r}?" if near else "")
