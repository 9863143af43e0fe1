"""Several networks, trained alike from seeds of their own, whose probabilities are averaged into one model's.

Averaging takes away what each of them owes to its seed: T. G. Dietterich, Ensemble Methods in Machine Learning,
2000. To average over an image and its mirror image as well is as old as AlexNet (section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thaw.claims import claim
from thaw.config import TrainConfig
from thaw.device import prepare_keras
from thaw.evaluate import measure, predict_sides
from thaw.records import Checkpoint, Epoch, Features, History, Made, Record, Verdict, digest_of
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import find_checkpoint, hand_back, load_network


@dataclass(frozen=True, kw_only=True)
class Member(Record):
    """One network's way: its head and the gate's verdict on it, then what each phase of fine-tuning came to.

    `seed` is the head's; those of the phases count up with it from member to member.
    """

    seed: int
    head: Checkpoint
    verdict: Verdict
    phases: tuple[Checkpoint, ...] = ()
    phase_verdicts: tuple[Verdict, ...] = ()

    @property
    def model(self) -> Checkpoint:
        """What it ended with."""
        return self.phases[-1] if self.phases else self.head

    @property
    def opens_gate(self) -> bool:
        """Whether anything may thaw behind what it came to."""
        return (self.phase_verdicts or (self.verdict,))[-1].opens_gate

    @property
    def is_overridden(self) -> bool:
        """Whether anything was thawed behind what had not converged."""
        return bool(self.list_overridden())

    def list_overridden(self) -> list[Verdict]:
        """The verdicts that were overridden."""
        return [found for found in (self.verdict, *self.phase_verdicts[:-1]) if found.overridden]


def list_members(config: TrainConfig) -> list[TrainConfig]:
    """The settings of each member: the run's own, with seeds that count up from its."""
    return [config.raise_seeds(number) for number in range(config.ensemble.members)]


def choose_members(trained: Sequence[Member], fine_tunes: bool) -> tuple[Member, ...]:
    """Those that take part: the gate let them through, and none of the others thawed further.

    Args:
        fine_tunes: whether anything was to thaw behind the gate. If not, a head that still improves takes part.
    """
    passed = [one for one in trained if one.verdict.opens_gate or not (fine_tunes or one.verdict.is_hopeless)]
    furthest = max((len(member.phases) for member in passed), default=0)
    return tuple(member for member in passed if len(member.phases) == furthest)


def join_members(
    members: Sequence[Checkpoint], features: Features, mirrored: Features | None, store: Store
) -> Made[Checkpoint]:
    """Publish as one checkpoint the network that averages the members, with its figures on the validation rows.

    Args:
        members: all of one cut, the features'.
        mirrored: the mirror images' features, where the model averages over those as well.

    Raises:
        NotPublished: it was not made yet, and the store is only looked at.
    """
    sides = (features.validation, *([mirrored.validation] if mirrored else []))
    address = digest_of("ensemble", [member.address for member in members], *sides)
    found = find_checkpoint(store, address)
    if found:
        return hand_back(found, reused=True)
    with claim(store, "checkpoints", address):
        found = find_checkpoint(store, address)
        if found:
            return hand_back(found, reused=True)
        network = average_networks([load_network(store, member.address) for member in members])
        rows = Rows(features.validation, store)
        measured = measure(rows.labels, predict_sides(network, sides, store))
        loss, accuracy = measured.log_loss, measured.accuracy
        start = Epoch(loss=loss, accuracy=accuracy, val_loss=loss, val_accuracy=accuracy, learning_rate=0.0)
        joined = Checkpoint(
            address=address,
            stage="ensemble",
            cut=features.cut,
            split=features.train.split,
            space=members[0].space,
            history=History(validation_counts=rows.count_labels(), start=start),
            members=tuple(member.address for member in members),
            mirrored=mirrored is not None,
        )
        with store.publish_folder("checkpoints", address) as partial:
            network.save(partial / "model.keras")
            (partial / "checkpoint.json").write_text(joined.to_json(), encoding="utf-8")
    return hand_back(joined, reused=False)


def average_networks(networks: Sequence[Any]) -> Any:
    """One network from the features that all of them take to the mean of their probabilities."""
    keras = prepare_keras()
    entry = keras.Input(networks[0].input_shape[1:])
    outputs = []
    for number, network in enumerate(networks, 1):
        network.name = f"member_{number}"
        outputs.append(network(entry))
    mean = keras.layers.Average()(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(entry, mean, name="ensemble")
