"""Every error that Thaw raises on purpose.

ThawError
├── Mistake                 something a user can put right; no stack trace, exit code 2
│   ├── BadConfig           unknown key, value out of bounds, unknown recipe
│   ├── BadDump             no archive, unreadable archive, unlabelled names, one class
│   │   └── TooManyBad      more of a class is quarantined than allowed
│   ├── ShortClass          a class has too few usable images for the split
│   ├── BadWeights          missing, corrupt, of another architecture, or not downloadable
│   ├── BadCut              the backbone has no such layer, or can't be cut there
│   ├── BadModel            not a model that Thaw saved
│   ├── FeatureOverflow     features exceed what the storage dtype can hold
│   ├── StoreNotWritable    the store's folder can't be created or written
│   └── NoServer            the Prefect server asked for does not answer
├── BadImage                one image can't be used; it is set aside, the run goes on
├── DiskFull                no room left; the store stays valid and the run can be resumed
├── EmptyHistory            a verdict was asked for before any epoch was run
├── UnlikeSplits            two results of different splits were about to be compared
├── ParityFailed            a saved model does not reproduce the probabilities it was tested with
└── RunFailed               a run was ended by an error that nobody foresaw
"""


class ThawError(Exception):
    """Base of every error that Thaw raises on purpose."""


class Mistake(ThawError):
    """Something the user can put right. The message says what and how."""


class BadConfig(Mistake):
    """A configuration key is unknown, or its value is out of bounds."""


class BadDump(Mistake):
    """The dump can't be opened, or what it holds can't be learned from."""


class TooManyBad(BadDump):
    """More of a class is quarantined than `max_quarantine_fraction` allows."""


class ShortClass(Mistake):
    """A class has too few usable images for the split that was asked for."""


class BadWeights(Mistake):
    """The backbone's weights are missing, corrupt or of another architecture."""


class BadCut(Mistake):
    """The backbone can't be cut at the layer named."""


class BadModel(Mistake):
    """The file is not a model that Thaw saved."""


class StoreNotWritable(Mistake):
    """The store's folder can't be created or written."""


class NoServer(Mistake):
    """The Prefect server that the settings name does not answer."""


class BadImage(ThawError):
    """One image can't be used. The message is the reason kept in the quarantine list."""


class DiskFull(ThawError):
    """The disk is full. What was published stays valid; the run resumes when there is room."""


class FeatureOverflow(Mistake):
    """Features exceed the range of the dtype they are stored in."""


class EmptyHistory(ThawError):
    """No epoch was run, so there is nothing to judge."""


class UnlikeSplits(ThawError):
    """Results of different splits can't be compared."""


class ParityFailed(ThawError):
    """A saved model does not reproduce the probabilities it was tested with."""


class RunFailed(ThawError):
    """A run was ended by an error that nobody foresaw."""
