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
│   ├── MissingPackage      what was asked for needs a package that is not installed
│   ├── NoSuchModel         no version of the registry goes by that name
│   ├── FeatureOverflow     features exceed what the storage dtype can hold
│   ├── StoreNotWritable    the store's folder can't be created or written
│   ├── Undecided           a record can't be read, so that it can't be told what of a store is needed
│   ├── NoDeployment        the Prefect server lacks the deployment that a GPU stage is handed to
│   ├── NoServer            the Prefect server asked for does not answer
│   ├── BadPassword         the Prefect server refuses the password
│   ├── NotApplied          the Prefect server refuses what the deployments' files say
│   └── NotStarted          `thaw up` lacks something, or what it starts does not come up
├── BadImage                one image can't be used; it is set aside, the run goes on
├── DiskFull                no room left; the store stays valid and the run can be resumed
├── StoreUnreachable        an object store stayed away; the run can be resumed when it is back
├── NotPublished            asked of a store that is only looked at, and not in it
├── Damaged                 what is published has lost its bytes; it is set aside, and made again by the next run
├── DamagedShard            cached features are not what was written; they are made again by the next run
├── EmptyHistory            a verdict was asked for before any epoch was run
├── ChampionMoved           a decision was made against a model that is champion no more
├── UnlikeSplits            two results of different splits were about to be compared
├── ParityFailed            a saved or exported model does not reproduce the probabilities it should
├── StageFailed             a stage, or a portion of one, that was handed to another worker failed there
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


class MissingPackage(Mistake):
    """What was asked for needs a package that is not installed. The message names the extra that has it."""


class NoSuchModel(Mistake):
    """No version of the registry goes by that name."""


class StoreNotWritable(Mistake):
    """The store's folder can't be created or written."""


class Undecided(Mistake):
    """A record of the store can't be read, so that nobody can tell what it refers to. Nothing was deleted."""


class NoServer(Mistake):
    """The Prefect server that the settings name does not answer."""


class BadPassword(Mistake):
    """The Prefect server refuses the password, or asks for one."""


class NotApplied(Mistake):
    """What prefect.yaml, or a file beside it, says can't be put on the Prefect server."""


class NotStarted(Mistake):
    """`thaw up` lacks what it needs, or what it started does not come up."""


class NoDeployment(Mistake):
    """The Prefect server has no deployment that GPU stages can be handed to."""


class BadImage(ThawError):
    """One image can't be used. The message is the reason kept in the quarantine list."""


class DiskFull(ThawError):
    """The disk is full. What was published stays valid; the run resumes when there is room."""


class StoreUnreachable(ThawError):
    """An object store did not answer for minutes. What was published stays valid; the run resumes when it is back."""


class NotPublished(ThawError):
    """A store that is only looked at lacks what was asked for, and it is not made there."""


class Damaged(ThawError, FileNotFoundError):
    """What is published is not what was written, or not all of it. It counts as not there, and can be made again.

    Attributes:
        folder: the key of the published folder.
    """

    def __init__(self, message: str, folder: str = ""):
        super().__init__(message)
        self.folder = folder


class DamagedShard(ThawError):
    """Cached features are not those that were written. They are set aside, and made again by the same command."""


class FeatureOverflow(Mistake):
    """Features exceed the range of the dtype they are stored in."""


class EmptyHistory(ThawError):
    """No epoch was run, so there is nothing to judge."""


class ChampionMoved(ThawError):
    """A decision was made against a model that is champion no more."""


class UnlikeSplits(ThawError):
    """Results of different splits can't be compared."""


class ParityFailed(ThawError):
    """A saved model does not reproduce the probabilities it was tested with, or an export those of its model."""


class StageFailed(ThawError):
    """A stage that was handed to a GPU worker did not complete there."""


class RunFailed(ThawError):
    """A run was ended by an error that nobody foresaw."""
