"""Workers as Slurm jobs, through submitit. Its own files (a job's description, which it unpickles) lie in the user's cache, not in the run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ltcompile.errors import InvalidSetting, Unavailable
from ltcompile.paths import cache_folder

OPTIONS = None  # any of submitit's parameters, and these
OWN = {
    "cluster": "slurm, local or debug",
    "folder": "a folder that all machines see, for submitit's files; by default in ~/.cache/ltcompile",
}


def unavailable() -> str | None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        return f"submitit does not load ({error}); pip install 'ltcompile[slurm]'"
    return None


class Submitted:
    """A submitted job."""

    def __init__(self, job: Any) -> None:
        self._job, self.log = job, str(job.paths.stderr)

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        return 0 if self._job.exception() is None else 1

    def stop(self) -> None:
        self._job.cancel(check=False)


class Executor:
    """A Slurm cluster, as submitit reaches it from this machine."""

    def __init__(self, folder: Path, workers: int, options: dict[str, str]) -> None:
        import submitit

        cluster = options.pop("cluster", "slurm")
        if cluster == "slurm" and shutil.which("srun") is None:
            raise Unavailable(
                "executor=slurm: there is no srun here; start it on a machine of the cluster, or with cluster=local to try it out"
            )
        where = Path(options.pop("folder", "") or cache_folder() / "slurm") / folder.parent.name
        try:
            self._executor = submitit.AutoExecutor(folder=where, cluster=cluster)
            self._executor.update_parameters(**{"name": "ltcompile", **{key: _value(text) for key, text in options.items()}})
        except (ValueError, TypeError, NameError, RuntimeError, OSError) as error:
            raise InvalidSetting(f"executor=slurm: {' '.join(str(error).split())}") from error

    def start(self, command: list[str], name: str) -> Submitted:
        from submitit.helpers import CommandFunction

        try:
            return Submitted(self._executor.submit(CommandFunction(command, cwd=Path.cwd())))
        except Exception as error:  # submitit's FailedJobError among others: the partition, the account, the quota
            raise Unavailable(f"executor=slurm: the job was not accepted: {' '.join(str(error).split())}") from error

    def close(self) -> None: ...


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        return int(text)
    except ValueError:
        return text
