"""Every rule: id -> where its class lives. One row adds one."""

from __future__ import annotations

from vauban.core.registry import Catalogue
from vauban.rules.base import Rule

RULES: Catalogue[type[Rule]] = Catalogue(
    "rule",
    "vauban.rules",
    {
        "evasion.black_box_breaks": "vauban.rules.evasion.black_box_breaks:BlackBoxBreaks",
        "evasion.not_robust": "vauban.rules.evasion.not_robust:NotRobust",
        "evasion.one_change_fits_all": "vauban.rules.evasion.one_change_fits_all:OneChangeFitsAll",
        "evasion.untrustworthy": "vauban.rules.evasion.untrustworthy:Untrustworthy",
        "extraction.exact_copy": "vauban.rules.extraction.exact_copy:ExactCopy",
        "extraction.substitute_copy": "vauban.rules.extraction.substitute_copy:SubstituteCopy",
        "leakage.membership": "vauban.rules.leakage.membership:Membership",
        "leakage.reconstruction": "vauban.rules.leakage.reconstruction:Reconstruction",
        "poisoning.backdoor": "vauban.rules.poisoning.backdoor:Backdoor",
        "poisoning.label_noise": "vauban.rules.poisoning.label_noise:LabelNoise",
        "poisoning.suspicious_rows": "vauban.rules.poisoning.suspicious_rows:SuspiciousRows",
        "tampering.bit_flips": "vauban.rules.tampering.bit_flips:BitFlips",
    },
)
