# Conversion of dense feed-forward layers: sparse activations, small experts, routers.  Attention projections become
# such layers where the experiment asks for it.


rule replace_projections:
    input:
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        model="results/{experiment}/{variant}/retrain/model.safetensors",
        architecture="results/{experiment}/{variant}/retrain/architecture.yaml",
    output:
        architecture="results/{experiment}/{variant}/projections/architecture.yaml",
        model="results/{experiment}/{variant}/projections/model.safetensors",
        history="results/{experiment}/{variant}/projections/history.parquet",
        metrics="results/{experiment}/{variant}/projections/metrics.json",
    log:
        "logs/{experiment}/{variant}/replace_projections.log",
    benchmark:
        "logs/{experiment}/{variant}/replace_projections.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("replace_projections"),
        runtime=minutes("replace_projections"),
    params:
        config=sections("device", "threads", "dtype", "data", "projections"),
        seed=seed("projections"),
        vocab_size=vocab_size,
        code=code_hash("replace_projections.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} replace_projections: training MLPs for projections; log: {log}"
    script:
        "../workflow/scripts/replace_projections.py"


rule sparsify:
    input:
        unpack(sparsification_inputs),
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
    output:
        architecture="results/{experiment}/{variant}/sparsify/architecture.yaml",
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
        history="results/{experiment}/{variant}/sparsify/history.parquet",
        metrics="results/{experiment}/{variant}/sparsify/metrics.json",
    log:
        "logs/{experiment}/{variant}/sparsify.log",
    benchmark:
        "logs/{experiment}/{variant}/sparsify.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("sparsify"),
        runtime=minutes("sparsify"),
    params:
        config=sections(*COMPUTE, "sparsify"),
        teaching=teaching,
        seed=seed("sparsify"),
        vocab_size=vocab_size,
        code=code_hash("sparsify.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} sparsify: making activations sparse; log: {log}"
    script:
        "../workflow/scripts/sparsify.py"


rule cluster_experts:
    input:
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
        architecture="results/{experiment}/{variant}/sparsify/architecture.yaml",
    output:
        architecture="results/{experiment}/{variant}/cluster/architecture.yaml",
        model="results/{experiment}/{variant}/cluster/model.safetensors",
        labels="results/{experiment}/{variant}/cluster/labels.parquet",
        metrics="results/{experiment}/{variant}/cluster/metrics.json",
    log:
        "logs/{experiment}/{variant}/cluster_experts.log",
    benchmark:
        "logs/{experiment}/{variant}/cluster_experts.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        mem_mb=memory("cluster_experts"),
        runtime=minutes("cluster_experts"),
    params:
        config=sections("threads", "cluster_experts"),
        seed=seed("cluster_experts"),
        code=code_hash("cluster_experts.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} cluster_experts: splitting dense layers into experts; log: {log}"
    script:
        "../workflow/scripts/cluster_experts.py"


rule train_routers:
    input:
        train=dataset_file("train.npy"),
        valid=dataset_file("valid.npy"),
        model="results/{experiment}/{variant}/cluster/model.safetensors",
        architecture="results/{experiment}/{variant}/cluster/architecture.yaml",
        dense="results/{experiment}/{variant}/retrain/model.safetensors",
        dense_architecture="results/{experiment}/{variant}/retrain/architecture.yaml",
    output:
        architecture="results/{experiment}/{variant}/routers/architecture.yaml",
        model="results/{experiment}/{variant}/routers/model.safetensors",
        history="results/{experiment}/{variant}/routers/history.parquet",
        metrics="results/{experiment}/{variant}/routers/metrics.json",
    log:
        "logs/{experiment}/{variant}/train_routers.log",
    benchmark:
        "logs/{experiment}/{variant}/train_routers.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("train_routers"),
        runtime=minutes("train_routers"),
    params:
        config=sections(*COMPUTE, "train_routers"),
        choice=keys_of(ThresholdConfig, "evaluate"),
        seed=seed("train_routers"),
        vocab_size=vocab_size,
        code=code_hash("train_routers.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} train_routers: training the routers and choosing tau; log: {log}"
    script:
        "../workflow/scripts/train_routers.py"
