"""Write the trained baseline's logits of every token of its students' training."""

import time
from pathlib import Path

from planer import models
from planer.config import TeacherConfig
from planer.files import read_tokens, write_json
from planer.parsing import build
from planer.training.teacher import write_cache
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake) as job:
        began, teacher = time.perf_counter(), models.load(Path(snakemake.input.model).parent)
        text = read_tokens(snakemake.input.train)
        training = build(TeacherConfig, snakemake.params.training)
        write_cache(snakemake.output.logits, teacher, text, training, job.runtime())
        write_json(snakemake.output.metrics, {"seconds": time.perf_counter() - began})
