# Experiments on pretrained networks: a network, a task, and arms.  The config of each is read in common.smk.


rule prepare_model:
    input:
        files=files_of_network,
    output:
        manifest=NETWORK,
    log:
        "logs/models/{experiment}.log",
    benchmark:
        "logs/models/{experiment}.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        config=sections("pretrained"),
        head=lambda wildcards: config_of(wildcards.experiment).task.head,
        seed=experiment_seed("prepare_model"),
        code=code_hash("pretrained/prepare_model.py"),
    message:
        "{wildcards.experiment} prepare_model: checking the network; log: {log}"
    script:
        "../workflow/scripts/pretrained/prepare_model.py"


rule prepare_task:
    input:
        files=files_of_task,
        network=NETWORK,
    output:
        train="results/data/{experiment}-task/train.safetensors",
        valid="results/data/{experiment}-task/valid.safetensors",
        test="results/data/{experiment}-task/test.safetensors",
        manifest=TASK,
    log:
        "logs/data/{experiment}-task.log",
    benchmark:
        "logs/data/{experiment}-task.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory_of_task,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        config=sections("task"),
        images=image_folders,
        batches=batches_of_trainings,
        seed=experiment_seed("prepare_task"),
        code=code_hash("pretrained/prepare_task.py"),
    message:
        "{wildcards.experiment} prepare_task: reading and tokenising the data; log: {log}"
    script:
        "../workflow/scripts/pretrained/prepare_task.py"


rule finetune:
    input:
        network=NETWORK,
        task=TASK,
    output:
        config="results/{experiment}/{variant}/finetune/config.json",
        model="results/{experiment}/{variant}/finetune/model.safetensors",
        history="results/{experiment}/{variant}/finetune/history.parquet",
        metrics="results/{experiment}/{variant}/finetune/metrics.json",
    log:
        "logs/{experiment}/{variant}/finetune.log",
    benchmark:
        "logs/{experiment}/{variant}/finetune.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
        variant=rf"{DENSE}(-seed\d+)?",
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=sections(*COMPUTE, "finetune"),
        max_hours=max_hours,
        seed=arm_seed("finetune"),
        code=code_hash("pretrained/finetune.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} finetune: training the dense network; log: {log}"
    script:
        "../workflow/scripts/pretrained/finetune.py"


rule distil_projections:
    input:
        unpack(conversion_start),
        network=NETWORK,
        task=TASK,
    output:
        config="results/{experiment}/{variant}/projections/config.json",
        model="results/{experiment}/{variant}/projections/model.safetensors",
        history="results/{experiment}/{variant}/projections/history.parquet",
        metrics="results/{experiment}/{variant}/projections/metrics.json",
    log:
        "logs/{experiment}/{variant}/distil_projections.log",
    benchmark:
        "logs/{experiment}/{variant}/distil_projections.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "projections"),
        max_hours=max_hours,
        seed=arm_seed("projections"),
        code=code_hash("pretrained/distil_projections.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} distil_projections: replacing attention projections; log: {log}"
    script:
        "../workflow/scripts/pretrained/distil_projections.py"


rule sparsify_sites:
    input:
        unpack(sparsification_start),
        network=NETWORK,
        task=TASK,
    output:
        config="results/{experiment}/{variant}/sparsify/config.json",
        model="results/{experiment}/{variant}/sparsify/model.safetensors",
        history="results/{experiment}/{variant}/sparsify/history.parquet",
        metrics="results/{experiment}/{variant}/sparsify/metrics.json",
    log:
        "logs/{experiment}/{variant}/sparsify_sites.log",
    benchmark:
        "logs/{experiment}/{variant}/sparsify_sites.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "sparsify"),
        max_hours=max_hours,
        seed=arm_seed("sparsify"),
        code=code_hash("pretrained/sparsify.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} sparsify_sites: fine-tuning the network further; log: {log}"
    script:
        "../workflow/scripts/pretrained/sparsify.py"


rule cluster_sites:
    input:
        network=NETWORK,
        task=TASK,
        model=sparsified_model,
    output:
        labels="results/{experiment}/{variant}/cluster/labels.parquet",
        metrics="results/{experiment}/{variant}/cluster/metrics.json",
    log:
        "logs/{experiment}/{variant}/cluster_sites.log",
    benchmark:
        "logs/{experiment}/{variant}/cluster_sites.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "cluster_experts"),
        seed=arm_seed("cluster_experts"),
        code=code_hash("pretrained/cluster.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} cluster_sites: splitting feed-forward layers into experts; log: {log}"
    script:
        "../workflow/scripts/pretrained/cluster.py"


rule train_site_routers:
    input:
        network=NETWORK,
        task=TASK,
        model=sparsified_model,
        labels=of_stage("cluster", "labels.parquet"),
    output:
        routers="results/{experiment}/{variant}/routers/routers.safetensors",
        history="results/{experiment}/{variant}/routers/history.parquet",
        metrics="results/{experiment}/{variant}/routers/metrics.json",
    log:
        "logs/{experiment}/{variant}/train_site_routers.log",
    benchmark:
        "logs/{experiment}/{variant}/train_site_routers.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "train_routers"),
        max_hours=max_hours,
        seed=arm_seed("train_routers"),
        code=code_hash("pretrained/train_routers.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} train_site_routers: training the routers; log: {log}"
    script:
        "../workflow/scripts/pretrained/train_routers.py"


rule calibrate_thresholds:
    input:
        network=NETWORK,
        task=TASK,
        model=arm_model,
    output:
        thresholds="results/{experiment}/{variant}/thresholds/thresholds.json",
    log:
        "logs/{experiment}/{variant}/calibrate_thresholds.log",
    benchmark:
        "logs/{experiment}/{variant}/calibrate_thresholds.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "thresholds"),
        seed=arm_seed("thresholds"),
        code=code_hash("pretrained/calibrate_thresholds.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} calibrate_thresholds: reading calibration tokens; log: {log}"
    script:
        "../workflow/scripts/pretrained/calibrate_thresholds.py"
