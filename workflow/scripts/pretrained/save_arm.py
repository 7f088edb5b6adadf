"""Write an arm as a folder of transformers, at the setting that its evaluation chose."""

from pathlib import Path

from planer.config.pretrained import PretrainedExperiment
from planer.conversion.arm_files import read_labels, read_routers, read_thresholds, split_by
from planer.conversion.hub import mark, select
from planer.conversion.stored import build, describe_experts, describe_thresholds
from planer.files import read_json
from planer.pretrained.prepare import load_network, prepared_folder
from planer.pretrained.save import write_folder
from planer.workflow.job import stage

if __name__ == "__main__":
    with stage(snakemake, PretrainedExperiment) as job:
        files, evaluation = snakemake.input, read_json(snakemake.input.report, "arm")
        model = load_network(files.network, Path(files.model).parent)
        if snakemake.params.method == "experts":
            routers = job.config.train_routers
            split_by(model, read_labels(files.labels), routers.width, routers.target)
            read_routers(files.routers, model)
            where = {key: evaluation["provenance"][key] for key in ("device", "dtype")}
            mark(model, describe_experts(model, {"share": evaluation["break_even"], **where}))
        elif snakemake.params.method == "threshold":
            description = describe_thresholds(model, read_thresholds(files.thresholds))
            build(model, description)
            mark(model, description)
        if evaluation["chosen"]:
            select(model, **evaluation["chosen"])
        write_folder(model, prepared_folder(files.network), snakemake.output.folder, evaluation)
