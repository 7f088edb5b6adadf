# Texts: corpora, found or downloaded and verified, or the user's own files; split and tokenised.


rule prepare_data:
    output:
        train="results/data/{dataset}/train.npy",
        valid="results/data/{dataset}/valid.npy",
        test="results/data/{dataset}/test.npy",
        vocab="results/data/{dataset}/vocab.json",
        manifest="results/data/{dataset}/manifest.json",
    log:
        "logs/data/{dataset}.log",
    benchmark:
        "logs/data/{dataset}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: preparation(prepared(wildcards)).memory_of(attempt),
        runtime=lambda wildcards, attempt: preparation(prepared(wildcards)).minutes_of(attempt),
    params:
        corpus=source_of,
        code=code_hash("prepare_data.py"),
    message:
        "data/{wildcards.dataset} prepare_data: finding, checking and tokenising the text; log: {log}"
    script:
        "../workflow/scripts/prepare_data.py"
