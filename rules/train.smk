# Training: the baseline from random weights, all others from the baseline, with the baseline as their teacher.


# All students with the same batches read the same logits.
rule teacher:
    input:
        train=dataset_file("train.npy"),
        model="results/{experiment}/{variant}/retrain/model.safetensors",
        architecture="results/{experiment}/{variant}/retrain/architecture.yaml",
    output:
        logits="results/{experiment}/{variant}/teacher/logits.safetensors",
        metrics="results/{experiment}/{variant}/teacher/metrics.json",
    log:
        "logs/{experiment}/{variant}/teacher.log",
    wildcard_constraints:
        variant=BASELINE,
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("teacher"),
        runtime=minutes("teacher"),
    params:
        config=sections(*COMPUTE),
        training=keys_of(TeacherConfig, "distill"),
        code=code_hash("teacher.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} teacher: writing the logits that students learn from; log: {log}"
    script:
        "../workflow/scripts/teacher.py"


rule retrain:
    input:
        unpack(training_inputs),
        unpack(recipe_inputs),
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
        "logs/{experiment}/{variant}/retrain.tsv"
    conda:
        "../envs/torch.yaml"
    threads: threads_of
    resources:
        gpu=gpus,
        mem_mb=memory("retrain"),
        runtime=minutes("retrain"),
    params:
        config=recipe_sections,
        seed=seed("retrain"),
        vocab_size=vocab_size,
        code=code_hash("retrain.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} retrain: training the network; log: {log}"
    script:
        "../workflow/scripts/retrain.py"
