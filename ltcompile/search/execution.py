"""How a run's trainings are computed: chosen once, written to its folder, and kept when the run is resumed."""

from __future__ import annotations

from ltcompile.core.notice import notify
from ltcompile.core.run_folder import RunFolder
from ltcompile.paths import read_json, write_json
from ltcompile.search.job import SearchJob
from ltcompile.training import Execution, choose_execution, multiplies_bf16, settled


def run_execution(job: SearchJob, folder: RunFolder) -> Execution:
    """The run's execution: what its folder says, or else a new choice, timed on the dense network and written there; for a trainer of the
    user's own, what the recipe fixes.

    A Notice says where this device emulates the precision that the run began with.

    Raises InvalidFile where the file is damaged; TrainingFailed where not even two images fit into memory.
    """
    if job.trainer is not None:
        return settled(job.recipe)
    if not folder.execution.exists():
        chosen = choose_execution(job.initial(job.config.seed), job.task, job.recipe, job.device)
        write_json(folder.execution, chosen.to_json(), once=True)
    with folder.fitting(folder.execution):
        found = Execution.from_json(read_json(folder.execution, "record of how a run computes"))
    if found.precision == "bf16" and not multiplies_bf16(job.device):
        notify(
            f"the run began in bf16, and stays so; this {job.device.type} emulates it, far slower than fp32. Resume it on "
            f"{found.machine or 'the machine where it began'}, or start a run with precision=fp32"
        )
    return found
