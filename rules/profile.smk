# Latencies on this device: every option alone, sums against whole networks, and the cost of training.


rule profile_blocks:
    output:
        table="results/{experiment}/latency_table.parquet",
    log:
        "logs/{experiment}/profile_blocks.log",
    benchmark:
        "logs/{experiment}/profile_blocks.tsv"
    priority: 2
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=memory("profile_blocks"),
        runtime=minutes("profile_blocks"),
    params:
        config=sections(*MEASURED),
        patterns=untracked_sections("patterns"),
        options=lambda wildcards: measured_names(wildcards.experiment),
        vocab_size=vocab_size,
        code=code_hash("profile_blocks.py"),
    message:
        "{wildcards.experiment} profile_blocks: measuring the latency of every block; log: {log}"
    script:
        "../workflow/scripts/profile_blocks.py"


rule check_additivity:
    input:
        table="results/{experiment}/latency_table.parquet",
    output:
        report="results/{experiment}/additivity.json",
    log:
        "logs/{experiment}/check_additivity.log",
    benchmark:
        "logs/{experiment}/check_additivity.tsv"
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=memory("check_additivity"),
        runtime=minutes("check_additivity"),
    params:
        config=sections("seed", *COMPUTE, "model", "design_space", "workload", "profile_blocks"),
        patterns=untracked_sections("patterns"),
        notations=notations,
        vocab_size=vocab_size,
        code=code_hash("check_additivity.py"),
    message:
        "{wildcards.experiment} check_additivity: comparing sums of block latencies with whole networks; log: {log}"
    script:
        "../workflow/scripts/check_additivity.py"


# Runs once per latency table.  A later change of steps is checked before any job (check_cost in targets.smk): tracking
# it here would train again after every raise of max_hours, and ancient() would hide other changes downstream.
rule estimate_cost:
    input:
        table="results/{experiment}/latency_table.parquet",
    output:
        report="results/{experiment}/cost.json",
    log:
        "logs/{experiment}/estimate_cost.log",
    priority: 1
    conda:
        "../envs/torch.yaml"
    threads: whole_machine  # no other job starts before the estimate
    resources:
        mem_mb=memory("estimate_cost"),
        runtime=minutes("estimate_cost"),
    params:
        config=untracked_sections(
            "model", "patterns", "design_space", "workload", "data", "candidates", *TRAININGS, "max_hours"
        ),
        vocab_size=vocab_size,
        settings=lambda wildcards: measured_settings(wildcards.experiment),
        code=code_hash("estimate_cost.py"),
    message:
        "{wildcards.experiment} estimate_cost: estimating how long the experiment trains on this device; log: {log}"
    script:
        "../workflow/scripts/estimate_cost.py"
