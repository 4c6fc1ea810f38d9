"""What can be wrong with a model description; every message says what would fit."""


class ModelError(ValueError):
    """A model or layout that cannot be built, or would train wrongly in silence. The user's to mend."""

    exit_code = 2
