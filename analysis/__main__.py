"""Every measurement by one command: ``python -m analysis WHAT [options]``; results go to analysis/results."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from analysis.results import RESULTS
from analysis.tables import DOCUMENTS, renew

MODULES = {
    "flops": "multiply-accumulates of the paper's models and of the default",
    "latency": "time and memory of whole networks, by stage",
    "attention": "prototype attention beside masked attention, layer by layer, against the roofline",
    "peers": "PEM beside other networks",
    "speedup": "the network beside its plain path, before and after",
    "readings": "from the network's output to the painted photo of 12 megapixels",
    "scaling": "growth with resolution, queries, heads and backbone; goes on where it was stopped",
}


def run(name: str, options: list[str]) -> None:
    """The module's own command line. Counts are kept in one file; other modules choose a file for the machine."""
    if name == "flops" and not options:
        options = ["--fvcore", "--out", str(RESULTS / "macs.json")]
    sys.argv = [f"analysis.{name}", *options]
    import_module(f"analysis.{name}").main()


def main() -> None:
    listed = "\n".join(f"  {name:10} {what}" for name, what in MODULES.items())
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=f"WHAT:\n{listed}\n  all        all of these, with their defaults\n"
        "  readme     the tables of README.md, analysis/README.md and the model card\n\n"
        "python -m analysis WHAT --help lists the options of each.",
    )
    parser.add_argument("what", choices=[*MODULES, "all", "readme"], metavar="WHAT")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="options")
    args = parser.parse_args()
    if args.what == "readme":
        for document in DOCUMENTS:
            renew(document)
        return
    if args.what == "all" and args.options:
        parser.error("all takes no options; run one measurement at a time to choose them.")
    for name in MODULES if args.what == "all" else [args.what]:
        if args.what == "all":
            print(f"\n== {name}: {MODULES[name]}", flush=True)
        run(name, args.options)


if __name__ == "__main__":
    main()
