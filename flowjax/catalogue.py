"""One table of everything that has a name: solvers, guidance rules, fields, couplings, objectives, systems.

The conformance tests, `--help`, the tables in the documentation and `cite` read it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax import couplings as _couplings
from flowjax import fields as _fields
from flowjax import guidance as _guidance
from flowjax import objectives as _objectives
from flowjax import solvers as _solvers
from flowjax import specs
from flowjax.geometry import event_motion as _event_motion
from flowjax.geometry import point_sampling as _point_sampling
from flowjax.science import calibration as _calibration
from flowjax.science import coherent_structures as _coherent_structures
from flowjax.science import transport as _transport
from flowjax.video import stabilization as _stabilization


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where a method was published."""

    key: str
    authors: str
    title: str
    year: int
    url: str

    def bibtex(self) -> str:
        """The reference as a BibTeX entry."""
        return (
            f"@misc{{{self.key},\n  author = {{{self.authors}}},\n  title = {{{self.title}}},\n"
            f"  year = {{{self.year}}},\n  url = {{{self.url}}},\n}}"
        )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One named thing.

    Attributes:
        make: the class; the main function of a system.
        summary: what it is, in one line.
        reference: where it was published.
        order: order of convergence of a whole run with default settings; None where the notion does not apply.
        stochastic: whether it draws noise while sampling with default settings.
        couples_batch: whether a sample depends on its batch mates.
        evaluations: evaluations for n steps on a path with finite velocity; None where they depend on the problem.
        example: keyword arguments of a typical instance, for those that cannot be made without any.
        parts: kinds of the arguments that are specs themselves, for functions and modules; a dataclass says it of its
            own fields (`flowjax._pytree.part`).
        more: whatever else takes the options that `make` passes on.
        fixed: options that this name stands for.
        tasks: of an objective, the tasks (`flowjax.tasks`) in which it makes sense.
    """

    make: Callable[..., Any]
    summary: str
    reference: Reference | None = None
    order: int | None = None
    stochastic: bool = False
    couples_batch: bool = False
    evaluations: Callable[[int], int] | None = None
    example: Callable[[], dict[str, Any]] = dict
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: tuple[Callable[..., Any], ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()


def _arxiv(key: str, authors: str, title: str, year: int, number: str) -> Reference:
    return Reference(key, authors, title, year, f"https://arxiv.org/abs/{number}")


_INTERPOLANTS = _arxiv(
    "albergo2023stochastic",
    "Albergo, M. S. and Boffi, N. M. and Vanden-Eijnden, E.",
    "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions",
    2023,
    "2303.08797",
)
_SIT = _arxiv(
    "ma2024sit",
    "Ma, N. and Goldstein, M. and Albergo, M. S. and Boffi, N. M. and Vanden-Eijnden, E. and Xie, S.",
    "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
    2024,
    "2401.08740",
)


def _plain_statistics() -> dict[str, Any]:
    """Statistics with which DPM-Solver-v3 is DPM-Solver++."""
    lam = np.linspace(-12.0, 12.0, 241)
    return {"statistics": _solvers.Statistics(lam=lam, l=np.ones(241), s=np.zeros(241), b=np.zeros(241))}


_RUNGE_KUTTA = Reference(
    "hairer1993solving",
    "Hairer, E. and Norsett, S. P. and Wanner, G.",
    "Solving Ordinary Differential Equations I",
    1993,
    "https://doi.org/10.1007/978-3-540-78862-1",
)
_FLOW_MATCHING = _arxiv(
    "lipman2022flow",
    "Lipman, Y. and Chen, R. T. Q. and Ben-Hamu, H. and Nickel, M. and Le, M.",
    "Flow Matching for Generative Modeling",
    2022,
    "2210.02747",
)
_SCORE_SDE = _arxiv(
    "song2020score",
    "Song, Y. and Sohl-Dickstein, J. and Kingma, D. P. and Kumar, A. and Ermon, S. and Poole, B.",
    "Score-Based Generative Modeling through Stochastic Differential Equations",
    2020,
    "2011.13456",
)
_COSINE = _arxiv(
    "nichol2021improved",
    "Nichol, A. and Dhariwal, P.",
    "Improved Denoising Diffusion Probabilistic Models",
    2021,
    "2102.09672",
)
_DPM_SOLVER = _arxiv(
    "lu2022dpmsolver",
    "Lu, C. and Zhou, Y. and Bao, F. and Chen, J. and Li, C. and Zhu, J.",
    "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
    2022,
    "2206.00927",
)
_SD3 = _arxiv(
    "esser2024scaling",
    "Esser, P. and Kulal, S. and Blattmann, A. and Entezari, R. and Mueller, J. and others",
    "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    2024,
    "2403.03206",
)
_LATENT_DIFFUSION = _arxiv(
    "rombach2021high",
    "Rombach, R. and Blattmann, A. and Lorenz, D. and Esser, P. and Ommer, B.",
    "High-Resolution Image Synthesis with Latent Diffusion Models",
    2021,
    "2112.10752",
)
_EDM2 = _arxiv(
    "karras2023analyzing",
    "Karras, T. and Aittala, M. and Lehtinen, J. and Hellsten, J. and Aila, T. and Laine, S.",
    "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2023,
    "2312.02696",
)
_MOMENTUM = _arxiv(
    "wizadwongsa2023diffusion",
    "Wizadwongsa, S. and Chinchuthakun, W. and Khungurn, P. and Raj, A. and Suwajanakorn, S.",
    "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts",
    2023,
    "2307.11118",
)

solvers = {
    "euler": Entry(_solvers.Euler, "Euler's method on the velocity", _FLOW_MATCHING, order=1, evaluations=lambda n: n),
    "heun": Entry(
        _solvers.Heun, "Heun's method (explicit trapezoid)", _RUNGE_KUTTA, order=2, evaluations=lambda n: 2 * n
    ),
    "midpoint": Entry(_solvers.Midpoint, "explicit midpoint rule", _RUNGE_KUTTA, order=2, evaluations=lambda n: 2 * n),
    "rk4": Entry(_solvers.RK4, "classical Runge-Kutta method", _RUNGE_KUTTA, order=4, evaluations=lambda n: 4 * n),
    "ddim": Entry(
        _solvers.DDIM,
        "DDIM; ancestral sampling with eta=1",
        _arxiv(
            "song2020denoising",
            "Song, J. and Meng, C. and Ermon, S.",
            "Denoising Diffusion Implicit Models",
            2020,
            "2010.02502",
        ),
        order=1,
        evaluations=lambda n: n,
    ),
    "adams_bashforth": Entry(
        _solvers.AdamsBashforth,
        "Adams-Bashforth, PLMS, iPNDM",
        _arxiv(
            "liu2022pseudo",
            "Liu, L. and Ren, Y. and Lin, Z. and Zhao, Z.",
            "Pseudo Numerical Methods for Diffusion Models on Manifolds",
            2022,
            "2202.09778",
        ),
        order=2,
        evaluations=lambda n: n,
    ),
    "dpm_solver": Entry(
        _solvers.DPMSolver,
        "DPM-Solver++ and DPM-Solver, multistep",
        _arxiv(
            "lu2022dpmsolverpp",
            "Lu, C. and Zhou, Y. and Bao, F. and Chen, J. and Li, C. and Zhu, J.",
            "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
            2022,
            "2211.01095",
        ),
        order=2,
        evaluations=lambda n: n,
    ),
    "heavy_ball": Entry(
        _solvers.HeavyBall,
        "heavy-ball momentum on another solver",
        _MOMENTUM,
        order=1,
        evaluations=lambda n: n,
        example=lambda: {"solver": _solvers.DPMSolver()},
    ),
    "nesterov": Entry(
        _solvers.Nesterov,
        "Nesterov momentum on another solver",
        _MOMENTUM,
        order=1,
        evaluations=lambda n: n,
        example=lambda: {"solver": _solvers.AdamsBashforth(order=2)},
    ),
    "ghvb": Entry(_solvers.GHVB, "momentum inside Adams-Bashforth", _MOMENTUM, order=2, evaluations=lambda n: n),
    "splitting": Entry(
        _solvers.Splitting,
        "one method for the field, one with momentum for its guidance: order 1",
        _arxiv(
            "wizadwongsa2023accelerating",
            "Wizadwongsa, S. and Suwajanakorn, S.",
            "Accelerating Guided Diffusion Sampling with Splitting Numerical Methods",
            2023,
            "2301.11558",
        ),
        evaluations=lambda n: n,
        example=lambda: {"guidance": None},
    ),
    "edm_heun": Entry(
        _solvers.EDMHeun,
        "EDM's sampler: Heun in sigma/alpha, optional churn",
        _arxiv(
            "karras2022elucidating",
            "Karras, T. and Aittala, M. and Aila, T. and Laine, S.",
            "Elucidating the Design Space of Diffusion-Based Generative Models",
            2022,
            "2206.00364",
        ),
        order=2,
        evaluations=None,
    ),
    "deis": Entry(
        _solvers.DEIS,
        "exponential Adams-Bashforth on the noise prediction",
        _arxiv(
            "zhang2022fast",
            "Zhang, Q. and Chen, Y.",
            "Fast Sampling of Diffusion Models with Exponential Integrator",
            2022,
            "2204.13902",
        ),
        order=2,
        evaluations=lambda n: n,
    ),
    "unipc": Entry(
        _solvers.UniPC,
        "unified predictor-corrector",
        _arxiv(
            "zhao2023unipc",
            "Zhao, W. and Bai, L. and Rao, Y. and Zhou, J. and Lu, J.",
            "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
            2023,
            "2302.04867",
        ),
        order=2,
        evaluations=lambda n: n,
    ),
    "dc_solver": Entry(
        _solvers.DCSolver,
        "UniPC with calibrated dynamic compensation",
        _arxiv(
            "zhao2024dcsolver",
            "Zhao, W. and Wang, H. and Zhou, J. and Lu, J.",
            "DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation",
            2024,
            "2409.03755",
        ),
        order=2,
        evaluations=lambda n: n,
    ),
    "dpm_solver_v3": Entry(
        _solvers.DPMSolverV3,
        "DPM-Solver-v3, around empirical model statistics",
        _arxiv(
            "zheng2023dpmsolverv3",
            "Zheng, K. and Lu, C. and Chen, J. and Zhu, J.",
            "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics",
            2023,
            "2310.13268",
        ),
        order=2,
        evaluations=lambda n: n,
        example=_plain_statistics,
    ),
    "usf": Entry(
        _solvers.USF,
        "schedules whose ingredients are chosen step by step",
        _arxiv(
            "liu2023unified",
            "Liu, E. and Ning, X. and Yang, H. and Wang, Y.",
            "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models",
            2023,
            "2312.07243",
        ),
        example=lambda: {"schedule": _solvers.Schedule(times=(0.0, 0.5, 1.0), decisions=(_solvers.Decision(),) * 2)},
    ),
    "flowturbo": Entry(
        _solvers.FlowTurbo,
        "Heun, pseudo-corrector and velocity-refiner steps",
        _arxiv(
            "zhao2024flowturbo",
            "Zhao, W. and Shi, M. and Yu, X. and Zhou, J. and Lu, J.",
            "FlowTurbo: Towards Real-time Flow-Based Image Generation with Velocity Refiner",
            2024,
            "2409.18128",
        ),
        order=2,
        example=lambda: {"blocks": "H2P4"},
    ),
    "sa_solver": Entry(
        _solvers.SASolver,
        "stochastic Adams predictor-corrector",
        _arxiv(
            "xue2023sasolver",
            "Xue, S. and Yi, M. and Luo, W. and Zhang, S. and Sun, J. and Li, Z. and Ma, Z.",
            "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models",
            2023,
            "2309.05019",
        ),
        stochastic=True,
        evaluations=lambda n: n,
    ),
    "er_sde": Entry(
        _solvers.ERSDE,
        "extended reverse SDE",
        _arxiv(
            "cui2023elucidating",
            "Cui, Q. and Zhang, X. and Lu, Z. and Liao, Q.",
            "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models",
            2023,
            "2309.06169",
        ),
        stochastic=True,
        evaluations=lambda n: n,
    ),
    "euler_maruyama": Entry(
        _solvers.EulerMaruyama,
        "Euler-Maruyama, diffusion chosen at sampling time",
        _SIT,
        stochastic=True,
        evaluations=lambda n: n,
    ),
    "stochastic_heun": Entry(
        _solvers.StochasticHeun,
        "stochastic Heun, diffusion chosen at sampling time",
        _SIT,
        stochastic=True,
        evaluations=lambda n: 2 * n - 1,
    ),
    "dpm_adaptive": Entry(
        _solvers.DPMAdaptive,
        "DPM-Solver's adaptive embedded pairs",
        _DPM_SOLVER,
        couples_batch=True,
    ),
    "adaptive": Entry(
        _solvers.Adaptive,
        "adaptive Runge-Kutta of diffrax (Tsit5)",
        _arxiv("kidger2022neural", "Kidger, P.", "On Neural Differential Equations", 2022, "2202.02435"),
        couples_batch=True,
    ),
}

rules = {
    "cfg": Entry(
        _guidance.CFG,
        "classifier-free guidance",
        _arxiv("ho2022classifier", "Ho, J. and Salimans, T.", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"),
        example=lambda: {"scale": 2.0},
    ),
    "interval": Entry(
        _guidance.Interval,
        "a rule inside an interval of times",
        _arxiv(
            "kynkaanniemi2024applying",
            "Kynkaanniemi, T. and Aittala, M. and Karras, T. and Laine, S. and Aila, T. and Lehtinen, J.",
            "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
            2024,
            "2404.07724",
        ),
        example=lambda: {"rule": _guidance.CFG(scale=2.0), "start": 0.2, "end": 0.8},
    ),
    "rescaled": Entry(
        _guidance.Rescaled,
        "a rule whose result gets part of its spread back",
        _arxiv(
            "lin2023common",
            "Lin, S. and Liu, B. and Li, J. and Yang, X.",
            "Common Diffusion Noise Schedules and Sample Steps are Flawed",
            2023,
            "2305.08891",
        ),
        example=lambda: {"rule": _guidance.CFG(scale=2.0)},
    ),
    "channels": Entry(
        _guidance.Channels,
        "a rule for the first channels only",
        _arxiv(
            "peebles2022scalable",
            "Peebles, W. and Xie, S.",
            "Scalable Diffusion Models with Transformers",
            2022,
            "2212.09748",
        ),
        example=lambda: {"rule": _guidance.CFG(scale=2.0), "count": 1},
    ),
    "cfg_zero_star": Entry(
        _guidance.CFGZeroStar,
        "guidance against the best multiple of u, zero at first",
        _arxiv(
            "fan2025cfgzero",
            "Fan, W. and Zheng, A. Y. and Yeh, R. A. and Liu, Z.",
            "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
            2025,
            "2503.18886",
        ),
        example=lambda: {"scale": 2.0},
    ),
    "raag": Entry(
        _guidance.RAAG,
        "a scale that falls with the size of the guidance direction",
        _arxiv(
            "zhu2025raag",
            "Zhu, S. and Peng, Q. and Hu, Y. and Yang, Z. and Zhang, H. and Pu, Z. and Feng, R. and Cheng, F.",
            "RAAG: Ratio Aware Adaptive Guidance",
            2025,
            "2508.03442",
        ),
    ),
    "autoguidance": Entry(
        _guidance.Autoguidance,
        "guidance against a weaker model",
        _arxiv(
            "karras2024guiding",
            "Karras, T. and Aittala, M. and Kynkaanniemi, T. and Lehtinen, J. and Aila, T. and Laine, S.",
            "Guiding a Diffusion Model with a Bad Version of Itself",
            2024,
            "2406.02507",
        ),
        example=lambda: {"scale": 2.0},
    ),
    "apg": Entry(
        _guidance.APG,
        "adaptive projected guidance",
        _arxiv(
            "sadat2024eliminating",
            "Sadat, S. and Hilliges, O. and Weber, R. M.",
            "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
            2024,
            "2410.02416",
        ),
        example=lambda: {"scale": 2.0},
    ),
}

fields = {
    "guided": Entry(_fields.Guided, "a field steered by a rule", rules["cfg"].reference),
    "converted": Entry(
        _fields.Converted,
        "a network of one path, sampled along another",
        _arxiv(
            "kingma2021variational",
            "Kingma, D. P. and Salimans, T. and Poole, B. and Ho, J.",
            "Variational Diffusion Models",
            2021,
            "2107.00630",
        ),
    ),
    "drift_plus_score": Entry(_fields.DriftPlusScore, "the drift of an SDE with any diffusion", _INTERPOLANTS),
    "interpolant_flow": Entry(_fields.InterpolantFlow, "a two-sided interpolant with its networks", _INTERPOLANTS),
    "gradient": Entry(
        _fields.Gradient,
        "classifier guidance: the gradient of a log density",
        _arxiv(
            "dhariwal2021diffusion",
            "Dhariwal, P. and Nichol, A.",
            "Diffusion Models Beat GANs on Image Synthesis",
            2021,
            "2105.05233",
        ),
    ),
    "embedded": Entry(
        _fields.Embedded,
        "a network that answers with guidance in one call",
        _arxiv(
            "meng2022distillation",
            "Meng, C. and Rombach, R. and Gao, R. and Kingma, D. P. and Ermon, S. and Ho, J. and Salimans, T.",
            "On Distillation of Guided Diffusion Models",
            2022,
            "2210.03142",
        ),
    ),
    "thresholded": Entry(
        _fields.Thresholded,
        "dynamic thresholding of the data prediction",
        _arxiv(
            "saharia2022photorealistic",
            "Saharia, C. and Chan, W. and Saxena, S. and Li, L. and Whang, J. and others",
            "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding",
            2022,
            "2205.11487",
        ),
    ),
}

_MINIBATCH = _arxiv(
    "tong2023improving",
    "Tong, A. and Fatras, K. and Malkin, N. and Huguet, G. and Zhang, Y. and others",
    "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport",
    2023,
    "2302.00482",
)

couplings = {
    "independent": Entry(_couplings.Independent, "noise and data drawn apart", _FLOW_MATCHING),
    "stored": Entry(
        _couplings.Stored,
        "pairs that the data set holds",
        _arxiv(
            "liu2022flow",
            "Liu, X. and Gong, C. and Liu, Q.",
            "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
            2022,
            "2209.03003",
        ),
    ),
    "optimal_transport": Entry(
        _couplings.OptimalTransport, "the cheapest assignment in a batch", _MINIBATCH, couples_batch=True
    ),
    "conditional_ot": Entry(
        _couplings.ConditionalOT,
        "the cheapest assignment that leaves noise and condition independent",
        _arxiv(
            "cheng2025curse",
            "Cheng, H. K. and Schwing, A.",
            "The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional Flow-Based Generation",
            2025,
            "2503.10636",
        ),
        couples_batch=True,
    ),
    "sinkhorn": Entry(
        _couplings.Sinkhorn,
        "draws from the entropic plan of a batch",
        _MINIBATCH,
        couples_batch=True,
        example=lambda: {"epsilon": 0.5},
    ),
    "semidiscrete_map": Entry(
        _couplings.SemidiscreteMap,
        "DPM-OT: an optimal map from noise to noised data, where sampling then starts",
        _arxiv(
            "li2023dpmot",
            "Li, Z. and Li, S. and Wang, Z. and Lei, N. and Luo, Z. and Gu, X.",
            "DPM-OT: A New Diffusion Probabilistic Model Based on Optimal Transport",
            2023,
            "2307.11308",
        ),
        example=lambda: {"targets": jnp.eye(3), "heights": jnp.zeros(3), "time": 0.5},
    ),
}

objectives = {
    "flow_matching": Entry(
        _objectives.FlowMatching,
        "regression on the conditional prediction of any path",
        _FLOW_MATCHING,
        tasks=("generation", "adapters"),
    ),
    "sit": Entry(
        _objectives.sit,
        "flow matching as SiT trains it",
        _SIT,
        parts={"path": "path"},
        more=(_objectives.FlowMatching,),
        tasks=("generation", "adapters"),
    ),
    "sd3": Entry(
        _objectives.sd3,
        "flow matching as SD3 trains it",
        _SD3,
        parts={"times": "time_law"},
        more=(_objectives.FlowMatching,),
        tasks=("generation", "adapters"),
    ),
    "interpolation": Entry(
        _objectives.Interpolation,
        "regression on a field of a stochastic interpolant",
        _INTERPOLANTS,
        tasks=("generation", "adapters"),
    ),
    "coupled": Entry(
        _objectives.Coupled,
        "an objective whose noise is paired with the data",
        _MINIBATCH,
        couples_batch=True,
        tasks=("generation", "distillation", "adapters"),
    ),
    "schroedinger_bridge": Entry(
        _objectives.SchroedingerBridge,
        "Schroedinger bridge by optimising the interpolant (experimental)",
        _INTERPOLANTS,
        tasks=("generation",),
    ),
    "classification": Entry(
        _objectives.Classification,
        "cross-entropy with smoothed labels on inputs prepared at random",
        _arxiv(
            "szegedy2015rethinking",
            "Szegedy, C. and Vanhoucke, V. and Ioffe, S. and Shlens, J. and Wojna, Z.",
            "Rethinking the Inception Architecture for Computer Vision",
            2015,
            "1512.00567",
        ),
        tasks=("classification", "clouds"),
    ),
    "regression": Entry(
        _objectives.Regression,
        "squared or absolute distance to a target of each input",
        Reference(
            "hastie2009elements",
            "Hastie, T. and Tibshirani, R. and Friedman, J.",
            "The Elements of Statistical Learning",
            2009,
            "https://doi.org/10.1007/978-0-387-84858-7",
        ),
        tasks=("regression",),
    ),
    "teacher_regression": Entry(
        _objectives.TeacherRegression,
        "regression on the predictions of a teacher, guided or not",
        fields["embedded"].reference,
        tasks=("distillation", "adapters"),
    ),
    "autoencoding": Entry(
        _objectives.Autoencoding,
        "reconstruction, prior and an adversary that starts later",
        _LATENT_DIFFUSION,
        couples_batch=True,
        tasks=("autoencoding",),
    ),
}

systems = {
    "self_calibration": Entry(
        _calibration.solve,
        "unknown gains and signals by linear least squares",
        _arxiv(
            "ling2016selfcalibration",
            "Ling, S. and Strohmer, T.",
            "Self-Calibration and Bilinear Inverse Problems via Linear Least Squares",
            2016,
            "1611.04196",
        ),
    ),
    "lyapunov_exponents": Entry(
        _coherent_structures.stretching,
        "finite-time Lyapunov exponents of vector fields, samplers and tracks",
        Reference(
            "haller2015lagrangian",
            "Haller, G.",
            "Lagrangian Coherent Structures",
            2015,
            "https://doi.org/10.1146/annurev-fluid-010313-141322",
        ),
    ),
    "coherent_tracks": Entry(
        _coherent_structures.lcti,
        "particle tracks from four frames, chosen by coherence with their neighbours",
        _arxiv(
            "rahimikhojasteh2021lagrangian",
            "Rahimi Khojasteh, A. and Yang, Y. and Heitz, D. and Laizet, S.",
            "Lagrangian coherent track initialization",
            2021,
            "2106.11049",
        ),
    ),
    "slab_transport": Entry(
        _transport.solve,
        "discrete ordinates in a slab with diffusion synthetic acceleration",
        Reference(
            "adams2002fast",
            "Adams, M. L. and Larsen, E. W.",
            "Fast iterative methods for discrete-ordinates particle transport calculations",
            2002,
            "https://doi.org/10.1016/S0149-1970(01)00023-3",
        ),
    ),
    "point_sampling": Entry(
        _point_sampling.filtered_farthest_points,
        "key points and resampling for point clouds with outliers and holes",
        _arxiv(
            "li2024pointsp",
            "Li, C. and Tang, P. and Li, X. and Liu, Y. and Li, T.",
            "Enhancing Sampling Protocol for Point Cloud Classification Against Corruptions",
            2024,
            "2408.12062",
        ),
    ),
    "event_motion": Entry(
        _event_motion.ransac,
        "lines and camera velocity from five or more events",
        _arxiv(
            "gao2023fivepoint",
            "Gao, L. and Su, H. and Gehrig, D. and Cannici, M. and Scaramuzza, D. and Kneip, L.",
            "A 5-Point Minimal Solver for Event Camera Relative Motion Estimation",
            2023,
            "2309.17054",
        ),
    ),
    "video_stabilization": Entry(
        _stabilization.stabilize,
        "full-frame stabilisation from optical flow",
        _arxiv(
            "zhao2023faststab",
            "Zhao, W. and Li, X. and Peng, Z. and Luo, X. and Ye, X. and Lu, H. and Cao, Z.",
            "Fast Full-frame Video Stabilization with Iterative Optimization",
            2023,
            "2307.12774",
        ),
    ),
}


def _paths() -> dict[str, Entry]:
    from flowjax import paths

    interpolants = "x_t = alpha(t) x1 + sigma(t) x0"
    return {
        "linear": Entry(paths.Linear, f"straight lines: {interpolants} with alpha = t, sigma = 1 - t", _FLOW_MATCHING),
        "trig": Entry(paths.Trig, "variance-preserving, trigonometric", _INTERPOLANTS),
        "vp": Entry(paths.VP, "variance-preserving diffusion, linear betas", _SCORE_SDE),
        "sub_vp": Entry(paths.SubVP, "sub-VP diffusion", _SCORE_SDE),
        "sbdm": Entry(paths.SBDM, "SiT's variance-preserving path", _SIT),
        "cosine": Entry(paths.Cosine, "improved diffusion's cosine schedule", _COSINE),
        "ve": Entry(paths.VE, "variance-exploding diffusion", _SCORE_SDE),
        "edm": Entry(paths.EDM, "EDM's sigma", solvers["edm_heun"].reference),
        "tabulated": Entry(
            paths.Tabulated,
            "a table of betas of a discrete-time model",
            solvers["ddim"].reference,
            example=lambda: {"alphas_cumprod": [0.9, 0.5, 0.1]},
        ),
        "interpolant": Entry(paths.Interpolant, "two-sided stochastic interpolant between two laws", _INTERPOLANTS),
    }


def _networks() -> dict[str, Entry]:
    from flowjax import models
    from flowjax.geometry.pointnet import PointNet

    return {
        "mlp": Entry(models.MLP, "residual perceptron for points", example=lambda: {"dim": 2, "width": 8}),
        "dit": Entry(
            models.DiT,
            "diffusion transformer for images",
            rules["channels"].reference,
            example=lambda: {"image_shape": (4, 4, 1), "patch": 2, "width": 8, "depth": 1, "heads": 2},
        ),
        "unet": Entry(
            models.UNet,
            "convolutional U-Net for images",
            example=lambda: {
                "image_shape": (8, 8, 1),
                "channels": 8,
                "multipliers": (1,),
                "groups": 2,
                "attention_at": (),
                "head": 8,
            },
        ),
        "autoencoder": Entry(
            models.Autoencoder,
            "autoencoder of images with a Gaussian posterior",
            _LATENT_DIFFUSION,
            example=lambda: {"image_shape": (4, 4, 1), "channels": 4, "multipliers": (1, 1), "groups": 2},
        ),
        "discriminator": Entry(
            models.Discriminator,
            "discriminator of overlapping patches (PatchGAN)",
            _arxiv(
                "isola2016image",
                "Isola, P. and Zhu, J. and Zhou, T. and Efros, A. A.",
                "Image-to-Image Translation with Conditional Adversarial Networks",
                2016,
                "1611.07004",
            ),
            example=lambda: {"image_shape": (8, 8, 1), "channels": 4, "layers": 1, "groups": 2},
        ),
        "conditioned": Entry(
            models.Conditioned,
            "another network, conditioned on named things",
            parts={"network": "network", "encoders": "{encoder}"},
            example=lambda: {
                "network": {"name": "mlp", "options": {"dim": 2, "width": 8, "cond_dim": 4}},
                "encoders": {"label": {"name": "label", "options": {"num_classes": 3, "dim": 4}}},
            },
        ),
        "readout": Entry(
            models.Readout,
            "an encoder and a dense layer: classes or numbers",
            parts={"encoder": "encoder"},
            example=lambda: {
                "encoder": {"name": "vector", "options": {"size": 3, "dim": 4}},
                "outputs": 2,
            },
        ),
        "pointnet": Entry(
            PointNet,
            "classifier of clouds of points",
            systems["point_sampling"].reference,
            parts={},
            example=lambda: {"num_classes": 3, "width": 8, "neighbours": 4},
        ),
    }


def _encoders() -> dict[str, Entry]:
    from flowjax import models

    return {
        "label": Entry(models.LabelEncoder, "a vector for each class", example=lambda: {"num_classes": 3, "dim": 4}),
        "vector": Entry(models.VectorEncoder, "a dense layer on vectors", example=lambda: {"size": 3, "dim": 4}),
        "text": Entry(
            models.TextEncoder,
            "a small transformer on tokens",
            example=lambda: {"vocabulary": 260, "length": 3, "dim": 4, "width": 8, "heads": 2},
        ),
        "image": Entry(
            models.ImageEncoder,
            "convolutions on images",
            example=lambda: {"image_shape": (4, 4, 1), "dim": 4, "channels": 2},
        ),
    }


def _tokenizers() -> dict[str, Entry]:
    from flowjax import models

    return {
        "words": Entry(
            models.Words,
            "known words; others are spelled in bytes",
            example=lambda: {"words": ("a", "circle", "red"), "length": 4},
        )
    }


def _adapters() -> dict[str, Entry]:
    from flowjax.models import lora

    return {
        "lora": Entry(
            lora.add,
            "low-rank adapters of dense layers and convolutions",
            _arxiv(
                "hu2021lora",
                "Hu, E. J. and Shen, Y. and Wallis, P. and Allen-Zhu, Z. and Li, Y. and Wang, S. and others",
                "LoRA: Low-Rank Adaptation of Large Language Models",
                2021,
                "2106.09685",
            ),
        )
    }


def _times() -> dict[str, Entry]:
    from flowjax import times

    return {
        "uniform": Entry(times.uniform, "equal steps"),
        "quadratic": Entry(times.quadratic, "equal steps in sqrt(1 - t)", _DPM_SOLVER),
        "log_snr": Entry(times.log_snr, "equal steps in log(alpha/sigma)", _DPM_SOLVER),
        "karras": Entry(times.karras, "EDM's grid in sigma/alpha", solvers["edm_heun"].reference),
        "shifted": Entry(
            times.shifted,
            "another grid moved towards the noise",
            _SD3,
            parts={"times": "times"},
            example=lambda: {"times": "uniform", "shift": 3.0},
        ),
    }


def _time_laws() -> dict[str, Entry]:
    laws = _objectives.times
    return {
        "uniform": Entry(laws.Uniform, "uniform training times"),
        "logit_normal": Entry(laws.LogitNormal, "normal in logit(t)", _SD3),
        "mode": Entry(laws.Mode, "a mode in the middle or at the ends", _SD3),
        "cos_map": Entry(laws.CosMap, "the law of a cosine schedule", _SD3),
        "shifted": Entry(
            laws.Shifted,
            "another law moved towards the noise",
            _SD3,
            example=lambda: {"times": laws.LogitNormal(), "shift": 3.0},
        ),
    }


def _weights() -> dict[str, Entry]:
    return {
        "sit": Entry(_objectives.SiTWeight, "weights of SiT's losses of noise and score", _SIT),
    }


def _conditions() -> dict[str, Entry]:
    from flowjax import conditions

    return {
        "label": Entry(conditions.Label, "a class", example=lambda: {"classes": 3}),
        "vector": Entry(conditions.Vector, "a vector of numbers", example=lambda: {"dim": 2}),
        "text": Entry(conditions.Text, "a text", example=lambda: {"words": ("a", "circle", "red"), "length": 4}),
    }


def _averages() -> dict[str, Entry]:
    from flowjax.training import ema

    return {
        "constant": Entry(ema.Constant, "the same decay at every step", example=lambda: {"decay": 0.999}),
        "warmup": Entry(ema.Warmup, "a decay that rises at first", example=lambda: {"decay": 0.999}),
        "power": Entry(ema.Power, "a length that grows with training", _EDM2, example=lambda: {"std": 0.05}),
    }


def _optimizers() -> dict[str, Entry]:
    import optax
    from optax import contrib

    from flowjax.training.optimizers import optimizer

    known: dict[str, tuple[Any, str, Reference | None]] = {
        "adamw": (
            optax.adamw,
            "Adam with decoupled weight decay",
            _arxiv(
                "loshchilov2017decoupled",
                "Loshchilov, I. and Hutter, F.",
                "Decoupled Weight Decay Regularization",
                2017,
                "1711.05101",
            ),
        ),
        "adam": (
            optax.adam,
            "Adam",
            _arxiv(
                "kingma2014adam",
                "Kingma, D. P. and Ba, J.",
                "Adam: A Method for Stochastic Optimization",
                2014,
                "1412.6980",
            ),
        ),
        "adan": (
            optax.adan,
            "adaptive Nesterov momentum",
            _arxiv(
                "xie2022adan",
                "Xie, X. and Zhou, P. and Li, H. and Lin, Z. and Yan, S.",
                "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
                2022,
                "2208.06677",
            ),
        ),
        "lion": (
            optax.lion,
            "the sign of a momentum",
            _arxiv(
                "chen2023symbolic",
                "Chen, X. and Liang, C. and Huang, D. and Real, E. and Wang, K. and others",
                "Symbolic Discovery of Optimization Algorithms",
                2023,
                "2302.06675",
            ),
        ),
        "muon": (
            contrib.muon,
            "orthogonal updates of matrices, Adam for the rest",
            _arxiv(
                "liu2025muon",
                "Liu, J. and Su, J. and Yao, X. and Jiang, Z. and others",
                "Muon is Scalable for LLM Training",
                2025,
                "2502.16982",
            ),
        ),
        "sgd": (optax.sgd, "gradient descent, with momentum if asked for", None),
    }
    return {
        name: Entry(functools.partial(optimizer, make), summary, reference, more=(make,))
        for name, (make, summary, reference) in known.items()
    }


def _tasks() -> dict[str, Entry]:
    from flowjax import tasks
    from flowjax.geometry.cloud_classification import Clouds

    return {
        "generation": Entry(tasks.Generation, "a generative flow"),
        "autoencoding": Entry(tasks.Autoencoding, "an autoencoder, with or without a discriminator", _LATENT_DIFFUSION),
        "distillation": Entry(tasks.Distillation, "a student of a trained flow"),
        "adapters": Entry(tasks.Adaptation, "low-rank adapters on a trained flow"),
        "classification": Entry(tasks.ClassifierTraining, "a classifier of data with labels"),
        "regression": Entry(tasks.RegressionTraining, "numbers from examples"),
        "clouds": Entry(Clouds, "a classifier of clouds of points", systems["point_sampling"].reference),
    }


def _runs() -> dict[str, Entry]:
    from flowjax.recipe import Run

    return {"run": Entry(Run, "a trained run", example=lambda: {"workdir": "runs/digits"})}


def _data() -> dict[str, Entry]:
    from flowjax.data.loading import SOURCES

    return {
        name: Entry(make, (inspect.getdoc(make) or name).splitlines()[0].rstrip(".")) for name, make in SOURCES.items()
    }


def _diffusions() -> dict[str, Entry]:
    from flowjax.paths import sde

    return {form: Entry(sde.Diffusion, f"SiT's form {form}", _SIT, fixed={"form": form}) for form in sde.FORMS}


def _runge_kutta() -> dict[str, Entry]:
    import diffrax

    names = {"tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "dopri8": diffrax.Dopri8, "bosh3": diffrax.Bosh3}
    return {
        name: Entry(make, f"diffrax's {make.__name__}", solvers["adaptive"].reference) for name, make in names.items()
    }


def _arrays() -> dict[str, Entry]:
    from flowjax.data.files import stored_array
    from flowjax.paths import tabulated

    return {
        "npz": Entry(stored_array, "an array of an npz file", example=lambda: {"path": "file.npz"}),
        "linear_betas": Entry(tabulated.linear_betas, "DDPM's table"),
        "scaled_linear_betas": Entry(tabulated.scaled_linear_betas, "the table of latent diffusion"),
    }


def _pieces() -> dict[str, dict[str, Entry]]:
    """Parts of single solvers."""
    return {
        "schedule": {"schedule": Entry(_solvers.Schedule, "a searched schedule", solvers["usf"].reference)},
        "decision": {"decision": Entry(_solvers.Decision, "one step of a schedule", solvers["usf"].reference)},
        "statistics": {
            "statistics": Entry(_solvers.Statistics, "empirical model statistics", solvers["dpm_solver_v3"].reference)
        },
    }


class _Tables(Mapping[str, Mapping[str, Entry]]):
    """The entries of every kind of spec, made when they are first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Mapping[str, Entry]]]):
        self._makers, self._made = dict(makers), dict[str, Mapping[str, Entry]]()

    def __getitem__(self, kind: str) -> Mapping[str, Entry]:
        if kind not in self._made:
            self._made[kind] = self._makers[kind]()
        return self._made[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


tables: Mapping[str, Mapping[str, Entry]] = _Tables(
    {
        "path": _paths,
        "network": _networks,
        "adapters": _adapters,
        "encoder": _encoders,
        "tokenizer": _tokenizers,
        "times": _times,
        "time_law": _time_laws,
        "solver": lambda: solvers,
        "rule": lambda: rules,
        "field": lambda: fields,
        "coupling": lambda: couplings,
        "objective": lambda: objectives,
        "weight": _weights,
        "average": _averages,
        "condition": _conditions,
        "optimizer": _optimizers,
        "task": _tasks,
        "run": _runs,
        "data": _data,
        "array": _arrays,
        "diffusion": _diffusions,
        "runge_kutta": _runge_kutta,
        **{kind: functools.partial(dict, table) for kind, table in _pieces().items()},
    }
)


def solver(name: str, **options: Any) -> Any:
    """A solver by its name, for example solver("dpm_solver", order=3); `flowjax.build` makes every kind.

    Raises:
        ValueError: unknown name, unknown or missing option.
    """
    return specs.build("solver", {"name": name, "options": options})


def rule(name: str, **options: Any) -> _guidance.Rule:
    """A guidance rule by its name, for example rule("cfg", scale=4.0).

    Raises:
        ValueError: unknown name, unknown or missing option.
    """
    return specs.build("rule", {"name": name, "options": options})


def cite(*parts: Any) -> str:
    """BibTeX entries of all methods that the given solvers, fields, couplings, ... are made of, in order, once each.

    Example:
        >>> import flowjax as fj
        >>> print(fj.cite(fj.solvers.DDIM()).splitlines()[0])
        @misc{song2020denoising,
    """
    by_class = {
        entry.make: entry.reference
        for table in (solvers, rules, fields, couplings, objectives)
        for entry in table.values()
        if entry.reference is not None
    }
    found: dict[str, Reference] = {}

    def walk(part: Any) -> None:
        if type(part) in by_class:
            found.setdefault(by_class[type(part)].key, by_class[type(part)])
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            for field in dataclasses.fields(part):
                walk(getattr(part, field.name))

    for part in parts:
        walk(part)
    return "\n\n".join(reference.bibtex() for reference in found.values())
