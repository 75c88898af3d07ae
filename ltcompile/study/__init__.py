"""What papers on tickets found, repeated: one file a study, which is found by its name.

A study is a file `study/x.py` with

- `TITLE`, `SOURCE`: what it repeats, and of whom;
- `SCALES`: a `Scale` for each of smoke, small, medium (in some studies) and full;
- `arms(scale) -> list[StudyArm]`: the searches that it runs, each in a folder of its own;
- `analyse(scale, done, device) -> Findings`: tables, figures and claims of what they found; it may look into their run folders.

No study trains by itself: find, cut, mask and rewind are the search's own.
"""

from ltcompile.study._nouns import SIZES, Done, Findings, Scale, StudyArm
from ltcompile.study._run import default_folder, run
from ltcompile.study._studies import load, names, scaled
from ltcompile.study._taking_part import StudyStatus, StudyWatch, join

__all__ = [
    "SIZES",
    "Done",
    "Findings",
    "Scale",
    "StudyArm",
    "StudyStatus",
    "StudyWatch",
    "default_folder",
    "join",
    "load",
    "names",
    "run",
    "scaled",
]
