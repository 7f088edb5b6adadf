# Phase 2: the chosen network from scratch.


rule retrain:
    input:
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
        gpu=1,
        mem_mb=32000,
        runtime=2880,
    params:
        config=sections("device", "threads", "dtype", "data", "retrain"),
        seed=seed("retrain"),
        code=code_hash("retrain.py"),
    message:
        "Training {wildcards.experiment}/{wildcards.variant} from scratch."
    script:
        "../workflow/scripts/retrain.py"
