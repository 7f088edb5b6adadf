# A converted network with its tokenizer and model card, as a Hugging Face folder.


rule export:
    input:
        model="results/{experiment}/{variant}/routers/model.safetensors",
        architecture="results/{experiment}/{variant}/routers/architecture.yaml",
        report="results/{experiment}/{variant}/eval.json",
        vocab=dataset_file("vocab.json"),
    output:
        folder=directory("results/{experiment}/{variant}/hf"),
    log:
        "logs/{experiment}/{variant}/export.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("export"),
        runtime=minutes("export"),
    params:
        code=code_hash("export.py"),
    message:
        "{wildcards.experiment}/{wildcards.variant} export: writing a Hugging Face folder; log: {log}"
    script:
        "../workflow/scripts/export.py"
