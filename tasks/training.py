"""Tasks that train: the head, the gate's verdict on it, the thawed suffix, and the temperature of what came of it."""

from collections.abc import Sequence

from prefect.artifacts import create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import calibrate as calibration
from thaw import convergence, ensemble, fine_tune, head
from thaw.calibrate import Calibration
from thaw.config import BackboneConfig, GateConfig, HeadConfig, PhaseConfig, TrainingConfig
from thaw.records import Backbone, Checkpoint, Features, FeatureSet, Made, Verdict
from thaw.rows import ViewSource
from thaw.store import Store


@stage("train head, seed {settings.seed}, budget {budget}", wants_gpu=True, retries=1)
def train_head(
    bottlenecks: Features,
    settings: HeadConfig,
    gate: GateConfig,
    store: Store,
    budget: int,
    source: ViewSource,
) -> Made[Checkpoint]:
    return head.train_head(bottlenecks, settings, gate, store, budget, source)


@stage("train head from the champion's, budget {budget}", wants_gpu=True, retries=1)
def train_warm_head(
    bottlenecks: Features,
    settings: HeadConfig,
    gate: GateConfig,
    store: Store,
    budget: int,
    source: ViewSource,
    start: Checkpoint,
) -> Made[Checkpoint]:
    return head.train_head(bottlenecks, settings, gate, store, budget, source, start)


def _show_verdict(verdict: Verdict) -> None:
    title = f"The gate's verdict: {verdict.state}"
    show(create_table_artifact, [vars(verdict)], key="gate", description=title)


@stage("judge convergence", present=_show_verdict)
def judge_convergence(trained: Checkpoint, gate: GateConfig, settings: TrainingConfig) -> Made[Verdict]:
    verdict = convergence.judge_convergence(trained.history, gate, settings)
    return Made(value=verdict, reused=False, note=f"{verdict.state}: {verdict.reason}")


@stage("fine-tune after {features.cut}, seed {settings.seed}", wants_gpu=True, retries=1)
def thaw_and_train(
    trained: Checkpoint,
    features: Features,
    backbone: Backbone,
    backbone_settings: BackboneConfig,
    settings: PhaseConfig,
    store: Store,
    source: ViewSource,
    budget: int,
) -> Made[Checkpoint]:
    given = (backbone, backbone_settings, settings, store, source, budget)
    return fine_tune.fine_tune(trained, features, *given)


@stage("average what was trained", wants_gpu=True, retries=1)
def join_members(
    members: Sequence[Checkpoint], features: Features, mirrored: Features | None, store: Store
) -> Made[Checkpoint]:
    return ensemble.join_members(members, features, mirrored, store)


@stage("calibrate {checkpoint.stage}", wants_gpu=True, retries=1)
def calibrate(
    checkpoint: Checkpoint, validation: FeatureSet, store: Store, mirrored: FeatureSet | None = None
) -> Made[Calibration]:
    return calibration.calibrate(checkpoint, validation, store, mirrored)
