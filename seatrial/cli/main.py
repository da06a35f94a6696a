"""`seatrial`: trial, robustness, quantize, evaluate, profile, report, list and sweep."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from seatrial.cli import options as o
from seatrial.cli.harden import harden
from seatrial.cli.qat import qat
from seatrial.cli.quantize import quantize
from seatrial.cli.robustness import robustness
from seatrial.errors import BadInput, LimitBroken, SeatrialError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The last test before a neural network enters service: quantize it for its chip, measure it there, see how "
    "it holds under noise.",
)
_DEFAULT_MODELS = ("digits-cnn", "digits-vit")


@app.command()
def trial(
    model: Annotated[str | None, typer.Argument(help=o.MODEL + " Without: two networks trained on digits.")] = None,
    data: o.Data = None,
    weights: o.Weights = None,
    target: o.Target = "auto",
    method: o.Method = "nearest",
    bits: o.BitsOption = "w8a8",
    ranges: o.Ranges = "default",
    bias_correction: o.BiasCorrection = None,
    equalization: o.Equalization = "depthwise",
    keep: o.Keep = None,
    noise: o.Noise = "quick",
    limit: o.Limit = None,
    noise_limit: Annotated[int | None, typer.Option(help="Samples under noise; by default 256 for quick.")] = None,
    fail_if: Annotated[
        str | None, typer.Option(help="Exit with 3 where this holds: 'w8a8.top1 < float.top1 - 0.01'.", metavar="EXPR")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The float original of a deployed file, for agreement.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default named after the question.")] = None,
    json: o.JsonFile = None,
    classes: o.Classes = None,
    calibration: o.Calibration = None,
    calibration_samples: o.CalibrationSamples = 256,
    max_bad: o.MaxBad = "1%",
    seed: o.Seed = 0,
    batch: o.Batch = 64,
    threads: o.Threads = 0,
    jobs: o.Jobs = 1,
    ray: o.Ray = None,
    cache_gb: o.CacheGb = 0.0,
    retry_failed: Annotated[bool, typer.Option(help="Ask failed cells again.")] = False,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.ResizeOption = None,
    crop: o.Crop = None,
    interpolation: o.Interpolation = None,
) -> None:
    """Quantize a network for this chip, measure it there, and try float, simulated and deployed model under noise.

    Example: seatrial trial timm:resnet18 --weights resnet18.safetensors --data pictures/ --limit 1000
    """
    from seatrial.cli.screen import progress_bar, show_trial, write_json
    from seatrial.jobs.trial import check_limits, limit_holds
    from seatrial.jobs.trial import trial as run

    if fail_if is not None:
        check_limits(fail_if)

    settings = o.settings_of(
        target=target, method=method, bits=bits, ranges=ranges, bias_correction=bias_correction,
        equalization=equalization, keep=keep, noise=noise, limit=limit, noise_limit=noise_limit,
        calibration=calibration, calibration_samples=calibration_samples, max_bad=max_bad, seed=seed, batch=batch,
        threads=threads, jobs=jobs, ray=ray, cache_gb=cache_gb, retry_failed=retry_failed,
    )  # fmt: skip
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    models = [model] if model is not None else list(_DEFAULT_MODELS)
    results = []
    for name in models:
        folder = out / name if out is not None and len(models) > 1 else out
        with progress_bar() as tell:
            found = run(
                name, data, out=folder, reference=reference, settings=settings, overrides=overrides, progress=tell
            )
        show_trial(found)
        results.append(found)
    write_json(results[0].data if model is not None else {"trials": [found.data for found in results]}, json)
    if fail_if is not None:
        broken = [found.data["model"]["name"] for found in results if limit_holds(found, fail_if)]
        if broken:
            raise LimitBroken(f"--fail-if '{fail_if}' holds for {', '.join(broken)}")


@app.command()
def evaluate(
    model: o.Model,
    data: o.Data = None,
    weights: o.Weights = None,
    target: o.Target = "auto",
    noise: o.Noise = "none",
    limit: o.Limit = None,
    out: Annotated[Path | None, typer.Option(help="Keep the store here and resume from it.")] = None,
    json: o.JsonFile = None,
    classes: o.Classes = None,
    max_bad: o.MaxBad = "1%",
    seed: o.Seed = 0,
    batch: o.Batch = 64,
    threads: o.Threads = 0,
    jobs: o.Jobs = 1,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.ResizeOption = None,
    crop: o.Crop = None,
    interpolation: o.Interpolation = None,
) -> None:
    """Evaluate one model as it is: accuracy, latency and noise on one target.

    Example: seatrial evaluate model.tflite --data pictures/ --noise quick
    """
    from seatrial.cli.screen import progress_bar, show_rows, write_json
    from seatrial.jobs.evaluate import evaluate as run

    settings = o.settings_of(
        target=target, noise=noise, limit=limit, max_bad=max_bad, seed=seed, batch=batch, threads=threads, jobs=jobs
    )
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    with progress_bar() as tell:
        found = run(model, data, out=out, settings=settings, overrides=overrides, progress=tell)
    row = {key: found[key] for key in ("name", "target", "bits", "size_bytes", "metric", "value")}
    show_rows(model, [{**row, "latency_ms": found["latency_ms"]["median"] if found["latency_ms"] else None}])
    cells = [
        {key: cell[key] for key in ("family", "name", "option", "severity", "value", "status")}
        for cell in found["noise"]
    ]
    if cells:
        show_rows("under noise", cells)
    write_json(found, json)


@app.command()
def profile(
    model: o.Model,
    target: Annotated[str, typer.Option(help="torch, onnxruntime, openvino or litert.")] = "torch",
    weights: o.Weights = None,
    bits: Annotated[str, typer.Option(help="float32, or bf16 where the target has it.")] = "float32",
    threads: o.Threads = 0,
    runs: Annotated[int, typer.Option(help="Runs to average over.")] = 20,
    top: Annotated[int, typer.Option(help="Operators to print, slowest first.")] = 20,
    json: o.JsonFile = None,
    input_size: o.InputSize = None,
) -> None:
    """Measure the latency of each operator of one model on one target.

    Example: seatrial profile timm:resnet18 --weights random --target openvino
    """
    from seatrial.cli.screen import OUT, progress_bar, show_rows, write_json
    from seatrial.jobs.profile import profile as run

    overrides = o.model_overrides(weights, None, input_size, None, None, None, None, None)
    with progress_bar() as tell:
        tell(0, 0, "measuring")
        found = run(model, target=target, bits=bits, threads=threads, runs=runs, overrides=overrides)
    slowest = sorted(found["operators"], key=lambda row: -row["microseconds"])[:top]
    show_rows(f"{found['model']['name']} on {target}", slowest)
    OUT.print(f"whole model: {found['latency_ms']['median']:.2f} ms")
    write_json(found, json)


@app.command()
def report(
    first: Annotated[Path, typer.Argument(help="The folder of a run.")],
    second: Annotated[Path | None, typer.Argument(help="Another run: compare the two sample by sample.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("comparison.html"),
    json: o.JsonFile = None,
) -> None:
    """Make the report of a run again, or compare two runs, paired sample by sample.

    Example: seatrial report trial-resnet18-1a2b3c4d trial-resnet18-5e6f7a8b --out comparison.html
    """
    from seatrial.cli.screen import OUT, write_json
    from seatrial.jobs.comparing import compare_runs, remake_report

    if second is None:
        write_json({"report": str(remake_report(first, out).resolve())}, json)
    else:
        write_json(compare_runs(first, second, out), json)
    OUT.print(f"report: {out.resolve()}", soft_wrap=True, markup=False)


@app.command(name="list")
def list_methods(
    family: Annotated[str | None, typer.Argument(help="attack, corruption, system, quantizer, ranges, target.")] = None,
    json: o.JsonFile = None,
) -> None:
    """List every method, with its paper and what it needs.

    Example: seatrial list attack
    """
    from seatrial.catalogue import ENTRIES
    from seatrial.cli.screen import show_rows, write_json
    from seatrial.errors import unknown_name

    families = list(dict.fromkeys(entry.family for entry in ENTRIES))
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    rows = [
        {"family": entry.family, "name": entry.name, "paper": entry.paper, "needs": entry.needs}
        for entry in ENTRIES
        if family in (None, entry.family)
    ]
    show_rows("methods", rows)
    write_json({"entries": rows}, json)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file that names models, targets, bits and noises.")],
    jobs: Annotated[int | None, typer.Option(help="Local processes; overrides the file.")] = None,
    ray: o.Ray = None,
    json: o.JsonFile = None,
) -> None:
    """Run every trial that a TOML file describes; finished cells are not asked again.

    Example: seatrial sweep sweep.toml --jobs 2
    """
    from seatrial.cli.screen import progress_bar, show_trial, write_json
    from seatrial.jobs.sweeping import run_sweep

    with progress_bar() as tell:
        results = run_sweep(file, jobs=jobs, ray=ray, progress=tell)
    for found in results:
        show_trial(found)
    write_json({"trials": [found.data for found in results]}, json)


app.command()(quantize)
app.command()(robustness)
app.command()(qat)
app.command()(harden)


def main() -> None:
    """Run the command line and end with the exit codes of the design: 0, 1, 2, 3 and 130."""
    warnings.filterwarnings("ignore")  # libraries warn their own developers; our notes stand in the result
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it has a level of its own
    try:
        code: Any = app(standalone_mode=False)
    except SeatrialError as error:
        _say(f"seatrial: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit as ended:  # Typer ends like this on Ctrl-C
        code = ended.code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise
        bad = BadInput(
            f"{error.filename or 'a file'}: {error.strerror}", "a folder to write to", "choose another --out"
        )
        _say(f"seatrial: {bad}")
        code = bad.exit_code
    except Exception as error:
        code = _usage(error)
    if code == 130:
        _say("seatrial: stopped; finished cells stay, and the same command goes on where it was")
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """Print an error of the command line itself in one line; anything else is our own mistake and keeps its trace."""
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    _say(f"seatrial: {show().rstrip('.')}; see `seatrial --help`")
    return 2


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


if __name__ == "__main__":
    main()
