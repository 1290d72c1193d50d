"""python -m export.all: checkpoints to verified ONNX members, and on request to one bundle of them.

This command joins the rooms: it rebuilds the network and finds the validation split with train/, which the rest of
export/ never imports.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 1 an export was stopped, 2 nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="python -m export.all",
        description="Export checkpoints of python -m train.all to ONNX, each verified on the whole validation split.",
        epilog="Several checkpoints and --bundle make a bundle that averages them. Research software, not a medical device.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE", help="RUN/STAGE/checkpoint.pt")
    add("--data-dir", type=Path, metavar="DIR", help="where the data set is (default: medmnist's own folder)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where STAGE.onnx goes (default: member.onnx beside the checkpoint)",
    )
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="also write a bundle of the members, in the place of one that is there",
    )
    add(
        "--precision",
        default="int8,fp32,fp16",
        metavar="LIST",
        help="forms to try for the bundle: fp32, always there, int8 and fp16 where validation accepts them",
    )
    add(
        "--merged",
        type=Path,
        metavar="FILE",
        help="also write one ONNX file that ends in the mean probabilities",
    )
    options = parser.parse_args(arguments)
    try:
        from export.member import ExportError
        from train.errors import RunError
    except ImportError as e:
        return _missing(e)
    try:
        export(options)
    except RunError as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 2
    except ExportError as e:
        print(f"export: error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"export: error: {e.strerror or e}: {e.filename}", file=sys.stderr)
        return 2
    except ImportError as e:
        return _missing(e)
    return 0


def _missing(error: ImportError) -> int:
    print(
        f"export: error: {error.name} is not installed: pip install -e '.[train,cpu]' (or train,gpu)",
        file=sys.stderr,
    )
    return 2


def export(options: argparse.Namespace) -> None:
    """Export every checkpoint; raises ExportError where a member is not the network, RunError for bad input."""
    import onnx

    from export.bundle import Trained, check_place, write_bundle
    from export.forms import PRECISIONS, logits_of
    from export.member import ExportError, export_member, write_model
    from export.merge import check_merged, merge
    from export.rewrite import rewrite
    from export.temperature import fit_temperature, mean_softmax
    from train import calibration
    from train.data import load_data
    from train.ensemble import mean_probabilities
    from train.errors import RunError
    from train.fit import network_of, probabilities
    from train.metrics import measure
    from train.record import load_checkpoint

    if options.bundle:
        try:
            check_place(options.bundle)
        except ExportError as e:
            raise RunError(f"--bundle: {e}") from e
    precisions = options.precision.split(",")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise RunError(f"--precision: {precision!r} is none of {', '.join(PRECISIONS)}")
    # a checkpoint of before slices could be resampled does not say how they were stored
    states = [{"stored": state["size"]} | state for state in map(load_checkpoint, options.checkpoint)]
    for path, state in zip(options.checkpoint, states, strict=True):
        if not state["finished"]:
            raise RunError(f"{path} is of a stage that is not finished; train it to its end first")
    stages = [state["stage"] for state in states]
    if (options.bundle or options.merged or options.out) and len(set(stages)) < len(stages):
        twice = next(stage for stage in stages if stages.count(stage) > 1)
        raise RunError(
            f"--checkpoint: stage {twice} is given twice; --bundle, --merged and --out take each once"
        )
    about = {
        key: states[0][key] for key in ("dataset", "size", "stored", "classes", "data_md5", "smoke", "seed")
    }
    for path, state in zip(options.checkpoint, states, strict=True):
        for key in ("dataset", "size", "stored", "smoke"):
            if state[key] != about[key]:
                raise RunError(f"{path} has {key} {state[key]}, {options.checkpoint[0]} has {about[key]}")
    data = load_data(
        about["dataset"], size=about["size"], directory=options.data_dir, resample_from=about["stored"]
    )
    data = calibration.fitted_on(data.smoke() if about["smoke"] else data)
    members, logits, fitting = [], [], []
    for path, state in zip(options.checkpoint, states, strict=True):
        network = network_of(state)
        file = options.out / f"{state['stage']}.onnx" if options.out else path.with_name("member.onnx")
        parity = export_member(network, file, data.images["val"], data.labels["val"], size=data.size)
        members.append(Trained(state["stage"], file))
        logits.append(parity.logits)
        if options.merged:
            fitting.append(logits_of(file.read_bytes(), data.images[calibration.SPLIT], data.size))
        print(
            f"{file}: {parity.slices} validation slices, logits within {parity.max_abs:.1e} of PyTorch's, "
            f"accuracy {parity.accuracy:.4f}"
        )
    mean = mean_probabilities([probabilities(z) for z in logits])
    if options.merged:
        temperature = fit_temperature(
            fitting, data.labels[calibration.SPLIT]
        )  # as a bundle of their float32 forms has it
        merged = merge({m.stage: rewrite(onnx.load(m.file)) for m in members}, temperature=temperature)
        check_merged(merged, mean_softmax(logits, temperature), data.images["val"], data.size)
        write_model(merged, options.merged)
        print(f"{options.merged}: {len(members)} members in one graph, temperature {temperature:g}")
    if options.bundle:
        name = members[0].stage if len(members) == 1 else "ensemble"
        weights = sorted({state["weights"] for state in states} - {"none"})
        measured = measure(mean, data.labels["val"])
        write_bundle(
            options.bundle,
            dataset=data.flag,
            view=data.view,
            classes=data.classes,
            size=data.size,
            members=members,
            slices=calibration.judged_with(data),
            precisions=precisions,
            metrics={"val": measured.for_manifest()},
            training={
                "seed": about["seed"],
                "data_md5": data.md5,
                "weights": "; ".join(weights) or "none",
                "versions": {},
                "temperature_fitted_on": calibration.described(data),
                "smoke": about["smoke"],
            },
            name=f"{data.flag}-{name}",
        )
        print(f"{options.bundle}: {len(members)} members, validation accuracy {measured.accuracy:.4f}")


if __name__ == "__main__":
    sys.exit(main())
