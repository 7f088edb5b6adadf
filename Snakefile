from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/resources.smk"
include: "rules/inputs.smk"
include: "rules/data.smk"
include: "rules/profile.smk"
include: "rules/search.smk"
include: "rules/train.smk"
include: "rules/convert.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/pretrained_inputs.smk"
include: "rules/pretrained.smk"
include: "rules/arms.smk"


# Without a target, compare the demo's networks.
rule all:
    default_target: True
    input:
        "results/demo/report.html",


include: "rules/targets.smk"
