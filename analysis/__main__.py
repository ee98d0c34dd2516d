"""Every measurement by one command: ``python -m analysis NAME [options]``; results go to analysis/results.

A command is a module: ``add_arguments`` gives its arguments to a parser, and ``run`` does what they ask for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# What `all` runs: it needs no data, only time.
MEASUREMENTS = {
    "flops": "multiply-accumulates of the paper's models and of the default",
    "latency": "time and memory of whole networks, by stage",
    "attention": "prototype attention beside masked attention, layer by layer, against the roofline",
    "peers": "PEM beside other networks",
    "speedup": "the network and its fast copy, before and after",
    "runtimes": "the bundled model in torch, onnxruntime and OpenVINO",
    "readings": "from the network's output to the painted photo of 12 megapixels",
    "scaling": "growth with resolution, queries, heads and backbone; goes on where it was stopped",
}
OTHERS = {
    "paper": "our counts beside those of the paper",
    "masked_baseline": "scores and costs of the bundled model beside its masked baseline",
    "ablations": "variants of the network, trained alike: what each part of PEM is worth",
    "precisions": "the bundled model in each precision of an export: scores, time, memory, size of the file",
    "exported_peers": "PEM and other networks in onnxruntime and OpenVINO, beside Mask2Former as it ships",
    "validation": "how far a model can be trusted: thresholds, reliability, intervals, worst photos",
    "backbone_probe": "ImageNet backbones for the default model: a linear probe, and what each costs",
    "training_speed": "photos per second in training, shortcut by shortcut",
    "gpu": "everything that is to be tried on a GPU, right and fast, a row for each step",
    "figures": "draws what is stored, or photos and what the model makes of them",
    "readme": "makes the tables of the READMEs and of the model card from what is stored",
}
COMMANDS = MEASUREMENTS | OTHERS


def run(name: str, options: Sequence[str]) -> None:
    """One command. Trouble with files or values ends it with one sentence."""
    module = import_module(f"analysis.{'tables' if name == 'readme' else name}")
    parser = argparse.ArgumentParser(prog=f"python -m analysis {name}", description=COMMANDS[name])
    module.add_arguments(parser)
    args = parser.parse_args(options)
    try:
        module.run(args)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses ``arguments``, by default those of the process, and runs what they name."""
    listed = "\n".join(f"  {name:15}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"NAME:\n{listed}\n  all              {', '.join(MEASUREMENTS)}; each with its defaults\n\n"
        "python -m analysis NAME --help lists the options of each.",
    )
    parser.add_argument("name", choices=[*COMMANDS, "all"], metavar="NAME")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="options")
    args = parser.parse_args(arguments)
    if args.name != "all":
        return run(args.name, args.options)
    if args.options:
        parser.error("all takes no options; run one measurement at a time to choose them.")
    for name, what in MEASUREMENTS.items():
        print(f"\n== {name}: {what}", flush=True)
        run(name, [])


if __name__ == "__main__":
    main()
