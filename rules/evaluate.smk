# Quality, latency, FLOPs and the dynamic-k sweep of one variant and of the baseline.


rule evaluate:
    input:
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        test=dataset_file("test.npy"),
        table="results/{experiment}/latency_table.parquet",
        baseline_architecture="results/{experiment}/baseline/architecture.yaml",
        baseline=baseline_report,
        baseline_training=baseline_training,
        architecture="results/{experiment}/{variant}/architecture.yaml",
        retrained="results/{experiment}/{variant}/retrain/model.safetensors",
        sparsified="results/{experiment}/{variant}/sparsify/model.safetensors",
        routed="results/{experiment}/{variant}/routers/model.safetensors",
        stages=stage_metrics,
    output:
        report="results/{experiment}/{variant}/eval.json",
    log:
        "logs/{experiment}/{variant}/evaluate.log",
    benchmark:
        "logs/{experiment}/{variant}/evaluate.tsv"
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    params:
        config=sections("seed", *COMPUTE, "data", "model", "workload", "retrain", "evaluate"),
        seed=seed("evaluate"),
        vocab_size=vocab_size,
        code=code_hash("evaluate.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} evaluate: measuring quality, latency and FLOPs; log: {log}"
    script:
        "../workflow/scripts/evaluate.py"
