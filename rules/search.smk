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
        "benchmarks/runs/{experiment}/{variant}/search.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("search"),
        runtime=minutes("search"),
    params:
        config=sections(
            "device", "threads", "dtype", "data", "model", "patterns", "design_space", "arms", "workload", "search"
        ),
        seed=seed("search"),
        vocab_size=vocab_size,
        code=code_hash("search.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} search: searching; log: {log}"
    script:
        "../workflow/scripts/search.py"


rule sample_architecture:
    input:
        unpack(architecture_inputs),
    output:
        architecture="results/{experiment}/{variant}/architecture.yaml",
        metrics="results/{experiment}/{variant}/sample/metrics.json",
    log:
        "logs/{experiment}/{variant}/sample_architecture.log",
    conda:
        "../envs/torch.yaml"
    threads: whole_machine  # it measures what it chose
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=memory("sample_architecture"),
        runtime=minutes("sample_architecture"),
    params:
        config=sample_sections,
        seed=seed("sample_architecture"),
        retrain_seed=seed("retrain"),
        vocab_size=vocab_size,
        code=code_hash("sample_architecture.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} sample_architecture: choosing the architecture; log: {log}"
    script:
        "../workflow/scripts/sample_architecture.py"
