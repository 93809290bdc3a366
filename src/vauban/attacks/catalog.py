"""Every attack: id -> where its class lives. One row adds one."""

from __future__ import annotations

from vauban.core.attack import Attack
from vauban.core.registry import Catalogue

ATTACKS: Catalogue[type[Attack]] = Catalogue(
    "attack",
    "vauban.attacks",
    {
        "evasion.adba": "vauban.attacks.evasion.adba:ADBA",
        "evasion.apgd": "vauban.attacks.evasion.apgd:APGD",
        "evasion.apgd_targeted": "vauban.attacks.evasion.apgd_targeted:TargetedAPGD",
        "evasion.boundary": "vauban.attacks.evasion.boundary:Boundary",
        "evasion.cascade": "vauban.attacks.evasion.cascade:Cascade",
        "evasion.ddn": "vauban.attacks.evasion.ddn:DDN",
        "evasion.deep_fool": "vauban.attacks.evasion.deep_fool:DeepFool",
        "evasion.fab": "vauban.attacks.evasion.fab:FAB",
        "evasion.feature": "vauban.attacks.evasion.feature:Feature",
        "evasion.fgsm": "vauban.attacks.evasion.fgsm:FGSM",
        "evasion.fmn": "vauban.attacks.evasion.fmn:FMN",
        "evasion.gen_attack": "vauban.attacks.evasion.gen_attack:GenAttack",
        "evasion.geoda": "vauban.attacks.evasion.geoda:GeoDA",
        "evasion.hop_skip_jump": "vauban.attacks.evasion.hop_skip_jump:HopSkipJump",
        "evasion.nes": "vauban.attacks.evasion.nes:NES",
        "evasion.noise": "vauban.attacks.evasion.noise:Noise",
        "evasion.one_pixel": "vauban.attacks.evasion.one_pixel:OnePixel",
        "evasion.pgd": "vauban.attacks.evasion.pgd:PGD",
        "evasion.rays": "vauban.attacks.evasion.rays:RayS",
        "evasion.sigma_zero": "vauban.attacks.evasion.sigma_zero:SigmaZero",
        "evasion.sign_hunter": "vauban.attacks.evasion.sign_hunter:SignHunter",
        "evasion.sign_opt": "vauban.attacks.evasion.sign_opt:SignOPT",
        "evasion.simba": "vauban.attacks.evasion.simba:SimBA",
        "evasion.spsa": "vauban.attacks.evasion.spsa:SPSA",
        "evasion.square": "vauban.attacks.evasion.square:Square",
        "evasion.super_deep_fool": "vauban.attacks.evasion.deep_fool:SuperDeepFool",
        "evasion.surfree": "vauban.attacks.evasion.surfree:SurFree",
        "evasion.universal": "vauban.attacks.evasion.universal:Universal",
        "evasion.zoo": "vauban.attacks.evasion.zoo:ZOO",
        "extraction.exact": "vauban.attacks.extraction.exact:Exact",
        "extraction.substitute": "vauban.attacks.extraction.substitute:Substitute",
        "leakage.inversion": "vauban.attacks.leakage.inversion:Inversion",
        "leakage.entropy_threshold": "vauban.attacks.leakage.entropy_threshold:EntropyThreshold",
        "leakage.lira": "vauban.attacks.leakage.lira:LiRA",
        "leakage.loss_threshold": "vauban.attacks.leakage.loss_threshold:LossThreshold",
        "leakage.rmia": "vauban.attacks.leakage.rmia:RMIA",
        "poisoning.badnets": "vauban.attacks.poisoning.badnets:BadNets",
        "poisoning.blended": "vauban.attacks.poisoning.blended:Blended",
        "poisoning.data_audit": "vauban.attacks.poisoning.data_audit:DataAudit",
        "poisoning.label_flip": "vauban.attacks.poisoning.label_flip:LabelFlip",
        "tampering.bit_flip": "vauban.attacks.tampering.bit_flip:BitFlip",
    },
)
