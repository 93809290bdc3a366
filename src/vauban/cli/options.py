"""The options, each defined once."""

from __future__ import annotations

from typing import Annotated

import typer

RUN, LIMITS, MODEL, OUTPUT = "What is done", "Limits", "Model and data", "Output"

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Write a traceback to a file when something fails.")]
Target = Annotated[
    str | None,
    typer.Argument(
        help="model.pt2, model.skops, weights.safetensors with --factory, module:attribute, demo:digits-cnn."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="file.npz, file.csv with --label, a folder of class folders of pictures, demo:digits.",
        rich_help_panel=MODEL,
    ),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--factory", help="module:callable or file.py:callable that makes the untrained model.", rich_help_panel=MODEL
    ),
]
Label = Annotated[str | None, typer.Option("--label", help="Column of the labels in a table.", rich_help_panel=MODEL)]
Bounds = Annotated[
    str | None, typer.Option("--bounds", help="Smallest and largest valid input, e.g. 0,1.", rich_help_panel=MODEL)
]
Classes = Annotated[int | None, typer.Option("--classes", help="Number of classes.", rich_help_panel=MODEL)]
Kind = Annotated[
    str | None, typer.Option("--kind", help="image or tabular; found out otherwise.", rich_help_panel=MODEL)
]
TrustPickle = Annotated[
    bool | None,
    typer.Option("--trust-pickle", help="Load a pickle: it may run any code on this machine.", rich_help_panel=MODEL),
]
Threats = Annotated[
    list[str] | None,
    typer.Option(
        "--threat",
        help="Room to move an input in: linf:0.1, l2:1.5, linf:8/255, and for pictures rotation:30, flow:0.5, patch:0.05 "
        "and others; repeatable.",
        rich_help_panel=RUN,
    ),
]
Include = Annotated[
    list[str] | None, typer.Option("--include", help="Family or attack; repeatable.", rich_help_panel=RUN)
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Family or attack; repeatable.", rich_help_panel=RUN)
]
Profile = Annotated[str | None, typer.Option("--profile", help="smoke, standard or deep.", rich_help_panel=RUN)]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same numbers.", rich_help_panel=RUN)]
Samples = Annotated[int | None, typer.Option("--samples", help="Test rows to audit.", rich_help_panel=LIMITS)]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Samples at a time; results do not depend on it.", rich_help_panel=LIMITS),
]
TimeLimit = Annotated[
    str | None,
    typer.Option("--time-limit", help="90s, 10m, 1h30m; what is left is inconclusive.", rich_help_panel=LIMITS),
]
QueryLimit = Annotated[
    int | None, typer.Option("--query-limit", help="Model evaluations in all.", rich_help_panel=LIMITS)
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, e.g. steps=100; repeatable.", rich_help_panel=RUN)
]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        help="Lowest severity that fails: critical, high, medium, low, info; or never.",
        rich_help_panel=RUN,
    ),
]
Executor = Annotated[str | None, typer.Option("--executor", help="local.", rich_help_panel=RUN)]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="vauban.yaml; `vauban init` writes one.", rich_help_panel=RUN)
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Run folder; the same command on the same folder resumes.", rich_help_panel=OUTPUT),
]
TensorBoard = Annotated[
    str | None,
    typer.Option("--tensorboard", help="Folder for a diary of the training, for TensorBoard.", rich_help_panel=OUTPUT),
]
OutNew = Annotated[
    str | None, typer.Option("--out", help="A new folder, which must not be there yet.", rich_help_panel=OUTPUT)
]
Input = Annotated[
    str | None, typer.Option("--input", help="Test rows to explain, counted from 0: 0,3,7.", rich_help_panel=RUN)
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="integrated_gradients, smooth_grad, occlusion or grad_cam; the first that the model allows otherwise.",
        rich_help_panel=RUN,
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        help="An input that says nothing: zero, low or mean; low for pictures, else mean.",
        rich_help_panel=RUN,
    ),
]
About = Annotated[
    int | None,
    typer.Option("--class", help="The class to explain; the model's own answer otherwise.", rich_help_panel=RUN),
]
Attack = Annotated[
    str | None,
    typer.Option("--attack", help="Explain the rows attacked, too: evasion.pgd and others.", rich_help_panel=RUN),
]
Formats = Annotated[str | None, typer.Option("--format", help="html,json,sarif,junit,md", rich_help_panel=OUTPUT)]
Lang = Annotated[str | None, typer.Option("--lang", help="Languages of the report: en,zh.", rich_help_panel=OUTPUT)]
