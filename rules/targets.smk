# The targets of the command line.  Snakemake reports a mistake in them after planning and in many lines.  Here it is one
# line, before any work.
import os

from snakemake.cli import get_argument_parser

from planer.config.corpora import CORPORA
from planer.latency.cost import check_hours, load_cost, rescaled
from planer.workflow.targets import check_folders, check_made, names_in


def targets():
    """The targets of the command line: rules, and files relative to the working directory."""
    arguments, rest = sys.argv[1:], []
    if "--" in arguments:
        end = arguments.index("--")
        arguments, rest = arguments[:end], arguments[end + 1 :]
    parsed, _ = get_argument_parser().parse_known_args(arguments)
    return [*parsed.targets, *rest] or ["results/demo/report.html"]


def check_cost(experiment):
    """Raise UserError when an experiment that was estimated earlier would now train too long, with more steps.

    An estimate for another device or model does not count: estimate_cost will run again.
    """
    estimate = Path(f"results/{experiment}/cost.json")
    if estimate.exists():
        earlier, config = load_cost(estimate), config_of(experiment)
        if earlier.get("settings") == measured_settings(experiment):
            check_hours(rescaled(earlier, config), earlier["device"], config)


def check_targets():
    """Raise UserError for unknown names, wrong configuration, too long trainings, and files that nothing makes."""
    check_folders("results", "logs", "scratch")
    for target in targets():
        texts = [f"{name}{TEXT_SUFFIX}" for name in EXPERIMENTS if name not in PRETRAINED]
        path = os.path.relpath(target or ".")
        names = names_in(path, [*CORPORA, *texts], PRETRAINED)
        if names.get("experiment") in PRETRAINED:
            values = settings(names["experiment"])
            if "variant" in names:
                check_stage(values, names["variant"], Path(path).parts[3])  # results/<experiment>/<variant>/<stage>
        elif "experiment" in names:
            config = config_of(names["experiment"])
            config.check_variant(names.get("variant", "baseline"))
            if Path(path).stem == "pareto":
                config.check_pareto()
            check_cost(names["experiment"])
        elif (
            names.get("dataset", "").endswith(TEXT_SUFFIX)
            and not config_of(names["dataset"].removesuffix(TEXT_SUFFIX)).data.text
        ):
            raise UserError(f"target {target!r}: this experiment has no data.text")
        check_made(target, {rule.name: rule.output for rule in workflow.rules}, names)


if workflow.is_main_process:  # the others have jobs that were planned here
    try:
        check_targets()
    except UserError as error:
        sys.exit(f"planer: {' '.join(str(error).split())}")
