"""What networks are for: one task a file, as `core.task.Task` describes it."""

from ltcompile.tasks.classification import Classification, SgdTrainer

__all__ = ["Classification", "SgdTrainer"]
