"""Training objectives: `draw(key, batch)` holds everything random, `loss(networks, draws)` nothing random."""

from flowjax.objectives import times
from flowjax.objectives.adversarial import Adversarial, AutoencodingDraws
from flowjax.objectives.alpha_flow import AlphaFlow
from flowjax.objectives.assembled import Assembled
from flowjax.objectives.autoencoding import Autoencoding
from flowjax.objectives.base import turns, with_keys
from flowjax.objectives.classification import Classification, ClassificationDraws
from flowjax.objectives.consistency import Consistency
from flowjax.objectives.continuous_consistency import ContinuousConsistency, WarmDraws
from flowjax.objectives.coupled import Coupled
from flowjax.objectives.distribution_matching import DistributionMatching, MatchingDraws
from flowjax.objectives.flow_matching import Draws, FlowMatching
from flowjax.objectives.improved_mean_flow import ImprovedMeanFlow
from flowjax.objectives.interpolation import Interpolation, InterpolationDraws
from flowjax.objectives.latent_consistency import LatentConsistency
from flowjax.objectives.mean_flow import MeanFlow
from flowjax.objectives.mean_flow_distillation import MeanFlowDistillation
from flowjax.objectives.mid_training import ConsistencyMidTraining, TrajectoryDraws
from flowjax.objectives.phased_rectified import PhasedRectified
from flowjax.objectives.policy_distillation import PolicyDistillation, PolicyDraws
from flowjax.objectives.recipes import SiTWeight, sd3, sit, sit_interval
from flowjax.objectives.rectified import Rectified
from flowjax.objectives.refiner import Refiner, RefinerDraws
from flowjax.objectives.regression import Regression, RegressionDraws
from flowjax.objectives.representation import RepresentationAutoencoding
from flowjax.objectives.schroedinger import SchroedingerBridge
from flowjax.objectives.self_consistency import SelfConsistency
from flowjax.objectives.shortcut import Shortcut
from flowjax.objectives.spans import GuidedSpans, SpanDraws, Spans
from flowjax.objectives.teacher import TeacherRegression
from flowjax.objectives.terminal_velocity import TerminalVelocity
from flowjax.objectives.transport_distillation import TransportDraws, VelocityDistillation, VelocityMatching
