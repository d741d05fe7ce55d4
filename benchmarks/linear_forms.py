"""How fast a few tokens are multiplied with a model's weights, by how the product is written down.

    python benchmarks/linear_forms.py [--model tiny_dev/target] [--json]

The measurement behind :mod:`specprof.models.linear`, with the weights met cold. CPU, float32.
"""

from __future__ import annotations

import argparse
import json

import torch

from specprof.models.linear import measure_forms, sample_of
from specprof.models.loader import load_model
from specprof.profiling import machine


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny_dev/target")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, _ = load_model(args.model, "float32", "cpu")
    weights = sample_of([w.detach() for w in model.parameters() if w.dim() == 2])
    rows = {
        width: {form.__name__: seconds * 1e3 for form, seconds in measure_forms(weights, width).items()}
        for width in (1, 2, 3, 5, 9)
    }
    if args.json:
        print(json.dumps({"milliseconds": rows, "threads": torch.get_num_threads(), "machine": machine.describe()}))
        return
    megabytes = sum(w.numel() * w.element_size() for w in weights) / 2**20
    print(f"{args.model}: {len(weights)} matrices, {megabytes:.0f} MB, {torch.get_num_threads()} threads; ms for all")
    print(f"{'tokens':<8}{'by_rows':>12}{'by_columns':>12}{'by_twin_columns':>18}")
    for width, row in rows.items():
        print(f"{width:<8}" + "".join(f"{row[n]:>{w}.2f}" for n, w in zip(row, (12, 12, 18), strict=False)))


if __name__ == "__main__":
    main()
