"""The figures of reports. Each takes what was measured, and is None where that has nothing to show."""

from specprof.reports.acceptance_figures import acceptance_by_position, accepted_per_round
from specprof.reports.cost_figure import cost_curve
from specprof.reports.prediction_figure import predicted_against_measured
from specprof.reports.speedup_figure import speedup_heatmap
from specprof.reports.time_figures import latencies, time_per_token

__all__ = [
    "acceptance_by_position",
    "accepted_per_round",
    "cost_curve",
    "latencies",
    "predicted_against_measured",
    "speedup_heatmap",
    "time_per_token",
]
