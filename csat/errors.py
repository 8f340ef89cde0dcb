"""The few exceptions that users meet. Each message says what was expected, what came and what to try next."""

from csat.words import printable


class ConfigError(ValueError):
    """A setting, or a pair of settings, that cannot work. Raised before anything costly starts."""


class StorageError(ValueError):
    """A URI that cannot be read or written as asked (wrong scheme, nothing there, no permission)."""


class SlideError(ValueError):
    """One slide or tile that cannot be used. The run continues; the slide or tile becomes a quarantine row.

    Attributes:
        reason: A short code that groups rows in the summary, one of `QUARANTINE_REASONS`.

    The message may hold what a library said: it is made printable, so that nothing in it stops the row from being written.
    """

    def __init__(self, reason: str, message: str):
        assert reason in QUARANTINE_REASONS, reason
        super().__init__(printable(message))
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


class DatasetError(ValueError):
    """A labelled data set whose layout, labels or splits do not fit. Says what was looked for and what was found."""


class TeacherError(ValueError):
    """Weights that do not fit their teacher, or a teacher that lacks what a method needs."""


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite. Names the step and the term; the run stops without a checkpoint."""


class StoppedError(RuntimeError):
    """The run was asked to end before its end, and did. What was trained is in the committed checkpoint."""


QUARANTINE_REASONS = (
    "unreadable",  # the file or the tile cannot be decoded
    "missing",  # the file is not there, or went away
    "no_mpp",  # a resolution was asked for and the slide does not state its own
    "needs_upsampling",  # the finest level is coarser than the wanted mpp
    "too_small",  # the image is smaller than one tile
    "too_large",  # an image that was to be seen as a whole has a longer edge than allowed
    "no_tissue",  # no tile with enough tissue
    "teacher_error",  # the teacher raised on this tile
    "teacher_nonfinite",  # the teacher answered NaN or infinity
    "model_error",  # the same of the model of a prediction
    "model_nonfinite",
)
