"""Every defence: id -> where its class lives. One row adds one."""

from __future__ import annotations

from vauban.core.defence import Defence
from vauban.core.registry import Catalogue

DEFENCES: Catalogue[type[Defence]] = Catalogue(
    "defence",
    "vauban.defences",
    {
        "certify.bands": "vauban.defences.certify.bands:BandSmoothing",
        "certify.smoothing": "vauban.defences.certify.smoothing:RandomisedSmoothing",
        "detect.dispersion": "vauban.defences.detect.dispersion:DispersionDetector",
        "detect.energy": "vauban.defences.detect.energy:Energy",
        "detect.lid": "vauban.defences.detect.lid:LIDDetector",
        "detect.mahalanobis": "vauban.defences.detect.mahalanobis:MahalanobisDetector",
        "detect.neighbours": "vauban.defences.detect.neighbours:NeighbourDetector",
        "detect.reconstruction": "vauban.defences.detect.reconstruction:ReconstructionDetector",
        "detect.shift": "vauban.defences.detect.shift:ShiftDetector",
        "detect.squeezing": "vauban.defences.detect.squeezing:SqueezingDetector",
        "distill.defensive": "vauban.defences.distill.defensive:DefensiveDistillation",
        "distill.robust": "vauban.defences.distill.robust:RobustDistillation",
        "preprocess.denoise": "vauban.defences.preprocess.denoise:Denoising",
        "preprocess.jpeg": "vauban.defences.preprocess.jpeg:JPEG",
        "preprocess.resize": "vauban.defences.preprocess.resize:RandomResize",
        "preprocess.squeeze": "vauban.defences.preprocess.squeeze:Squeeze",
        "preprocess.variation": "vauban.defences.preprocess.variation:TotalVariation",
        "privacy.dp_sgd": "vauban.defences.privacy.dp_sgd:DPSGD",
        "train.awp": "vauban.defences.train.awp:WeightPerturbation",
        "train.crown_ibp": "vauban.defences.train.crown_ibp:CrownIBPTraining",
        "train.cutout": "vauban.defences.train.cutout:Cutout",
        "train.fast": "vauban.defences.train.fast:FastTraining",
        "train.free": "vauban.defences.train.free:FreeTraining",
        "train.generated": "vauban.defences.train.generated:GeneratedData",
        "train.ibp": "vauban.defences.train.ibp:IBPTraining",
        "train.mart": "vauban.defences.train.mart:MART",
        "train.mixup": "vauban.defences.train.mixup:Mixup",
        "train.multi": "vauban.defences.train.multi:SeveralNorms",
        "train.noise": "vauban.defences.train.noise:NoiseTraining",
        "train.pgd": "vauban.defences.train.pgd:PGDTraining",
        "train.robust_linear": "vauban.defences.train.robust_linear:RobustLinear",
        "train.robust_trees": "vauban.defences.train.robust_trees:RobustTrees",
        "train.trades": "vauban.defences.train.trades:TRADES",
    },
)
