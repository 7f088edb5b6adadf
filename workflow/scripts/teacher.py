"""Write the trained baseline's logits of every token of its students' training."""

import time
from pathlib import Path

from planer import models
from planer.files import write_json
from planer.runtime import resolve_device, resolve_dtype
from planer.training.teacher import write_cache
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, device = time.perf_counter(), resolve_device(job.config.device)
        teacher = models.load(Path(snakemake.input.model).parent)
        runtime = (device, resolve_dtype(job.config.dtype, device))
        write_cache(snakemake.output.logits, teacher, job.tokens("train"), job.config.distill, *runtime)
        write_json(snakemake.output.metrics, {"seconds": time.perf_counter() - began})
