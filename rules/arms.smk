# Evaluation, folder and page of the arms of pretrained experiments (pretrained.smk has their stages).


rule evaluate_arm:
    input:
        unpack(arm_files),
        network=NETWORK,
        task=TASK,
        reference=reference_model,
    output:
        report="results/{experiment}/{variant}/eval.json",
    log:
        "logs/{experiment}/{variant}/evaluate_arm.log",
    benchmark:
        "logs/{experiment}/{variant}/evaluate_arm.tsv"
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: whole_machine
    resources:
        gpu=gpus,
        slurm_extra=EXCLUSIVE,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=most_minutes,
    params:
        config=arm_sections(*COMPUTE, "train_routers", "evaluate"),
        method=method_of,
        reference=reference_name,
        seed=arm_seed("evaluate"),
        code=code_hash("pretrained/evaluate.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} evaluate_arm: measuring quality, FLOPs and latency; log: {log}"
    script:
        "../workflow/scripts/pretrained/evaluate.py"


rule save_arm:
    input:
        unpack(arm_files),
        network=NETWORK,
        report="results/{experiment}/{variant}/eval.json",
    output:
        folder=directory("results/{experiment}/{variant}/hf"),
    log:
        "logs/{experiment}/{variant}/save_arm.log",
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        config=arm_sections("train_routers"),
        method=method_of,
        code=code_hash("pretrained/save_arm.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} save_arm: writing the folder; log: {log}"
    script:
        "../workflow/scripts/pretrained/save_arm.py"


rule report_arms:
    input:
        reports=arm_reports,
    output:
        page=report(
            "results/{experiment}/arms.html",
            caption="../workflow/report/page.rst",
            category="{experiment}",
            labels={"result": "arms"},
        ),
    log:
        "logs/{experiment}/report_arms.log",
    wildcard_constraints:
        experiment=PRETRAINED_NAME,
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_hash("pretrained/report_arms.py"),
    message:
        "{wildcards.experiment} report_arms: comparing the arms; log: {log}"
    script:
        "../workflow/scripts/pretrained/report_arms.py"
