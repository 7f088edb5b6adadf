# Phase 2: training the chosen network, from random weights or from a warm start.


rule warm_start:
    input:
        unpack(lender),
        architecture="results/{experiment}/{variant}/architecture.yaml",
    output:
        weights="results/{experiment}/{variant}/warm_start.safetensors",
    log:
        "logs/{experiment}/{variant}/warm_start.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("warm_start"),
        runtime=minutes("warm_start"),
    params:
        config=lender_sections,
        vocab_size=vocab_size,
        code=code_hash("warm_start.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} warm_start: collecting the weights to start from; log: {log}"
    script:
        "../workflow/scripts/warm_start.py"


rule retrain:
    input:
        unpack(start_files),
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        architecture="results/{experiment}/{variant}/architecture.yaml",
        cost="results/{experiment}/cost.json",
    output:
        architecture="results/{experiment}/{variant}/retrain/architecture.yaml",
        model="results/{experiment}/{variant}/retrain/model.safetensors",
        history="results/{experiment}/{variant}/retrain/history.parquet",
        metrics="results/{experiment}/{variant}/retrain/metrics.json",
    log:
        "logs/{experiment}/{variant}/retrain.log",
    benchmark:
        "benchmarks/runs/{experiment}/{variant}/retrain.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("retrain"),
        runtime=minutes("retrain"),
    params:
        config=retrain_sections,
        start=start_of,
        seed=seed("retrain"),
        code=code_hash("retrain.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} retrain: training; start: {params.start}; log: {log}"
    script:
        "../workflow/scripts/retrain.py"
