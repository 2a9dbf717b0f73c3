"""How much private training data leaks out of collaborative deep learning, measured in JAX.

A public name loads its module at its first use, so importing the package takes almost no time.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# All public names, one a line. Type checkers and editors follow these imports. At run time ``_modules`` reads them, and
# ``__getattr__`` imports a name at its first use.
if TYPE_CHECKING:
    from gan_leak.attacks import AuxiliaryImages as AuxiliaryImages
    from gan_leak.attacks import GanAttackHyperParameters as GanAttackHyperParameters
    from gan_leak.attacks import GradientEvidence as GradientEvidence
    from gan_leak.attacks import GradientInversion as GradientInversion
    from gan_leak.attacks import InversionTarget as InversionTarget
    from gan_leak.attacks import MganAiHyperParameters as MganAiHyperParameters
    from gan_leak.attacks import ModelInversion as ModelInversion
    from gan_leak.attacks import Procedure as Procedure
    from gan_leak.attacks import deep_leakage as deep_leakage
    from gan_leak.attacks import gan_attack as gan_attack
    from gan_leak.attacks import grnn as grnn
    from gan_leak.attacks import inverse_network as inverse_network
    from gan_leak.attacks import inverting_gradients as inverting_gradients
    from gan_leak.attacks import known_labels as known_labels
    from gan_leak.attacks import mgan_ai as mgan_ai
    from gan_leak.attacks import model_inversion as model_inversion
    from gan_leak.attacks import reconstructed_model as reconstructed_model
    from gan_leak.attacks import regularized_likelihood as regularized_likelihood
    from gan_leak.attacks import run_procedure as run_procedure
    from gan_leak.attacks import shadow_model as shadow_model
    from gan_leak.attacks.gradient.observation import gradient_of as gradient_of
    from gan_leak.attacks.gradient.observation import update_of as update_of
    from gan_leak.attacks.optimizers import TrainingData as TrainingData
    from gan_leak.attacks.server.class_gan import ClassGanHyperParameters as ClassGanHyperParameters
    from gan_leak.attacks.server.class_gan import class_gan as class_gan
    from gan_leak.attacks.server.class_gan import images_by_class as images_by_class
    from gan_leak.attacks.server.linkability import link as link
    from gan_leak.attacks.server.linkability import linking_accuracy as linking_accuracy
    from gan_leak.attacks.server.linkability import siamese as siamese
    from gan_leak.attacks.server.linkability import siamese_distances as siamese_distances
    from gan_leak.attacks.server.linkability import train_siamese as train_siamese
    from gan_leak.attacks.server.local_models import LocalInversionTarget as LocalInversionTarget
    from gan_leak.attacks.server.local_models import LocalModels as LocalModels
    from gan_leak.attacks.server.local_models import invert_local_models as invert_local_models
    from gan_leak.attacks.server.local_models import local_models as local_models
    from gan_leak.attacks.server.representatives import MatchingTask as MatchingTask
    from gan_leak.attacks.server.representatives import Representatives as Representatives
    from gan_leak.attacks.server.representatives import UpdateEvidence as UpdateEvidence
    from gan_leak.attacks.server.representatives import lbfgs_representatives as lbfgs_representatives
    from gan_leak.attacks.server.representatives import signed_adam_representatives as signed_adam_representatives
    from gan_leak.attacks.server.source_inference import source_accuracy as source_accuracy
    from gan_leak.attacks.server.source_inference import source_inference as source_inference
    from gan_leak.collaboration import RoundHyperParameters as RoundHyperParameters
    from gan_leak.collaboration import RoundInfo as RoundInfo
    from gan_leak.collaboration import init_federation as init_federation
    from gan_leak.collaboration import make_round as make_round
    from gan_leak.collaboration import make_rounds as make_rounds
    from gan_leak.collaboration import selective_upload as selective_upload
    from gan_leak.config import RunConfig as RunConfig
    from gan_leak.config import make_config as make_config
    from gan_leak.data import Dataset as Dataset
    from gan_leak.data import OwnerSplit as OwnerSplit
    from gan_leak.data import gather as gather
    from gan_leak.data import load as load
    from gan_leak.data import parse_participant_classes as parse_participant_classes
    from gan_leak.data import partition as partition
    from gan_leak.data import rotations as rotations
    from gan_leak.data import split_by_owner as split_by_owner
    from gan_leak.data import split_iid as split_iid
    from gan_leak.data import split_off_judge_pool as split_off_judge_pool
    from gan_leak.data import to_float as to_float
    from gan_leak.data import to_uint8 as to_uint8
    from gan_leak.defenses import Claim as Claim
    from gan_leak.defenses import Defense as Defense
    from gan_leak.defenses import Secrecy as Secrecy
    from gan_leak.defenses import dp_sgd_epsilon as dp_sgd_epsilon
    from gan_leak.defenses import local_gaussian_epsilon as local_gaussian_epsilon
    from gan_leak.defenses import secure_average as secure_average
    from gan_leak.defenses import sparse_vector_epsilon as sparse_vector_epsilon
    from gan_leak.defenses import sparse_vector_upload as sparse_vector_upload
    from gan_leak.defenses.dp_sgd import dp_sgd as dp_sgd
    from gan_leak.evaluation.client_distances import Galleries as Galleries
    from gan_leak.evaluation.client_distances import SentImages as SentImages
    from gan_leak.evaluation.client_distances import Space as Space
    from gan_leak.evaluation.client_distances import pixel_space as pixel_space
    from gan_leak.evaluation.identification import Identification as Identification
    from gan_leak.evaluation.identification import IdentificationReferences as IdentificationReferences
    from gan_leak.evaluation.identification import build_identification_references as build_identification_references
    from gan_leak.evaluation.identification import measure_identification as measure_identification
    from gan_leak.evaluation.judge import Judge as Judge
    from gan_leak.evaluation.judge import JudgeTraining as JudgeTraining
    from gan_leak.evaluation.judge import load_or_train_judge as load_or_train_judge
    from gan_leak.evaluation.leakage import Leakage as Leakage
    from gan_leak.evaluation.leakage import References as References
    from gan_leak.evaluation.leakage import build_references as build_references
    from gan_leak.evaluation.leakage import measure_leakage as measure_leakage
    from gan_leak.evaluation.owner_embedding import OwnerEmbedding as OwnerEmbedding
    from gan_leak.models import as_model as as_model
    from gan_leak.models import classifier_for as classifier_for
    from gan_leak.models import conditional_generator as conditional_generator
    from gan_leak.models import dcgan_generator as dcgan_generator
    from gan_leak.models import evaluation_arguments as evaluation_arguments
    from gan_leak.models import mgan_ai_classifier as mgan_ai_classifier
    from gan_leak.models import mgan_ai_generator as mgan_ai_generator
    from gan_leak.models import mlp_classifier as mlp_classifier
    from gan_leak.models import trunk_of_flax as trunk_of_flax
    from gan_leak.models import trunk_of_layered as trunk_of_layered
    from gan_leak.types import Aggregator as Aggregator
    from gan_leak.types import AggregatorApply as AggregatorApply
    from gan_leak.types import Contribution as Contribution
    from gan_leak.types import FederationData as FederationData
    from gan_leak.types import FederationState as FederationState
    from gan_leak.types import FlatServer as FlatServer
    from gan_leak.types import GradientView as GradientView
    from gan_leak.types import InsiderView as InsiderView
    from gan_leak.types import LocalData as LocalData
    from gan_leak.types import LocalTraining as LocalTraining
    from gan_leak.types import MaskedSum as MaskedSum
    from gan_leak.types import Model as Model
    from gan_leak.types import ModelView as ModelView
    from gan_leak.types import ParticipantState as ParticipantState
    from gan_leak.types import Received as Received
    from gan_leak.types import RoundAttack as RoundAttack
    from gan_leak.types import Sent as Sent
    from gan_leak.types import ServerAttack as ServerAttack
    from gan_leak.types import ServerState as ServerState
    from gan_leak.types import ServerView as ServerView
    from gan_leak.types import SplitView as SplitView
    from gan_leak.types import TransformInfo as TransformInfo
    from gan_leak.types import Upload as Upload
    from gan_leak.types import UploadTransform as UploadTransform
    from gan_leak.types import UploadTransformApply as UploadTransformApply


@functools.cache
def _modules() -> dict[str, str]:
    """The module of every public name, from the imports above."""
    # Imported here, since most programs use only the modules of the package.
    import ast
    import pathlib

    nodes = ast.walk(ast.parse(pathlib.Path(__file__).read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: str(node.module)
        for node in imports
        if str(node.module).startswith(f"{__name__}.")
        for alias in node.names
    }


# Hidden from type checkers: to them a name that is not imported above is an error.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return ["__version__", *_modules()]
        if name not in _modules():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_modules()[name]), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *_modules()])
