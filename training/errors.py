"""What can go wrong with a run; `exit_code` 2 is the user's to mend, 1 the machine's."""


class TrainingError(RuntimeError):
    """A run cannot go on."""

    exit_code = 1


class RecipeError(ValueError):
    """A recipe that cannot run as written, or would train wrongly in silence."""

    exit_code = 2


class Diverged(TrainingError):
    """The loss or the gradient left the finite numbers, or kept spiking: a restart would do the same again."""

    exit_code = 2
