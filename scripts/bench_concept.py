"""Time the concept metagame against the paper's procedure and the best enumeration, in one run.

    python -m scripts.bench_concept [--full]

Writes outputs/bench/concept.json. The paper's procedure is timed on a sixteenth of the patches and its time multiplied
(it is linear in patches); --full times it on all of them, which takes more than 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import torch

from metagame import concept_metagame
from scripts.measure import peak_memory, report, timed
from tests.reference.concept import paper_procedure, two_products

CONCEPTS, BACKGROUNDS, PATCHES = 20, 5, 4096
COCO_CLASSES = 133
SHARE = 16


def random_logits(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(n, 4096)`` and background ``(5, 4096)``, standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(n + BACKGROUNDS, PATCHES, generator=generator, dtype=torch.float64)
    return draw[:n], draw[n:]


def measure_all_classes() -> None:
    """Print seconds and peak memory (GB, of this whole process) of n = 133; run in a process of its own."""
    seconds, _ = timed(lambda: concept_metagame(*random_logits(COCO_CLASSES))[0])
    print(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def bench(full: bool) -> dict:
    """All measurements of one run."""
    logits, background = random_logits(CONCEPTS)
    first_seconds, _ = timed(lambda: concept_metagame(logits, background)[0])
    repeats = [timed(lambda: concept_metagame(logits, background)[0]) for _ in range(5)]
    ours, diag = sorted(seconds for seconds, _ in repeats)[2], repeats[0][1]
    directional, _ = timed(lambda: concept_metagame(logits, background, directional=True)[1])
    enumeration, exact = timed(lambda: two_products(logits, background))
    patches = PATCHES if full else PATCHES // SHARE
    paper, paper_diag = timed(lambda: paper_procedure(logits[:, :patches], background[:, :patches]))
    paper *= PATCHES / patches
    command = [sys.executable, "-c", "from scripts.bench_concept import measure_all_classes; measure_all_classes()"]
    all_classes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "what": f"diagonal, n = {CONCEPTS}, {PATCHES} patches, float64, {torch.get_num_threads()} threads",
        "ratio": paper / ours,
        "ratio_two_products": enumeration / ours,
        "error": max((diag - exact).abs().max().item(), (diag[:, :patches] - paper_diag).abs().max().item()),
        "memory": all_classes["memory"],
        "seconds": {
            "ours_first_call": first_seconds,
            "ours_median_of_5": ours,
            "ours_all_pairs": directional,
            "two_products": enumeration,
            "paper_procedure": paper,
            f"ours_n{COCO_CLASSES}": all_classes["seconds"],
        },
        "paper_procedure_patches": patches,
        "units": {
            "ratio": "time of the paper's procedure / ours (median)",
            "ratio_two_products": "time of enumeration by two matrix products / ours (median)",
            "error": "largest absolute difference to either reference",
            "memory": f"GB, peak of the whole process for n = {COCO_CLASSES}",
        },
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="time the paper's procedure on all patches")
    report(bench(parser.parse_args().full), "concept")


if __name__ == "__main__":
    main()
