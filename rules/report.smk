# Comparisons of the variants of an experiment.


rule compare:
    input:
        unpack(compared_files),
        table="results/{experiment}/latency_table.parquet",
        additivity="results/{experiment}/additivity.json",
    output:
        comparison="results/{experiment}/comparison.parquet",
        report=report(
            "results/{experiment}/report.html",
            caption="../workflow/report/page.rst",
            category="{experiment}",
            labels={"result": "report"},
        ),
        figures=report(
            directory("results/{experiment}/figures"),
            patterns=["{figure}.svg"],
            caption="../workflow/report/figure.rst",
            category="{experiment}",
            labels={"result": "{figure}"},
        ),
    log:
        "logs/{experiment}/compare.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("compare"),
        runtime=minutes("compare"),
    params:
        code=code_hash("compare.py"),
    message:
        "{wildcards.experiment} compare: comparing the networks; log: {log}"
    script:
        "../workflow/scripts/compare.py"


rule repeatability:
    input:
        unpack(repeated_reports),
    output:
        report="results/{experiment}/repeatability.json",
    log:
        "logs/{experiment}/repeatability.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("repeatability"),
        runtime=minutes("repeatability"),
    params:
        config=sections("repeatability"),
        code=code_hash("repeatability.py"),
    message:
        "{wildcards.experiment} repeatability: comparing repeats of the search; log: {log}"
    script:
        "../workflow/scripts/repeatability.py"


rule pareto:
    input:
        unpack(pareto_files),
    output:
        report="results/{experiment}/pareto.json",
        figure=report(
            "results/{experiment}/pareto.svg",
            caption="../workflow/report/figure.rst",
            category="{experiment}",
            labels={"result": "pareto"},
        ),
    log:
        "logs/{experiment}/pareto.log",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("pareto"),
        runtime=minutes("pareto"),
    params:
        config=sections("pareto"),
        code=code_hash("pareto.py"),
    message:
        "{wildcards.experiment} pareto: comparing one supernet for all targets with one search each; log: {log}"
    script:
        "../workflow/scripts/pareto.py"
