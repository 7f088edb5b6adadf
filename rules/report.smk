# Variants of an experiment side by side.


rule compare:
    input:
        reports=compared_reports,
        table="results/{experiment}/latency_table.parquet",
        additivity="results/{experiment}/additivity.json",
    output:
        comparison="results/{experiment}/comparison.parquet",
        report="results/{experiment}/report.html",
        figures=directory("results/{experiment}/figures"),
    log:
        "logs/{experiment}/compare.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        code=code_hash("compare.py"),
    message:
        "Comparing the networks of {wildcards.experiment}."
    script:
        "../workflow/scripts/compare.py"
