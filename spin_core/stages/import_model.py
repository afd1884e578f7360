"""A published checkpoint, or any θ_t of another run, as an artifact of the store.

Is not: a conversion. The files that are read as a model are copied as they are (of a model that spinloop trained also
its metrics and its card), so the artifact's content is the checkpoint's.

inputs   `source`: a model directory
outputs  the same files
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from spin_core.config.base import Section
from spin_core.job import Inputs, Job

NAME = "import_model"
VERSION = 1


class Config(Section):
    """Nothing: the output is the input's content."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Copy the files; give their number and size in bytes. Raises BadInput for what is no whole safetensors model."""
    from spin_core.data.readers import file_names
    from spin_core.sources.folders import check_model, checkpoint_files

    source = cast(Path, inputs["source"])
    check_model(source)
    chosen, size = checkpoint_files(file_names(source)), 0
    with job.progress("copying the model", len(chosen), "files") as bar:
        for name in chosen:
            (job.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, job.out / name)
            size += (job.out / name).stat().st_size
            bar.advance()
    return {"files": len(chosen), "bytes": size}
