"""Time the concept metagame against the paper's procedure, the best enumeration and its own version before, in one run.

    python -m scripts.bench_concept [--full]

Writes outputs/bench/concept.json. The paper's procedure is timed on a sixteenth of the patches and its time multiplied
(it is linear in patches); --full times it on all of them, which takes more than 20 minutes on two cores. The version
before, with ceil(n/2) nodes and more terms, is taken from the history of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import torch

from metagame import concept_metagame
from metagame.concept import _unit_interval_rule, exponential_terms
from scripts.measure import bandwidth, module_at, peak_memory, report, timed
from tests.reference.concept import paper_procedure, two_products

CONCEPTS, BACKGROUNDS, PATCHES = 20, 5, 4096
COCO_CLASSES = 133
SHARE = 16
BEFORE = "da94fcf"
SIZES = ((50, 1024), (300, 1024))
MOST = (500, 4096)
PAIR_PATCHES = 256
MEMORY = 50_000_000
"""Bytes, the bound on intermediate results that is measured."""
TOUCHED = 6
"""Numbers that are read or written for each concept, term, node and patch: 1 - p u, its product, the sum over nodes."""


def random_logits(n: int, n_patches: int | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(n, 4096)`` and background ``(5, 4096)``, standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(n + BACKGROUNDS, n_patches or PATCHES, generator=generator, dtype=torch.float64)
    return draw[:n], draw[n:]


def measure_all_classes() -> None:
    """Print seconds and peak memory (GB, of this whole process) of n = 133; run in a process of its own."""
    seconds, _ = timed(lambda: concept_metagame(*random_logits(COCO_CLASSES))[0])
    print(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def measure_pairs() -> None:
    """Print what all pairs of n = 133 take beside input and output, MB; run in a process of its own."""
    both = random_logits(COCO_CLASSES, PAIR_PATCHES)
    concept_metagame(*(each[:, :2] for each in both), directional=True)
    before = peak_memory()
    diag, pairs = concept_metagame(*both, directional=True, memory=MEMORY)
    output = (diag.nbytes + pairs.nbytes) / 2**30
    print(json.dumps({"memory": (peak_memory() - before - output) * 2**30 / 1e6}))


def measured_alone(function: str) -> dict:
    """What a function of this module prints in a process of its own."""
    command = [sys.executable, "-c", f"from scripts.bench_concept import {function}; {function}()"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def growth() -> dict:
    """Seconds of many concepts, against the version before where that takes no minutes."""
    before = module_at(BEFORE, "src/metagame/concept.py")
    seconds, result = {}, {}
    for n, patches in SIZES:
        ours, theirs = (
            partial(function, *random_logits(n, patches)) for function in (concept_metagame, before.concept_metagame)
        )
        fast, (diag, _) = min((timed(ours) for _ in range(3)), key=lambda each: each[0])
        slow, (expected, _) = timed(theirs)
        seconds |= {f"ours_n{n}_p{patches}": fast, f"before_n{n}_p{patches}": slow}
        result |= {f"ratio_before_n{n}": slow / fast, f"error_n{n}": (diag - expected).abs().max().item()}
    n, patches = MOST
    seconds[f"ours_n{n}_p{patches}"], _ = timed(lambda: concept_metagame(*random_logits(n, patches))[0])
    return result | {"seconds": seconds}


def traffic(n: int, seconds: float) -> float:
    """GB a second that the diagonal of n concepts and all patches touches in its loop over nodes, at least."""
    logits, background = random_logits(n)
    weights = torch.cat([logits, background]).exp()
    ratio = weights.sum(0) / (weights[n:].sum(0) + weights[:n].amin(0))
    terms = sum(len(exponential_terms(each)[0]) for each in ratio.log().tolist())
    return TOUCHED * 8 * n * len(_unit_interval_rule(n)[0]) * terms / seconds / 1e9


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
    all_classes, pairs = measured_alone("measure_all_classes"), measured_alone("measure_pairs")
    large = growth()
    ours_n50, _ = timed(lambda: concept_metagame(*random_logits(50))[0])
    return {
        "what": f"diagonal, n = {CONCEPTS}, {PATCHES} patches, float64, {torch.get_num_threads()} threads",
        "ratio": paper / ours,
        "ratio_two_products": enumeration / ours,
        "error": max((diag - exact).abs().max().item(), (diag[:, :patches] - paper_diag).abs().max().item()),
        "memory": all_classes["memory"],
        "memory_pairs": pairs["memory"],
        **{name: value for name, value in large.items() if name != "seconds"},
        "touched": traffic(CONCEPTS, ours),
        "touched_n50": traffic(50, ours_n50),
        "bandwidth_cache": bandwidth(3 << 18),
        "bandwidth_memory": bandwidth(3 << 27),
        "seconds": {
            "ours_first_call": first_seconds,
            "ours_median_of_5": ours,
            "ours_all_pairs": directional,
            "two_products": enumeration,
            "paper_procedure": paper,
            f"ours_n{COCO_CLASSES}": all_classes["seconds"],
            **large["seconds"],
        },
        "paper_procedure_patches": patches,
        "units": {
            "ratio": "time of the paper's procedure / ours (median)",
            "ratio_two_products": "time of enumeration by two matrix products / ours (median)",
            "error": "largest absolute difference to either reference",
            "memory": f"GB, peak of the whole process for n = {COCO_CLASSES}",
            "memory_pairs": f"MB, beside input and output, all pairs of n = {COCO_CLASSES}, memory={MEMORY}",
            **{f"ratio_before_n{n}": f"time of the version before / ours, {p} patches" for n, p in SIZES},
            **{f"error_n{n}": "largest absolute difference to the version before" for n, _ in SIZES},
            "touched": "GB a second that the loop over nodes reads and writes",
            "touched_n50": "GB a second, the same for n = 50",
            "bandwidth_cache": "GB a second of a sum of two arrays that fit the cache of a core",
            "bandwidth_memory": "GB a second of a sum of two arrays that do not",
        },
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="time the paper's procedure on all patches")
    report(bench(parser.parse_args().full), "concept")


if __name__ == "__main__":
    main()
