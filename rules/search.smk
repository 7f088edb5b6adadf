# Phase 1 and the choice of one architecture.


rule search:
    input:
        unpack(search_parent),
        train=dataset_file("train.npy"),
        table="results/{experiment}/latency_table.parquet",
        cost="results/{experiment}/cost.json",
    output:
        supernet="results/{experiment}/{variant}/search/supernet.safetensors",
        trajectory="results/{experiment}/{variant}/search/trajectory.parquet",
        metrics="results/{experiment}/{variant}/search/metrics.json",
    log:
        "logs/{experiment}/{variant}/search.log",
    benchmark:
        "logs/{experiment}/{variant}/search.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("search"),
        runtime=minutes("search"),
    params:
        config=sections(*COMPUTE, "model", "design_space", "search_methods", "workload", "search"),
        patterns=untracked_sections("patterns"),
        notations=notations,
        seed=seed("search"),
        vocab_size=vocab_size,
        code=code_hash("search.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} search: training the supernet; log: {log}"
    script:
        "../workflow/scripts/search.py"


# A pattern needs no choice.
rule pattern:
    input:
        table="results/{experiment}/latency_table.parquet",
    output:
        architecture="results/{experiment}/{variant}/architecture.yaml",
    log:
        "logs/{experiment}/{variant}/pattern.log",
    wildcard_constraints:
        variant=PATTERN,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("pattern"),
        runtime=minutes("pattern"),
    params:
        config=sections("model", "workload"),
        patterns=untracked_sections("patterns"),
        notations=notations,
        vocab_size=vocab_size,
        code=code_hash("pattern.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} pattern: writing the architecture; log: {log}"
    script:
        "../workflow/scripts/pattern.py"


rule choose:
    input:
        unpack(choice_inputs),
        table="results/{experiment}/latency_table.parquet",
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        cost="results/{experiment}/cost.json",
    output:
        architecture="results/{experiment}/{variant}/architecture.yaml",
        training="results/{experiment}/{variant}/choice/training.safetensors",
        metrics="results/{experiment}/{variant}/choice/metrics.json",
    log:
        "logs/{experiment}/{variant}/choose.log",
    benchmark:
        "logs/{experiment}/{variant}/choose.tsv"
    wildcard_constraints:
        variant=CHOSEN,
    conda:
        "../envs/torch.yaml"
    threads: whole_machine  # it measures candidates
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=memory("choose"),
        runtime=minutes("choose"),
    params:
        config=choice_sections,
        patterns=untracked_sections("patterns"),
        notations=notations,
        seed=seed("choose"),
        train_seed=seed("retrain"),
        vocab_size=vocab_size,
        code=code_hash("choose.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} choose: measuring and proxy-training candidates; log: {log}"
    script:
        "../workflow/scripts/choose.py"
