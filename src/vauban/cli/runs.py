"""compare, gate, report: what one does with finished runs. Nothing is attacked here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vauban.cli import options as o
from vauban.cli.verb import Reply, verb

GROUP = "Work with runs"
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
Run = Annotated[str, typer.Argument(help="A run folder, or its report.json.")]


@verb(GROUP)
def compare(before: Run, after: Run, as_json: o.Json = False, debug: o.Debug = False) -> Reply:
    """What changed between two runs, each difference with its interval."""
    from vauban.audits.compare import compare as compare_logs
    from vauban.audits.stored import read_log

    comparison = compare_logs(read_log(Path(before)), read_log(Path(after)))
    words = {True: "better", False: "WORSE", None: "-"}
    lines = [f"before: {comparison.before}", f"after:  {comparison.after}", ""]
    for c in comparison.changes:
        if c.before is None or c.after is None:
            continue
        interval = "" if c.low is None or c.high is None else f"  [{c.low:+.4g}, {c.high:+.4g}]"
        lines.append(
            f"{words[c.better]:6}  {c.check} {c.threat or ''}  {c.name}: {c.before:.4g} -> {c.after:.4g} ({c.difference:+.4g}){interval}"
        )
    return Reply(comparison, "\n".join([*lines, "", *comparison.caveats]))


@verb(GROUP)
def gate(
    run: Run,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="An earlier run: fail on what is new or worse.")
    ] = None,
    fail_on: o.FailOn = None,
    config: o.ConfigFile = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Thresholds for CI: exit 0 passed, 1 failed, 3 cannot be told."""
    from vauban.audits.gate import judge_gates
    from vauban.audits.stored import read_log
    from vauban.cli.auditing import settle

    settled = settle(config, {"fail_on": fail_on})
    earlier = read_log(Path(baseline)) if baseline else None
    report = judge_gates(read_log(Path(run)), list(settled.gates), settled.fail_on, earlier)
    text = "\n".join([f"gate: {report.state}", *(f"  {r.state:12}  {r.sentence}" for r in report.rulings)])
    return Reply(report, text, EXIT[report.state])


@verb(GROUP)
def report(
    run: Run,
    formats: o.Formats = None,
    lang: o.Lang = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> Reply:
    """Write a run's report again, in other formats."""
    from vauban.audits.store import guarded
    from vauban.audits.stored import read_log
    from vauban.cli.auditing import settle
    from vauban.reports.write import write

    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    settled = settle(None, {"formats": formats, "lang": lang})
    log = read_log(Path(run))
    with guarded(folder):
        written = write(log, folder, tuple(settled.formats), tuple(settled.lang))
    paths = [str(path) for path in written if path.parent == folder]
    return Reply({"written": paths}, "\n".join(paths))
