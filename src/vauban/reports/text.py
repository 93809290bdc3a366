"""Numbers and names as people read them."""

from __future__ import annotations

from vauban.schema.log import Attempt, Change, Measurement

NAMES = {
    "evasion.clean_accuracy": "accuracy without attack",
    "evasion.robust_accuracy": "accuracy under attack",
    "evasion.certified_accuracy": "proven accuracy",
    "evasion.broken_share": "right answers broken",
    "evasion.median_distance": "middle distance of a break",
    "evasion.nearest_median": "middle distance of the nearest known break",
    "evasion.queries_median": "middle number of queries",
    "evasion.ssim_median": "middle likeness of a break to the input (SSIM)",
    "evasion.ciede2000_median": "middle colour difference of a break (CIEDE2000)",
    "leakage.membership.auc": "membership, area under ROC",
    "leakage.membership.tpr_at_fpr_1pct": "members found at 1 % false alarms",
    "leakage.membership.tpr_at_fpr_0.1pct": "members found at 0.1 % false alarms",
    "leakage.blind_auc": "blind baseline, area under ROC",
    "leakage.null_auc": "null control, area under ROC",
    "leakage.epsilon_lower_bound": "privacy loss, lower bound",
    "leakage.reconstruction.psnr": "nearness of the rebuilt inputs",
    "leakage.reconstruction.blind_psnr": "nearness of a blind guess",
    "extraction.agreement": "agreement of the copy",
    "extraction.accuracy": "accuracy of the copy",
    "extraction.queries": "queries",
    "extraction.max_parameter_error": "largest parameter error",
    "extraction.target_accuracy": "accuracy of the original",
    "poisoning.attack_success_rate": "success of the backdoor",
    "poisoning.clean_accuracy": "accuracy after poisoning",
    "poisoning.detection_auc": "detection, area under ROC",
    "poisoning.detection_fpr_clean": "false alarms on clean data",
    "poisoning.suspicious_share": "suspicious rows",
    "poisoning.trigger_index": "trigger index",
    "tampering.flips_to_collapse": "bit flips to collapse",
    "tampering.random_control_accuracy": "accuracy after random flips",
}
KEYS = (
    "evasion.robust_accuracy",
    "leakage.membership.auc",
    "leakage.reconstruction.psnr",
    "extraction.max_parameter_error",
    "extraction.agreement",
    "poisoning.attack_success_rate",
    "poisoning.detection_auc",
    "poisoning.clean_accuracy",
    "tampering.flips_to_collapse",
)
"""The number that stands for a check in a table, the first that it has."""
CONTROLS = frozenset(
    {
        "evasion.queries_median",
        "evasion.ssim_median",
        "evasion.ciede2000_median",
        "leakage.blind_auc",
        "leakage.null_auc",
        "leakage.reconstruction.blind_psnr",
        "extraction.queries",
        "extraction.target_accuracy",
        "tampering.random_control_accuracy",
    }
)
"""Numbers that other numbers are held against, and costs: neither gets better or worse."""
FACTS = {
    "same_samples": "same samples in both runs",
    "space": "trained against changes measured by",
    "radius": "trained against changes up to",
    "steps": "steps of the training attack",
    "clean": "share left unattacked in training",
    "clean_accuracy_before": "accuracy on clean inputs, before",
    "clean_accuracy_after": "accuracy on clean inputs, after",
    "clean_error_before": "squared error on clean inputs, before",
    "clean_error_after": "squared error on clean inputs, after",
}
"""Facts of a comparison in words; others are shown by their key."""
SHARES = frozenset({"rate", "auc"})
UNITS = {"rate": "", "auc": "", "queries": "", "absolute": "", "flips": "", "": ""}


def title(name: str) -> str:
    """A measurement's name in words."""
    return NAMES.get(name, name.partition(".")[2].replace("_", " ").replace(".", ", ") or name)


def number(value: float | None, unit: str = "rate") -> str:
    """A value with its unit; an en dash where nothing is known."""
    if value is None:
        return "–"
    if unit == "rate":
        return percent(value)
    if unit == "auc":
        return f"{value:.3f}"
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    suffix = UNITS.get(unit, f" {unit}")
    return f"{text}{suffix}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def interval(low: float | None, high: float | None, unit: str = "rate") -> str:
    """`[low, high]`, empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{number(low, unit)} to {number(high, unit)}"


def between(low: float | None, high: float | None, unit: str = "rate") -> str:
    """The interval of a difference: `+1.0 … +5.0`, without the unit; empty where there is none, and where it is a point."""
    if low is None or high is None or low == high:
        return ""
    bare = unit if unit in SHARES else ""
    ends = [signed(end, bare).removesuffix(" points") for end in (low, high)]
    return f"{ends[0]} … {ends[1]}"


def signed(value: float | None, unit: str = "rate") -> str:
    """A difference: `+3.0 points`."""
    if value is None:
        return "–"
    if value == 0:
        return "±0"
    sign = "+" if value > 0 else "−"
    if unit == "rate":
        return f"{sign}{100 * abs(value):.1f} points"
    return f"{sign}{number(abs(value), unit)}"


def outcome(change: Change) -> str:
    """What became of a number, in a word; nothing for a control, and for what was not measured on both sides."""
    if change.name in CONTROLS or change.difference is None:
        return ""
    if change.difference == 0:
        return "unchanged"
    return {True: "better", False: "worse", None: "cannot be told"}[change.better]


def fact(name: str) -> str:
    return FACTS.get(name, name.replace("_", " "))


def full(m: Measurement) -> str:
    """Value and interval in one line."""
    inside = interval(m.low, m.high, m.unit)
    return f"{number(m.value, m.unit)} ({inside})" if inside else number(m.value, m.unit)


def key(attempt: Attempt) -> Measurement | None:
    """The number that stands for a check."""
    found = (attempt.measurement(name) for name in KEYS)
    return next((m for m in found if m is not None), attempt.measurements[0] if attempt.measurements else None)


def seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min"
