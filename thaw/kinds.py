"""What a store holds, kind by kind: which record speaks for a thing, and who makes it again when it is lost."""

from dataclasses import dataclass
from importlib import import_module

from thaw.records import Record

REGISTRY_FILE = "registry.json"
# What comes and goes, and what was set aside before: none of it is published.
PASSING = ("partial", "damaged", "claims", "progress")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of things in a store: records `<kind>/<digest>.json`, or folders `<kind>/<digest>/`.

    Attributes:
        record: module and name of the class of record that speaks for a thing; none where it is not known here.
        file: the file in a folder that the record is in; None where the record is the thing.
        names_content: whether a digest is that of the record's own content, and not of what decided it.
        depth: how many names lead from the store to a folder.
        again: what happens once a damaged one is out of the way.
    """

    name: str
    record: str | None = None
    file: str | None = None
    names_content: bool = False
    depth: int = 2
    again: str = "the next run that needs it makes it again"


_RETRAINED = "the next run of its settings trains it again"
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="manifests",
            record="thaw.records:Manifest",
            names_content=True,
            again="the next run scans the dump again, and decodes its images",
        ),
        Kind(name="splits", record="thaw.records:Split", names_content=True),
        Kind(name="changes", record="thaw.growth:DumpChange", names_content=True),
        Kind(name="hashes", record="thaw.duplicates:ImageHashes"),
        Kind(name="duplicates", record="thaw.duplicates:Duplicates"),
        Kind(name="measurements", record="thaw.properties:Measurement"),
        Kind(name="properties", record="thaw.properties:PropertyCheck", file="properties.json"),
        Kind(name="backbones", record="thaw.records:Backbone"),
        Kind(name="weights", again="the next run that is given the file puts it there again"),
        Kind(name="calibrations", record="thaw.precision:Precision"),
        Kind(
            name="features",
            file="shard.json",
            depth=3,
            again="the next run that needs its rows computes them again",
        ),
        Kind(name="searches", record="thaw.search:HeadSearch"),
        Kind(name="crossvalidations", record="thaw.folds:CrossValidation", file="crossvalidation.json"),
        Kind(name="suspects", record="thaw.suspects:SuspectLabels", file="suspects.json"),
        Kind(
            name="journals",
            record="thaw.records:History",
            file="history.json",
            depth=3,
            again="training goes on from an epoch before it",
        ),
        Kind(name="pieces", depth=3),
        Kind(name="checkpoints", record="thaw.records:Checkpoint", file="checkpoint.json", again=_RETRAINED),
        Kind(name="pieces", depth=3, again="the run that puts them together makes it again"),
        Kind(name="temperatures", record="thaw.calibrate:Calibration"),
        Kind(name="evaluations", record="thaw.records:Evaluation"),
        Kind(name="heat", record="thaw.gradcam:HeatMaps"),
        Kind(name="model-costs", record="thaw.cost:ModelCost"),
        Kind(name="stage-costs", record="thaw.cost:StageCost"),
        Kind(
            name="runs",
            record="thaw.records:Outcome",
            file="outcome.json",
            again="the next run of its settings releases the model again",
        ),
        Kind(name="comparisons", record="thaw.comparison:ComparisonTable", file="comparison.json"),
        Kind(name="offers", record="thaw.promotion:Decision"),
        Kind(
            name="registry",
            record="thaw.registry:Registry",
            depth=3,
            again="the revision before it counts, or registry.json where that is as new",
        ),
        Kind(
            name=REGISTRY_FILE,
            record="thaw.registry:Registry",
            again="it is written again from the newest revision",
        ),
    )
}


def parse_record(kind: Kind, data: bytes) -> str | None:
    """What is wrong with the record of a thing, or None."""
    if kind.record is None:
        return None
    module, _, cls = kind.record.partition(":")
    record: type[Record] = getattr(import_module(module), cls)
    try:
        record.from_json(data)
    except ValueError as error:
        return f"not a readable {cls}: {str(error).splitlines()[0]}"
    return None
