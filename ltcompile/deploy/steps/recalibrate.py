"""Take batch norm's running mean and variance again, from training inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ltcompile.deploy.job import ShrinkJob, training_inputs
from ltcompile.graph._copy import copied
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.pruned import Pruned

ORDER = 10
BATCH = 256


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """Take the statistics from the inputs of `job.calibrate`; int8 uses these for its ranges instead."""
    recalibrated = job.calibrate is not None and job.precision != "int8"
    if recalibrated:
        assert job.calibrate is not None
        network = copied(pruned.small)
        take_statistics(network, training_inputs(job.calibrate, BATCH))
        pruned = replace(pruned, small=network)
    provenance = {**pruned.provenance, "recalibrated": json.dumps(recalibrated)}
    return replace(pruned, provenance=provenance), {"recalibrated": recalibrated}
